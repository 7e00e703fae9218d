import csv
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw
from tiny import save_noise

from retfound_hf.data.prepare_images import main


@pytest.fixture
def images(tmp_path):
    """Twelve patients with two eyes: a table of `image`, `label`, `patient_id`, `eye`, and its image files."""
    rows = []
    for patient in range(12):
        label = ("healthy", "amd", "dme")[patient % 3]
        for number, eye in enumerate("RL"):
            name = f"images/p{patient:02d}_{eye}.png"
            save_noise(tmp_path / name, 2 * patient + number, (24, 20))
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
def class_folder(tmp_path, divided):
    """The divided table as a folder {train,val,test}/<class>/ with its metadata.csv."""
    root = tmp_path / "folder"
    table = divided.copy()
    table["image"] = table["split"] + "/" + table["label"] + "/" + table["image"].str.split("/").str[-1]
    for seed, name in enumerate(table["image"]):
        save_noise(root / name, seed, (24, 20))
    table.to_csv(root / "metadata.csv", index=False)
    return root


def draw_fundus(seed: int, width: int = 120, height: int = 90) -> Image.Image:
    """A textured disc on black, wider than high, that no other seed gives."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    radius, x, y = 0.42 * height, width / 2 + rng.uniform(-3, 3), height / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(190, 90, 40))
    for _ in range(12):
        cx, cy = x + rng.normal(0, radius / 3), y + rng.normal(0, radius / 3)
        draw.ellipse((cx - 4, cy - 4, cx + 4, cy + 4), fill=tuple(rng.integers(60, 250, 3).tolist()))
    return image


@pytest.fixture(scope="session")
def fundus():
    return draw_fundus


@pytest.fixture
def photos(tmp_path) -> Path:
    """A tree of 23 photographs, of which the 4th and the 18th are the same, a text file and a hidden folder."""
    root = tmp_path / "photos"
    for number in range(23):
        path = root / f"clinic-{number % 3}" / f"eye{number:02d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        draw_fundus(3 if number == 18 else number).save(path, quality=92)
    (root / "notes.txt").write_text("no image")
    (root / ".trash").mkdir()
    draw_fundus(99).save(root / ".trash" / "old.jpg")
    return root


@pytest.fixture
def damaged_photos(photos) -> dict[str, str]:
    """Files that must be rejected, added to `photos`: id to a part of the reason."""
    whole = (photos / "clinic-0" / "eye00.jpg").read_bytes()
    (photos / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "empty.png").write_bytes(b"")
    (photos / "text.png").write_text("not an image")
    Image.new("RGB", (100, 100), (120, 60, 20)).save(photos / "plain.png")
    draw_fundus(50, 80, 60).save(photos / "tiny.png")
    return {
        "cut.jpg": "the file is truncated",
        "empty.png": "the file is empty",
        "text.png": "it is not an image",
        "plain.png": "it is blank: its gray levels span 0 of 255",
        "tiny.png": "80 x 60 pixels are fewer than 64 a side",
    }


@pytest.fixture
def prepare(photos, tmp_path):
    """Runs the command into `tmp_path/NAME` and returns that folder."""

    def run(name: str = "shards", *words: str, source: object = photos) -> Path:
        defaults = {"--modality": "cfp", "--image_size": "32", "--shard_size": "5", "--num_workers": "2"}
        flags = [word for pair in defaults.items() if pair[0] not in words for word in pair]
        main([str(source), str(tmp_path / name), *flags, *words])
        return tmp_path / name

    return run


@pytest.fixture(scope="session")
def shard_bytes():
    """The bytes of every shard of an output folder, by name; nothing else may be in `data`."""

    def read(out: Path) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in sorted((out / "data").iterdir())}

    return read


@pytest.fixture(scope="session")
def read_csv():
    def read(path: Path) -> list[tuple[str, ...]]:
        return [tuple(row) for row in csv.reader(io.StringIO(path.read_text(encoding="utf-8")))]

    return read
