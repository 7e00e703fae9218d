"""Small shards, a small masked autoencoder, and runs on them that take a second."""

import dataclasses
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import ViTMAEConfig

from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.pretraining import pretrain as run
from retfound_hf.pretraining.arguments import DataArguments, ModelArguments, PretrainingArguments
from retfound_hf.pretraining.pretrain import make_accelerator, prepare

SIDE = 64
NUM_IMAGES = (150, 53)
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}  # fmt: skip
# Of a quick run on a CPU, by the names of the flags.
QUICK = {
    "max_steps": 6, "per_device_train_batch_size": 8, "base_learning_rate": 0.03, "warmup_steps": 0.2,
    "dataloader_num_workers": 0, "logging_steps": 2, "save_steps": 0, "preview_steps": 0,
}  # fmt: skip
PARTS = (ModelArguments, DataArguments, PretrainingArguments)


@pytest.fixture(autouse=True, scope="session")
def quiet():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


@pytest.fixture(autouse=True)
def own_accelerate():
    """Accelerate keeps its settings for the life of the process; every test starts without any."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


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


@pytest.fixture(scope="session")
def make_picture() -> Callable[..., Image.Image]:
    return picture


@pytest.fixture(scope="session")
def encode() -> Callable[..., bytes]:
    return encoded


@pytest.fixture(scope="session")
def write_shard() -> Callable[..., Path]:
    return write_parquet


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Two parquet files with 150 and 53 JPEGs of 64 x 64 pixels, `img0` to `img202`."""
    folder = tmp_path_factory.mktemp("shards")
    first = 0
    for number, count in enumerate(NUM_IMAGES):
        names = range(first, first + count)
        write_parquet(
            folder / f"train-{number:05d}.parquet", [encoded(picture(n)) for n in names], [f"img{n}" for n in names]
        )
        first += count
    return folder


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., RetFoundConfig]:
    """Makes configurations of 16 patches, width 32, 2 blocks and 1 of the decoder; keyword arguments override."""
    return lambda **overrides: RetFoundConfig(**{**SIZES, **overrides})


@pytest.fixture(scope="session")
def stock_config() -> Callable[..., ViTMAEConfig]:
    """The same sizes in a stock configuration."""
    return lambda **overrides: ViTMAEConfig(**{**SIZES, **overrides})


@pytest.fixture(scope="session")
def model_folder(tiny_config, tmp_path_factory) -> Path:
    """A masked autoencoder with random weights, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    RetFoundForPreTraining(tiny_config(modality="cfp")).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(SIZES["image_size"]).save_pretrained(folder)
    return folder


@pytest.fixture
def quick_options(shards, model_folder, cache_dir) -> Callable[..., dict[str, Any]]:
    """All options of a quick run; None takes one away."""

    def make(output_dir: Path, **options: Any) -> dict[str, Any]:
        base = {"model_name_or_path": str(model_folder), "train_data": [str(shards)], "cache_dir": str(cache_dir)}
        merged = {**base, **QUICK, "output_dir": str(output_dir), **options}
        return {name: value for name, value in merged.items() if value is not None}

    return make


@pytest.fixture
def pretrain_words(quick_options) -> Callable[..., list[str]]:
    """The words behind `scripts/pretrain.py` of a quick run: `pretrain_words(output_dir, max_steps=4)`."""

    def make(output_dir: Path, **flags: Any) -> list[str]:
        words = []
        for name, value in quick_options(output_dir, **flags).items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return make


@pytest.fixture
def tiny_arguments(quick_options, tmp_path) -> Callable[..., tuple]:
    """The three argument objects of a quick run."""

    def make(output_dir: Path | None = None, **options: Any) -> tuple:
        left = quick_options(output_dir or tmp_path / "out", **options)
        made = []
        for part in PARTS:
            names = {field.name for field in dataclasses.fields(part)}
            made.append(part(**{name: left.pop(name) for name in names & left.keys()}))
        assert not left, left
        return tuple(made)

    return make


@pytest.fixture
def half_precision_here(monkeypatch) -> torch.amp.GradScaler:
    """Runs scale their losses as with --fp16, by the scaler that torch has for CPUs; it is that of the next run."""
    scaler = torch.amp.GradScaler("cpu")

    def make(args: PretrainingArguments, output_dir: Path) -> Accelerator:
        accelerator = make_accelerator(args, output_dir)
        accelerator.scaler, accelerator.native_amp = scaler, True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr(run, "make_accelerator", make)
    return scaler


@pytest.fixture
def make_loop(tiny_arguments) -> Callable[..., tuple]:
    """The prepared `Loop` of a run and its `ImageReader`, as `pretrain` has them before the first step."""

    def make(output_dir: Path | None = None, checkpoint: Path | None = None, **options: Any) -> tuple:
        parts = tiny_arguments(output_dir, **options)
        folder = Path(parts[2].output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        AcceleratorState._reset_state(reset_partial_state=True)
        return prepare(*parts, make_accelerator(parts[2], folder), checkpoint)

    return make
