"""A desk with two encoders and two image sets, studies of them, and one finished study for all tests that read it."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from shared import made_once
from tiny import save_autoencoder, save_planted_set

from retfound_hf.study.results import StudyResults, read_study
from retfound_hf.study.runner import run_study

FULL = {"num_train_epochs": 2, "learning_rate": 3e-3, "augmentation": "light", "disable_tqdm": True}
WHOLE = {
    "name": "Whole",
    "models": {"First": "first", "Second": "second"},
    "methods": {"linear": None, "full": FULL},
    "data": {"Inside": {"data": "inside", "modality": "cfp", "external": {"Outside": "outside"}}},
    "fractions": [0.5, 1.0],
    "seeds": [0, 1, 2],
    "metrics": ["auroc", "brier", "ece"],
    "finetune": {"dataloader_num_workers": 0, "cache_dir": "./cache"},
    "reporting": {"subgroups": ["eye"], "resamples": 200, "examples": 2},
}


@pytest.fixture(scope="session")
def desk(tmp_path_factory) -> Path:
    """A folder with two models (`first`, `second`) and two data sets (`inside`, `outside`)."""
    torch.set_num_threads(1)

    def make(root: Path) -> None:
        for seed, name in enumerate(("first", "second")):
            save_autoencoder(root / name, seed)
        save_planted_set(root / "inside", {"train": 20, "val": 8, "test": 10}, seed=0, random=0.6)
        save_planted_set(root / "outside", {"train": 8, "val": 4, "test": 12}, seed=1, random=0.6)

    return made_once(tmp_path_factory, "desk", make)


@pytest.fixture(scope="session")
def write_study(desk):
    """Writes a study file into the desk; keyword arguments replace parts of a small one, None removes them."""

    def write(filename: str, /, **parts) -> Path:
        content = WHOLE | {"name": "Trial", "methods": ["linear"], "seeds": [0, 1], "metrics": None, "reporting": None}
        path = desk / f"{filename}-{os.getpid()}.yaml"  # other test processes write into the desk too
        given = {key: value for key, value in {**content, **parts}.items() if value is not None}
        path.write_text(yaml.safe_dump(given, sort_keys=False))
        return path

    return write


@pytest.fixture
def study_file(write_study):
    """The same, as `study.yaml` of one test."""
    return lambda **parts: write_study("study", **parts)


@pytest.fixture(scope="session")
def whole(write_study, tmp_path_factory) -> tuple[Path, Path]:
    """File and folder of a study that ran without a break: models x methods x fractions x seeds, and its report."""
    path = write_study("whole", **WHOLE)
    return path, made_once(tmp_path_factory, "whole", lambda folder: run_study(path, folder, jobs=2))


@pytest.fixture
def found(whole) -> StudyResults:
    """The finished study, read."""
    return read_study(whole[1])


@pytest.fixture
def table_of(desk):
    """The images of a set of the desk as a table of absolute paths with `split` and `label`."""

    def read(name: str) -> pd.DataFrame:
        rows = pd.read_csv(desk / name / "metadata.csv")
        parts = rows["image"].str.split("/")
        paths = [str(desk / name / image) for image in rows["image"]]
        return rows.assign(split=parts.str[0], label=parts.str[1], image=paths)

    return read


@pytest.fixture
def copied(whole, tmp_path) -> Path:
    """A copy of the finished study's folder."""
    return Path(shutil.copytree(whole[1], tmp_path / "copy"))
