"""A small encoder folder, two small image sets with a planted signal, and studies of them."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from PIL import Image

from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor

SIZE = 32
COLOURS = {"amd": (200, 60, 60), "healthy": (60, 200, 60)}


def write_model(folder: Path, seed: int) -> Path:
    """A pretrained folder of 32 px input with random weights."""
    torch.manual_seed(seed)
    config = RetFoundConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, image_size=SIZE,
        patch_size=8, decoder_hidden_size=16, decoder_num_hidden_layers=1, decoder_num_attention_heads=4,
        decoder_intermediate_size=32,
    )  # fmt: skip
    RetFoundForPreTraining(config).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(SIZE).save_pretrained(folder)
    return folder


def write_set(root: Path, patients: dict[str, int], seed: int) -> Path:
    """{split}/<class>/*.png with two images per patient, and metadata.csv with a camera."""
    generator = np.random.default_rng(seed)
    rows, number = [], 0
    for split, count in patients.items():
        for index in range(count):
            label = ("amd", "healthy")[index % 2]
            for eye in "LR":
                pixels = generator.normal(110, 40, (40, 40, 3))
                pixels += generator.normal(0.2, 1.0) * (np.array(COLOURS[label]) - 110)
                path = root / split / label / f"p{number:03d}{eye}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                name = path.relative_to(root).as_posix()
                rows.append({"image": name, "patient_id": f"p{number:03d}", "eye": eye, "camera": "AB"[number % 2]})
            number += 1
    pd.DataFrame(rows).to_csv(root / "metadata.csv", index=False)
    return root


@pytest.fixture
def make_model():
    """`write_model`, for tests that need other models than those of the desk."""
    return write_model


@pytest.fixture
def make_set():
    """`write_set`, likewise."""
    return write_set


@pytest.fixture(scope="session")
def desk(tmp_path_factory) -> Path:
    """A folder with two models (`first`, `second`) and two data sets (`inside`, `outside`)."""
    torch.set_num_threads(1)
    root = tmp_path_factory.mktemp("desk")
    for seed, name in enumerate(("first", "second")):
        write_model(root / name, seed)
    write_set(root / "inside", {"train": 20, "val": 8, "test": 10}, seed=0)
    write_set(root / "outside", {"train": 8, "val": 4, "test": 12}, seed=1)
    return root


@pytest.fixture
def study_file(desk):
    """Writes a study file into the desk; keyword arguments replace parts of it."""
    written = []

    def write(**parts) -> Path:
        content = {
            "name": "Trial",
            "models": {"First": "first", "Second": "second"},
            "methods": ["linear"],
            "data": {"Inside": {"data": "inside", "modality": "cfp", "external": {"Outside": "outside"}}},
            "fractions": [0.5, 1.0],
            "seeds": [0, 1],
            "finetune": {"dataloader_num_workers": 0, "cache_dir": "./cache"},
            **parts,
        }
        path = desk / f"study{len(written)}.yaml"
        path.write_text(yaml.safe_dump({name: value for name, value in content.items() if value is not None}))
        written.append(path)
        return path

    yield write
    for path in written:
        path.unlink()
