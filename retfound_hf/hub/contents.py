"""What of a finished folder is published, and what stays at home."""

import json
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..runs.errors import RetFoundError

MODEL_FILES = ("config.json", "preprocessor_config.json", "README.md")
CITED = "cited.csv"  # figures from elsewhere that the card states: value, source
WEIGHTS = {"model": "model.safetensors", "adapter": "adapter_model.safetensors"}
PUBLISHED = (
    *MODEL_FILES, "model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json",
    "adapter_config.json", "adapter_model.safetensors", "metrics.json", "intervals.csv", "subgroups.csv",
    "calibration.csv", "operating_points.csv", "operating_points.json", "history.json", "metrics.jsonl",
    "plots/*.png", "plots/*.pdf", "validation/metrics.json", "validation/intervals.csv", "validation/subgroups.csv",
    "validation/calibration.csv", "validation/plots/*.png", CITED, "LICENSE*",
)  # fmt: skip
CODE = "*retfound*.py"  # as `remote_code` names its files
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.h5", "*.msgpack")
# Why the other files that a run writes are left out.
PRIVATE = {
    "predictions*.csv": "names of images and patients",
    "splits.csv": "names of images and patients",
    "run.json": "paths of this machine",
    "rejected.csv": "names of images",
    "previews/*": "pictures made from the training images",
}


@dataclass(frozen=True)
class Contents:
    """A checked folder.

    Attributes:
        folder: the folder.
        kind: `model` or `adapter`.
        config: its `config.json`.
        files: paths within it that are published, sorted.
        left_out: paths that are not, with the reason.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    files: tuple[str, ...]
    left_out: dict[str, str]

    @property
    def is_classifier(self) -> bool:
        return any("ForImageClassification" in name for name in self.config.get("architectures") or ()) or (
            self.kind == "adapter"
        )


def read_contents(folder: str | Path) -> Contents:
    """Look through a folder that `convert_checkpoint`, `pretrain` or `finetune` has made.

    Raises:
        RetFoundError: no such folder, a missing file, damaged weights, or pickles.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise RetFoundError(f"{folder} is no folder; give one that convert_checkpoint, pretrain or finetune has made")
    top = {path.name for path in folder.iterdir() if path.is_file()}
    pickles = sorted(name for name in top if any(fnmatch(name, pattern) for pattern in PICKLES))
    if pickles:
        raise RetFoundError(
            f"{folder} holds {', '.join(pickles)}, which may be pickles and can run code where they are loaded; only "
            "safetensors are published: convert or remove them"
        )
    kind = "adapter" if "adapter_config.json" in top else "model"
    sharded = "model.safetensors.index.json" in top
    needed = {*MODEL_FILES, "model.safetensors.index.json" if kind == "model" and sharded else WEIGHTS[kind]}
    missing = sorted(needed - top)
    if missing:
        raise RetFoundError(f"{folder} lacks {', '.join(missing)}; give a folder that a command has finished")
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    files = [path for path in paths if any(_matches(path, pattern) for pattern in PUBLISHED)]
    for path in files:
        if path.endswith(".safetensors"):
            _check_weights(folder / path)
    left_out = {path: _reason(path) for path in paths if path not in files and not path.endswith(".py")}
    return Contents(folder, kind, read_json(folder / "config.json"), tuple(files), left_out)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder, or one line about why it cannot be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RetFoundError(f"{path} is not valid JSON: {error}") from error


def may_be_published(path: str) -> bool:
    """Whether a path of a repository is one that publishing may have put there."""
    return any(_matches(path, pattern) for pattern in (*PUBLISHED, CODE))


def _matches(path: str, pattern: str) -> bool:
    # The star of a pattern must not reach into subfolders, such as those of Trainer's checkpoints.
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise RetFoundError(f"{path} is damaged or cut short: {error}; write it anew") from error


def _reason(path: str) -> str:
    for pattern, reason in PRIVATE.items():
        if fnmatch(path.split("/")[-1], pattern) or fnmatch(path, pattern):
            return reason
    return "no part of the model"
