"""A small encoder folder, small image sets with a planted signal, and runs on them."""

import json
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import save_autoencoder, save_noise, save_planted_set, save_stock
from transformers import TrainerCallback, set_seed

from retfound_hf.finetuning.arguments import FinetuneArguments, argument_types
from retfound_hf.finetuning.finetune import Prepared, finetune, prepare
from retfound_hf.finetuning.finetune import run as run_finetuning
from retfound_hf.finetuning.methods import METHODS, Method, Trained
from retfound_hf.inference.predict import Classifier
from retfound_hf.options import build_arguments

FAST = {
    "num_train_epochs": 3, "learning_rate": 3e-3, "per_device_eval_batch_size": 64, "dataloader_num_workers": 0,
    "use_cpu": True, "disable_tqdm": True, "logging_steps": 1, "drop_path": 0.1, "augmentation": "light",
}  # fmt: skip


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory) -> Path:
    """A pretrained folder of 32 px input: 16 patches, 3 blocks of width 32."""
    return save_autoencoder(tmp_path_factory.mktemp("models") / "encoder", num_hidden_layers=3)


@pytest.fixture(scope="session")
def stock_folder(tmp_path_factory):
    """Makes folders of stock transformers models of 3 blocks, each once."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            made[kind] = save_stock(tmp_path_factory.mktemp("models") / kind, kind, num_hidden_layers=3)
        return made[kind]

    return make


@pytest.fixture(scope="session")
def planted(tmp_path_factory) -> Path:
    """Two classes told by colour: 48 training, 16 validation, 24 test images."""
    return save_planted_set(tmp_path_factory.mktemp("data") / "planted", {"train": 24, "val": 8, "test": 12})


@pytest.fixture(scope="session")
def table_set(tmp_path_factory) -> Path:
    """A CSV without splits: findings `red` and `bright` that may occur together, `level` as a number, patients."""
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
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root / "table.csv"


@pytest.fixture(scope="session")
def noise_set(tmp_path_factory) -> Path:
    """A table of pure noise: 60 training, 30 validation, 120 test images, whose labels nothing can tell."""
    root = tmp_path_factory.mktemp("data") / "noise"
    rows = []
    for split, count in (("train", 60), ("val", 30), ("test", 120)):
        for index in range(count):
            path = save_noise(root / f"images/{split}{index:03d}.png", len(rows), (32, 32))
            rows.append({"image": f"images/{path.name}", "label": "ab"[index % 2], "split": split})
    pd.DataFrame(rows).to_csv(root / "table.csv", index=False)
    return root / "table.csv"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def arguments(encoder_folder, planted, cache_dir, tmp_path):
    """Makes the arguments of a quick run; keyword arguments override any option."""

    def make(**options) -> FinetuneArguments:
        base = {} if "config_name" in options else {"model_name_or_path": str(encoder_folder)}
        common = {"data": str(planted), "cache_dir": str(cache_dir), "output_dir": str(tmp_path / "out")}
        return FinetuneArguments(build_arguments(argument_types(), {**FAST, **common, **base, **options}), quiet=True)

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
    def classifier(self) -> Classifier:
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
        args.resolve_rates(method.base_learning_rate)
        return Job(args, method, prepare(args, method))

    return make


@pytest.fixture
def run(arguments):
    """Fine-tunes and returns what was written."""

    def go(**options) -> SimpleNamespace:
        done = run_finetuning(arguments(**options))
        return finished(done.output_dir, done.metrics)

    return go


def finished(folder: Path, metrics: dict) -> SimpleNamespace:
    def read(name: str):
        return json.loads((folder / name).read_text(encoding="utf-8"))

    return SimpleNamespace(
        folder=folder, metrics=metrics, stored_metrics=read("metrics.json"), history=read("history.json"),
        validation_metrics=read("validation/metrics.json"), record=read("run.json"),
        predictions=pd.read_csv(folder / "predictions.csv"),
    )  # fmt: skip


@pytest.fixture(scope="session")
def finished_run(encoder_folder, planted, cache_dir, tmp_path_factory) -> SimpleNamespace:
    """One full run that many tests look at."""
    folder = tmp_path_factory.mktemp("runs") / "classifier"
    options = {**FAST, "num_train_epochs": 6, "augmentation": "recipe", "learning_rate": 5e-3}
    return finished(folder, finetune(encoder_folder, planted, folder, cache_dir=str(cache_dir), **options).metrics)
