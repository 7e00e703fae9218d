"""What of a finished folder is published: allowed files, licence, no small groups."""

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from ..errors import RetFoundError
from ..evaluation.subgroups import FEWEST
from ..files import atomic_file
from ..models.starting_points import OFFICIAL_LICENSE, OFFICIAL_ORGANISATION

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


OFFICIAL_PREFIX = f"{OFFICIAL_ORGANISATION}/RETFound"


def carried_licence(contents: Contents, card: dict[str, Any], base_model: str | None = None) -> tuple[str, str] | None:
    """The licence that the weights bring along and how that is known, or None where nothing tells.

    Args:
        card: metadata of the folder's card.
        base_model: what the model was made from, beside what the folder says of it.
    """
    if stated := _stated(contents.config):
        return stated, "config.json says so (weights_license)"
    for base in [*([base_model] if base_model else []), *_bases(contents, card)]:
        if base.startswith(OFFICIAL_PREFIX):
            return OFFICIAL_LICENSE, f"it is made from {base}"
        if Path(base).is_dir():
            found = _of_folder(Path(base))
            if found is not None:
                return found, f"it is made from {base}"
    return None


def check_licence(contents: Contents, card: dict[str, Any], base_model: str | None = None) -> str:
    """The card's licence; arguments as of `carried_licence`.

    Raises:
        RetFoundError: the card has none, or another than the weights carry on.
    """
    stated, carried = card.get("license"), carried_licence(contents, card, base_model)
    if carried is not None and stated != carried[0]:
        raise RetFoundError(
            f"the card of {contents.folder} says license: {stated or 'nothing'}, and the weights carry on "
            f"{carried[0]}, since {carried[1]}; put `license: {carried[0]}` back into README.md"
        )
    if not stated:
        raise RetFoundError(
            f"the card of {contents.folder} has no license; add one to the metadata of README.md, such as "
            "`license: apache-2.0`, if the weights are yours to license"
        )
    return stated


def _bases(contents: Contents, card: dict[str, Any]) -> list[str]:
    named = card.get("base_model") or []
    bases = [named] if isinstance(named, str) else list(named)
    record = contents.folder / "run.json"
    if record.is_file():
        arguments = read_json(record).get("arguments", {})
        bases += [arguments[name] for name in ("model_name_or_path", "checkpoint") if arguments.get(name)]
    if contents.kind == "adapter":
        bases.append(read_json(contents.folder / "adapter_config.json").get("base_model_name_or_path") or "")
    return [base for base in bases if base]


def _of_folder(folder: Path) -> str | None:
    config = folder / "config.json"
    return _stated(read_json(config)) if config.is_file() else None


def _stated(config: dict[str, Any]) -> str | None:
    """A head around a stock encoder keeps what the encoder came with one level down."""
    return config.get("weights_license") or (config.get("encoder_config") or {}).get("weights_license")


SUBGROUPS = "subgroups.csv"


def hide_small_groups(path: Path) -> None:
    """Rewrite a `subgroups.csv` without the groups of fewer than 10 patients and without gaps to them.

    Raises:
        RetFoundError: a table that does not tell the number of patients.
    """
    rows = read_groups(path)
    small = set(_small(rows))
    kept = [row for row in rows if not any(_is_of(row, column, group) for column, group in small)]
    if len(kept) == len(rows):
        return
    with atomic_file(path) as partial, partial.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(kept)


def check_no_small_groups(folder: Path, text: str) -> None:
    """Raise RetFoundError where a row of the card's tables is about a group of fewer than 10 patients."""
    for path in (folder / SUBGROUPS, folder / "validation" / SUBGROUPS):
        for column, group in _small(read_groups(path)) if path.is_file() else ():
            name = f"| {column.replace('|', '/')} | {group.replace('|', '/')} |"  # as tables of cards are written
            if any(line.lstrip().startswith(name) for line in text.splitlines()):
                raise RetFoundError(
                    f"{folder / 'README.md'} shows the group {group!r} of {column!r}, which has fewer than {FEWEST} "
                    "patients: its figures are theirs; remove such rows from the card"
                )


def read_groups(path: Path) -> list[dict[str, str]]:
    """The rows of a `subgroups.csv`.

    Raises:
        RetFoundError: it does not tell the column, the group and the number of patients in each row.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    try:
        for row in rows:
            float(row["n"]), row["column"] + row["group"]
    except (KeyError, TypeError, ValueError) as error:
        raise RetFoundError(
            f"{path} does not tell the column, the group and the number of patients (n) in each row; remove the file, "
            "or evaluate again"
        ) from error
    return rows


def _small(rows: list[dict[str, str]]) -> Iterator[tuple[str, str]]:
    yield from ((row["column"], row["group"]) for row in rows if not float(row["n"]) >= FEWEST)


def _is_of(row: dict[str, str], column: str, group: str) -> bool:
    """Whether a row is about a group, or about a gap (`A - B`) to it."""
    name = row["group"]
    of_group = name == group or name.startswith(f"{group} - ") or name.endswith(f" - {group}")
    return row["column"] == column and of_group
