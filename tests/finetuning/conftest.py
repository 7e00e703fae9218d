"""A small encoder folder, small image sets with a planted signal, and runs on them."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import TrainerCallback, set_seed

from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.finetuning.arguments import FinetuneArguments, argument_types
from retfound_hf.finetuning.finetune import Prepared, finetune, prepare
from retfound_hf.finetuning.finetune import run as run_finetuning
from retfound_hf.finetuning.methods import METHODS, Method, Trained
from retfound_hf.options import build_arguments

SIZE, PATCH = 32, 8
COLOURS = {"amd": (200, 60, 60), "healthy": (60, 200, 60), "other": (60, 60, 200)}


@pytest.fixture(autouse=True, scope="session")
def quiet():
    torch.set_num_threads(1)
    datasets.disable_progress_bars()


def small_config(**overrides) -> RetFoundConfig:
    sizes = {
        "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64,
        "image_size": SIZE, "patch_size": PATCH, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 32,
    }  # fmt: skip
    return RetFoundConfig(**{**sizes, **overrides})


def with_noise(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Every trained parameter off its initial zero or one, as in real weights."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    return model


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A pretrained folder of 32 px input: 16 patches, 3 blocks of width 32."""
    folder = tmp_path_factory.mktemp("models") / "encoder"
    torch.manual_seed(0)
    with_noise(RetFoundForPreTraining(small_config())).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory):
    """Makes folders of stock transformers models: `vit_mae`, `vit`, `dinov2` or `dinov3_vit`."""
    from transformers import (
        Dinov2Config,
        Dinov2Model,
        DINOv3ViTConfig,
        DINOv3ViTModel,
        ViTConfig,
        ViTImageProcessor,
        ViTMAEConfig,
        ViTMAEForPreTraining,
        ViTModel,
    )

    kinds = {
        "vit_mae": (ViTMAEConfig, ViTMAEForPreTraining),
        "vit": (ViTConfig, ViTModel),
        "dinov2": (Dinov2Config, Dinov2Model),
        "dinov3_vit": (DINOv3ViTConfig, DINOv3ViTModel),
    }
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            config_class, model_class = kinds[kind]
            extras = {
                "vit_mae": {
                    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
                    "decoder_intermediate_size": 32,
                },
                "dinov2": {"mlp_ratio": 2},
                "dinov3_vit": {"num_register_tokens": 4},
            }  # fmt: skip
            config = config_class(
                hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=64, image_size=SIZE,
                patch_size=PATCH, **extras.get(kind, {}),
            )  # fmt: skip
            torch.manual_seed(0)
            made[kind] = tmp_path_factory.mktemp("models") / kind
            with_noise(model_class(config)).save_pretrained(made[kind])
            ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(made[kind])
        return made[kind]

    return make


def planted_image(label: str, generator: np.random.Generator, side: int = 48) -> np.ndarray:
    """Noise with a square, somewhere, whose colour tells the class."""
    pixels = generator.integers(60, 180, (side, side, 3))
    top, left = generator.integers(2, side // 2 - 2, 2)
    pixels[top : top + side // 2, left : left + side // 2] = COLOURS[label]
    pixels = pixels + generator.normal(0, 10, pixels.shape)
    return pixels.clip(0, 255).astype(np.uint8)


def write_set(root: Path, classes: tuple[str, ...], patients: dict[str, int], seed: int) -> Path:
    """{split}/<class>/*.png with two images per patient, and metadata.csv."""
    generator = np.random.default_rng(seed)
    rows = []
    number = 0
    for split, count in patients.items():
        for index in range(count):
            label = classes[index % len(classes)]
            for eye in "LR":
                path = root / split / label / f"p{number:03d}{eye}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(planted_image(label, generator)).save(path)
                rows.append({"image": path.relative_to(root).as_posix(), "patient_id": f"p{number:03d}", "eye": eye})
            number += 1
    pd.DataFrame(rows).to_csv(root / "metadata.csv", index=False)
    return root


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    """Two classes told by colour: 48 training, 16 validation, 24 test images."""
    root = tmp_path_factory.mktemp("data") / "planted"
    return write_set(root, ("amd", "healthy"), {"train": 24, "val": 8, "test": 12}, seed=0)


@pytest.fixture(scope="session")
def table_set(tmp_path_factory) -> Path:
    """A CSV without splits: findings `red` and `bright` that may occur together, `redness` as a number, patients."""
    root = tmp_path_factory.mktemp("data") / "table"
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(1)
    rows = []
    for patient in range(40):
        red, bright = patient % 2, patient // 2 % 2
        for eye in "LR":
            redness = generator.uniform(0, 60)
            pixels = generator.normal(90, 15, (40, 44, 3)) + 60 * bright
            pixels[..., 0] += redness + 60 * red
            pixels[..., 2] -= 60 * red
            name = f"images/p{patient:03d}{eye}.png"
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(root / name)
            level = 40 + 0.2 * (redness + 60 * red)
            rows.append({"image": name, "red": red, "bright": bright, "level": level, "patient_id": f"p{patient:03d}"})
    path = root / "table.csv"
    pd.DataFrame(rows).to_csv(path, index=False)
    return path


@pytest.fixture(scope="session")
def noise_set(tmp_path_factory) -> Path:
    """A table of pure noise: 60 training, 30 validation, 120 test images, whose labels nothing can tell."""
    root = tmp_path_factory.mktemp("data") / "noise"
    (root / "images").mkdir(parents=True)
    generator = np.random.default_rng(0)
    rows = []
    for split, count in (("train", 60), ("val", 30), ("test", 120)):
        for index in range(count):
            name = f"images/{split}{index:03d}.png"
            Image.fromarray(generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(root / name)
            rows.append({"image": name, "label": "ab"[index % 2], "split": split})
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root / "table.csv"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("decoded")


FAST = {
    "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_eval_batch_size": 64, "dataloader_num_workers": 0,
    "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "drop_path": 0.1, "augmentation": "light",
}  # fmt: skip


@pytest.fixture
def arguments(encoder_folder, planted, cache_dir, tmp_path):
    """Makes the arguments of a quick run; keyword arguments override any option."""

    def make(**options) -> FinetuneArguments:
        base = {} if "config_name" in options else {"model_name_or_path": str(encoder_folder)}
        common = {"data": str(planted), "cache_dir": str(cache_dir), "output_dir": str(tmp_path / "out")}
        return FinetuneArguments(build_arguments(argument_types(), {**FAST, **common, **base, **options}))

    return make


@dataclass
class Job:
    """A run up to its training."""

    args: FinetuneArguments
    method: Method
    prepared: Prepared

    @property
    def splits(self):
        return self.prepared.splits

    @property
    def classifier(self):
        return self.prepared.classifier

    def train(self, checkpoint: str | None = None, callback: TrainerCallback | None = None) -> Trained:
        splits, scale = self.splits, self.prepared.target_scale
        if callback is not None:
            make = self.method.trainer

            def with_callback(*args):
                self.trainer = make(*args)
                self.trainer.add_callback(callback)
                return self.trainer

            self.method.trainer = with_callback
        return self.method.train(self.classifier, splits["train"], splits["val"], scale, checkpoint)


@pytest.fixture
def job(arguments):
    """Makes a `Job` as `finetune` does, seed included."""

    def make(**options) -> Job:
        args = arguments(**options)
        set_seed(args.seed)
        method = METHODS[args.method](args)
        args.resolve_learning_rate(method.base_learning_rate)
        return Job(args, method, prepare(args, method))

    return make


@pytest.fixture
def run(arguments):
    """Fine-tunes and returns what was written."""

    def go(**options) -> SimpleNamespace:
        done = run_finetuning(arguments(**options))
        return finished(done.output_dir, done.metrics)

    return go


def finished(folder: Path, metrics: dict | None = None) -> SimpleNamespace:
    def read(name: str):
        return json.loads((folder / name).read_text(encoding="utf-8"))

    return SimpleNamespace(
        folder=folder,
        metrics=metrics if metrics is not None else read("metrics.json"),
        stored_metrics=read("metrics.json"),
        validation_metrics=read("validation/metrics.json"),
        history=read("history.json"),
        record=read("run.json"),
        predictions=pd.read_csv(folder / "predictions.csv"),
    )


@pytest.fixture(scope="session")
def finished_run(encoder_folder, planted, cache_dir, tmp_path_factory) -> SimpleNamespace:
    """One full run that many tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    options = {**FAST, "num_train_epochs": 6, "augmentation": "recipe", "learning_rate": 5e-3}
    return finished(folder, finetune(encoder_folder, planted, folder, cache_dir=str(cache_dir), **options).metrics)
