"""A small encoder, a classifier and images, made once."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import transformers
from PIL import Image
from tiny import save_autoencoder, save_classifier, save_folder, save_noise

CLASSES = ("mild", "none", "severe")


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("models") / "encoder")


@pytest.fixture(scope="session")
def classifier_folder(tmp_path_factory) -> Path:
    return save_classifier(tmp_path_factory.mktemp("models") / "classifier", CLASSES)


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory) -> Path:
    """A stock `Dinov2Model` with RETFound's processor, as conversion of the DINOv2 checkpoints writes it."""
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, mlp_ratio=2, image_size=32, patch_size=8
    )
    return save_folder(transformers.Dinov2Model(config), tmp_path_factory.mktemp("models") / "dinov2")


@pytest.fixture(scope="session")
def images_folder(tmp_path_factory) -> Path:
    """24 images in two folders, of different sizes and kinds."""
    root = tmp_path_factory.mktemp("data") / "images"
    for index in range(23):
        folder, suffix = root / ("b" if index % 3 else "a"), ("png", "jpg", "tif")[index % 3]
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
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root / "table.csv"
