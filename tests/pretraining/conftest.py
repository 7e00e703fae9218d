"""Small shards, small networks and objectives, and runs on them that take a second."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from small_runs import JOINT, QUICK, SIDE, SMALL, take_steps, write_shards
from tiny import SIZES, tiny_config
from transformers import PreTrainedModel, ResNetConfig, ResNetModel, ViTMAEConfig

from retfound_hf import RetFoundForPreTraining, RetFoundImageProcessor, RetFoundModel
from retfound_hf.pretraining import pretrain as module
from retfound_hf.pretraining.arguments import Arguments, PretrainingArguments
from retfound_hf.pretraining.data import ImageReader, open_shards
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import Objective
from retfound_hf.pretraining.pretrain import PretrainingRun, make_accelerator, prepare, run


@pytest.fixture(autouse=True)
def own_accelerate():
    """Accelerate keeps its settings for the life of the process; every test starts without any."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def shards(tmp_path_factory) -> Path:
    """Two parquet files with 150 and 53 JPEGs of 64 x 64 pixels, `img0` to `img202`."""
    return write_shards(tmp_path_factory.mktemp("shards"), (150, 53))


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def stock_config() -> Callable[..., ViTMAEConfig]:
    """Makes stock configurations of the sizes of `tiny_config`."""
    return lambda **overrides: ViTMAEConfig(**{**SIZES, **overrides})


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """A masked autoencoder with random weights, saved."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    torch.manual_seed(0)
    RetFoundForPreTraining(tiny_config(modality="cfp")).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(SIZES["image_size"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def resnet_folder(tmp_path_factory) -> Path:
    """A stock ResNet of two stages with random weights, saved by transformers alone."""
    folder = tmp_path_factory.mktemp("models") / "resnet"
    torch.manual_seed(0)
    ResNetModel(ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1])).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def quick_options(shards, model_folder, cache_dir) -> Callable[..., dict[str, Any]]:
    """All options of a quick run; None takes one away."""

    def make(output_dir: Path, **options: Any) -> dict[str, Any]:
        base = {"model_name_or_path": str(model_folder), "train_data": [str(shards)], "cache_dir": str(cache_dir)}
        merged = {**base, **QUICK, "output_dir": str(output_dir), **options}
        return {name: value for name, value in merged.items() if value is not None}

    return make


@pytest.fixture(scope="session")
def pretrain_words(quick_options) -> Callable[..., list[str]]:
    """The words behind `scripts/pretrain.py` of a quick run: `pretrain_words(output_dir, max_steps=4)`."""

    def make(output_dir: Path, **flags: Any) -> list[str]:
        words = []
        for name, value in quick_options(output_dir, **flags).items():
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
        return words

    return make


@pytest.fixture(scope="session")
def tiny_arguments(quick_options) -> Callable[..., Arguments]:
    """The arguments of a quick run."""
    return lambda output_dir, **options: Arguments.build(quick_options(output_dir, **options))


@pytest.fixture
def start(tiny_arguments, tmp_path) -> Callable[..., PretrainingRun]:
    """Runs in this process: `start("name", max_steps=4)` writes to a folder of that name."""
    return lambda name="out", **options: run(tiny_arguments(tmp_path / name, **options))


@pytest.fixture
def half_precision_here(monkeypatch) -> torch.amp.GradScaler:
    """Runs scale their losses as with fp16, by the scaler that torch has for CPUs; it is that of the next run."""
    scaler = torch.amp.GradScaler("cpu")

    def make(args: PretrainingArguments, output_dir: Path) -> Accelerator:
        accelerator = make_accelerator(args, output_dir)
        accelerator.scaler, accelerator.native_amp = scaler, True
        accelerator.state._mixed_precision = "fp16"
        return accelerator

    monkeypatch.setattr(module, "make_accelerator", make)
    return scaler


@pytest.fixture
def make_loop(tiny_arguments, tmp_path) -> Callable[..., tuple[Loop, ImageReader]]:
    """The prepared `Loop` of a run and its `ImageReader`, as `run` has them before the first step."""

    def make(output_dir: Path | None = None, checkpoint: Path | None = None, **options: Any) -> tuple:
        arguments = tiny_arguments(output_dir or tmp_path / "out", **options)
        folder = Path(arguments.training.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        AcceleratorState._reset_state(reset_partial_state=True)
        return prepare(arguments, make_accelerator(arguments.training, folder), checkpoint)

    return make


@pytest.fixture
def drive(make_loop) -> Callable[..., Loop]:
    """Makes a run and takes all its steps, without what lies between them."""
    return lambda **options: take_steps(*make_loop(**options))


@pytest.fixture(params=JOINT)
def joint(request) -> str:
    """The name of every objective that compares views."""
    return request.param


@pytest.fixture
def images(shards, cache_dir) -> torch.Tensor:
    """uint8 (16, 3, 64, 64)."""
    return ImageReader(open_shards([str(shards)], str(cache_dir))).read(range(0, 160, 10))[0]


@pytest.fixture
def make_objective() -> Callable[..., Objective]:
    """`make_objective("simclr", temperature=0.2)`, on a small ViT with random weights or on `model`."""

    def make(name: str, model: PreTrainedModel | None = None, **options: Any) -> Objective:
        torch.manual_seed(0)
        kind = OBJECTIVES[name]
        given = {option: value for option, value in {**SMALL[name], **options}.items() if value is not None}
        return kind(model or RetFoundModel(tiny_config()), SIDE, kind.Options(**given)).train()

    return make
