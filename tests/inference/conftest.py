"""A small encoder, a classifier and images, made once."""

from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from noise import with_noise
from PIL import Image

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}  # fmt: skip
CLASSES = ("mild", "none", "severe")


@pytest.fixture(autouse=True, scope="session")
def quiet():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "encoder"
    torch.manual_seed(0)
    with_noise(RetFoundForPreTraining(RetFoundConfig(**SIZES))).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> Path:
    """A classifier of mild, none, severe with random weights."""
    folder = tmp_path_factory.mktemp("models") / "classifier"
    torch.manual_seed(0)
    config = RetFoundConfig(
        **SIZES,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: index for index, name in enumerate(CLASSES)},
        problem_type="single_label_classification",
    )
    with_noise(RetFoundForImageClassification(config), scale=0.3).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(32).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory) -> Path:
    """A stock `Dinov2Model` with RETFound's processor, as conversion of the DINOv2 checkpoints writes it."""
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("models") / "dinov2"
    torch.manual_seed(0)
    config = Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8
    )
    with_noise(Dinov2Model(config)).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(32).save_pretrained(folder)
    return folder


def save_noise(path: Path, seed: int, size: tuple[int, int] = (44, 40)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory) -> Path:
    """23 images in two folders, of different sizes and kinds."""
    root = tmp_path_factory.mktemp("data") / "images"
    for index in range(23):
        folder = root / ("b" if index % 3 else "a")
        suffix = ("png", "jpg", "tif")[index % 3]
        save_noise(folder / f"{22 - index:02d}.{suffix}", index, (40 + index, 36))
    Image.fromarray(np.random.default_rng(50).integers(0, 256, (30, 30), dtype=np.uint8)).save(root / "a" / "gray.png")
    return root


@pytest.fixture(scope="session")
def labelled_table(tmp_path_factory) -> Path:
    """61 images of three classes with patients; 21 train, 15 val, 25 test, so that nothing divides by two."""
    root = tmp_path_factory.mktemp("data") / "labelled"
    rows = []
    for index in range(61):
        name = f"images/{index:02d}.png"
        save_noise(root / name, 100 + index)
        split = "train" if index < 21 else "val" if index < 36 else "test"
        rows.append({"image": name, "label": CLASSES[index % 3], "patient_id": f"p{split}{index % 7}", "split": split})
    path = root / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path
