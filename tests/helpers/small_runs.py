"""Small shards and runs of pretraining, and what their folders hold."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from retfound_hf.pretraining.data import ImageReader, make_loader
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.objectives import OBJECTIVES

SIDE = 64
# Of a quick run on a CPU, by the names of the flags.
QUICK = {
    "max_steps": 6, "per_device_train_batch_size": 8, "base_learning_rate": 0.03, "warmup_steps": 0.2,
    "dataloader_num_workers": 0, "logging_steps": 2, "save_steps": 0, "preview_steps": 0,
}  # fmt: skip
# Options of small objectives, and the names of all that compare views.
SMALL: dict[str, dict[str, Any]] = {
    "mae": {},
    "simclr": {},
    "moco_v3": {"head_width": 32, "teacher_momentum": 0.9},
    "dino": {"head_width": 32, "num_prototypes": 24, "local_crops": 2, "teacher_momentum": 0.9},
    "swav": {"head_width": 32, "num_prototypes": 24, "local_crops": 2},
}
JOINT = sorted(OBJECTIVES.keys() - {"mae"})
TIMED = {"images_per_second", "data_wait_fraction"}


def picture(number: int, side: int = SIDE) -> Image.Image:
    """Gratings of one direction and wavelength, whose phases and colours differ from image to image."""
    generator = np.random.default_rng(number)
    y, x = np.mgrid[:side, :side]
    phases = generator.uniform(0, 2 * np.pi, 3)
    waves = np.sin(2 * np.pi * (x + 0.5 * y)[..., None] / 16 + phases)
    pixels = generator.uniform(90, 160, 3) + generator.uniform(30, 80) * waves
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG") -> bytes:
    file = BytesIO()
    image.save(file, kind, **({"quality": 95} if kind == "JPEG" else {}))
    return file.getvalue()


def write_parquet(path: Path, images: list[bytes], ids: list[str] | None = None, **columns: list[Any]) -> Path:
    """A shard as `prepare_images` writes it: encoded images and their ids."""
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"image": [{"bytes": data, "path": None} for data in images], **columns}
    if ids is not None:
        columns["id"] = ids
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image(decode=False)).to_parquet(path)
    return path


def write_shards(folder: Path, rows: tuple[int, ...]) -> Path:
    """Files `train-00000.parquet` and on, of so many images each, named `img0` and on."""
    first = 0
    for number, count in enumerate(rows):
        names = range(first, first + count)
        images = [encoded(picture(name)) for name in names]
        write_parquet(folder / f"train-{number:05d}.parquet", images, [f"img{name}" for name in names])
        first += count
    return folder


def metrics_of(folder: Path) -> list[dict[str, Any]]:
    """The log of a run without what the clock says."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{name: value for name, value in record.items() if name not in TIMED} for record in records]


def moments_of(folder: Path) -> dict[Any, torch.Tensor]:
    """Tensors of the optimiser's state in a checkpoint."""
    state = torch.load(folder / "optimizer.bin", weights_only=True)["state"]
    return {(number, name): value for number, entry in state.items() for name, value in entry.items()}


def assert_same_checkpoints(one: Path, other: Path, *files: str) -> None:
    """Files and the optimiser's moments are equal, bit for bit."""
    for name in ("model.safetensors", *files):
        assert (one / name).read_bytes() == (other / name).read_bytes(), name
    first, second = moments_of(one), moments_of(other)
    assert first.keys() == second.keys() != set()
    assert not [key for key, value in first.items() if not torch.equal(value, second[key])]


def take_steps(loop: Loop, reader: ImageReader, count: int | None = None) -> Loop:
    """All steps of a run, or the first, without what lies between them."""
    batches = iter(make_loader(reader, loop.objective.draw, loop.order, loop.position, 0, pin_memory=False))
    loop.network.train()
    while not loop.order.is_finished(loop.position) and loop.position.step != count:
        loop.step(batches)
    return loop
