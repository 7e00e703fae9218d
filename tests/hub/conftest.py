"""Finished folders as the commands make them, of a model that trains in a moment."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import with_noise
from PIL import Image
from shared import made_once
from tiny import save_autoencoder, save_stock, tiny_config

from retfound_hf import RetFoundForImageClassification, RetFoundImageProcessor

SIZES = {
    "hidden_size": 64, "intermediate_size": 128, "image_size": 64, "patch_size": 16, "decoder_hidden_size": 32,
    "decoder_intermediate_size": 64,
}  # fmt: skip


def make_workshop(place: Path) -> None:
    """`base` (autoencoder), `classifier` (linear) and `adapter` (LoRA), the latter two by the real command."""
    from retfound_hf.finetuning.finetune import main
    from retfound_hf.models.cards import cost_text, write_card

    save_autoencoder(place / "base", **SIZES, weights_license="cc-by-nc-4.0", modality="cfp")
    write_card(
        place / "base", "pretrained", {"license": "cc-by-nc-4.0", "pipeline_tag": "image-feature-extraction"},
        title="base", description="A small model.", has_decoder=True, training_data="None.",
        preprocessing="Crop, resize, normalise.", cost=cost_text(12.0, "2 CPU cores"), provenance="Made for the tests."
    )  # fmt: skip
    rng = np.random.default_rng(0)
    for split, count in (("train", 6), ("val", 4), ("test", 4)):
        for index, name in enumerate(("normal", "stage 3")):
            folder = place / "images" / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = rng.integers(0, 120, (64, 64, 3)) + 100 * index
                Image.fromarray(pixels.astype(np.uint8)).save(folder / f"{split}-{number}.png")
    common = ["--model_name_or_path", str(place / "base"), "--data", str(place / "images"), "--dataloader_num_workers"]
    linear = ["0", "--method", "linear", "--confidence_intervals", "true", "--resamples", "100", "--calibrate", "true"]
    main([*common, *linear, "--output_dir", str(place / "classifier")])
    lora = ["0", "--method", "lora", "--num_train_epochs", "1", "--lora_rank", "2", "--disable_tqdm", "true"]
    main([*common, *lora, "--output_dir", str(place / "adapter")])


@pytest.fixture(scope="session")
def workshop(tmp_path_factory) -> Path:
    """Folder of `make_workshop`, which nobody may change."""
    return made_once(tmp_path_factory, "workshop", make_workshop)


@pytest.fixture(scope="session")
def stock_workshop(workshop, tmp_path_factory) -> Path:
    """The same on a DINOv2 encoder, whose configuration lies within ours: `base`, `classifier` and `adapter`."""
    from retfound_hf.finetuning.finetune import main

    def make(place: Path) -> None:
        licence = {"weights_license": "cc-by-nc-4.0", "modality": "cfp"}
        save_stock(place / "base", "dinov2", hidden_size=48, image_size=56, patch_size=14, **licence)
        RetFoundImageProcessor.for_image_size(56).save_pretrained(place / "base")
        common = ["--model_name_or_path", str(place / "base"), "--data", str(workshop / "images")]
        common += ["--dataloader_num_workers", "0", "--disable_tqdm", "true"]
        main([*common, "--method", "linear", "--output_dir", str(place / "classifier")])
        lora = ["--method", "lora", "--num_train_epochs", "1", "--lora_rank", "2"]
        main([*common, *lora, "--output_dir", str(place / "adapter")])

    return made_once(tmp_path_factory, "stock-workshop", make)


@pytest.fixture
def folder(workshop, tmp_path):
    """Makes a copy of one of the workshop's folders, to be spoilt."""
    return lambda name: Path(shutil.copytree(workshop / name, tmp_path / name))


@pytest.fixture
def change_json():
    """Changes entries of a JSON file; None removes one."""

    def change(path: Path, **entries) -> None:
        value = json.loads(path.read_text()) | entries
        path.write_text(json.dumps({key: item for key, item in value.items() if item is not None}))

    return change


@pytest.fixture
def image(tmp_path) -> Path:
    """A lit disc on a dark surround, which the processor crops."""
    y, x = np.mgrid[:120, :160]
    inside = np.hypot(x - 70, y - 60) < 50
    pixels = np.where(inside[..., None], np.random.default_rng(0).integers(90, 200, (120, 160, 3)), 4)
    Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "image.jpg", quality=95)
    return tmp_path / "image.jpg"


@pytest.fixture(scope="session")
def new_classifier():
    """A classifier of the tests' size with weights that tell every norm and bias."""

    def make(**options) -> RetFoundForImageClassification:
        torch.manual_seed(1)
        return with_noise(RetFoundForImageClassification(tiny_config(**SIZES, num_labels=3, **options)))

    return make
