from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image


@pytest.fixture(autouse=True, scope="session")
def quiet_progress():
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


@pytest.fixture
def write_image():
    def write(path: Path, seed: int = 0, size: tuple[int, int] = (24, 20)) -> Path:
        """An image (width, height) of noise that no other seed gives."""
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        return path

    return write


@pytest.fixture
def images(tmp_path, write_image):
    """Twelve patients with two eyes: a table of `image`, `label`, `patient_id`, `eye`, and its image files."""
    rows = []
    for patient in range(12):
        label = ("healthy", "amd", "dme")[patient % 3]
        for number, eye in enumerate("RL"):
            name = f"images/p{patient:02d}_{eye}.png"
            write_image(tmp_path / name, 2 * patient + number)
            rows.append({"image": name, "label": label, "patient_id": f"p{patient:02d}", "eye": eye})
    return pd.DataFrame(rows)


@pytest.fixture
def save_table(tmp_path):
    def save(table: pd.DataFrame, name: str = "table.csv") -> str:
        path = tmp_path / name
        table.to_parquet(path) if path.suffix == ".parquet" else table.to_csv(path, index=False)
        return str(path)

    return save


@pytest.fixture
def divided(images):
    """The same with a `split` column: in each class two patients to train, one to val, one to test."""
    place = images["patient_id"].str[1:].astype(int) // 3
    return images.assign(split=place.map({0: "train", 1: "train", 2: "val", 3: "test"}))


@pytest.fixture
def class_folder(tmp_path, divided, write_image):
    """The divided table as a folder {train,val,test}/<class>/ with its metadata.csv."""
    root = tmp_path / "folder"
    table = divided.copy()
    table["image"] = table["split"] + "/" + table["label"] + "/" + table["image"].str.split("/").str[-1]
    for seed, name in enumerate(table["image"]):
        write_image(root / name, seed)
    table.to_csv(root / "metadata.csv", index=False)
    return root
