"""Which images a model was trained on: how its set was split, kept beside it, and asked before it is tested."""

import json
import os
from pathlib import Path
from typing import Any

import pandas as pd

from ..data.checks import listed
from ..data.labelled_set import LabelledSet
from ..runs.errors import RetFoundError
from ..runs.files import whole_file

SPLITS_FILE = "splits.csv"


def write_splits(folder: Path, labelled: LabelledSet) -> None:
    """Write `splits.csv`: `id`, `patient_id` and `split` of every image of the set."""
    with whole_file(folder / SPLITS_FILE) as partial:
        labelled.table[["id", "patient_id", "split"]].to_csv(partial, index=False)


def split_of_training(model_folder: str, seed: int) -> dict[str, Any]:
    """How a set without splits is split: as the run that made the model split it.

    Another seed or other shares would put training images into the test split.
    """
    trained = _arguments(model_folder)
    if "split_fractions" not in trained:
        return {"seed": seed}
    return {"seed": trained["split_seed"], "split_fractions": tuple(trained["split_fractions"])}


def refuse_trained_images(model_folder: str, labelled: LabelledSet, data: str) -> None:
    """Raise if images of the test split were trained or validated on: a row more or less deals all patients anew.

    Only the set of the training is looked at, since file names of other sets may be the same by chance.
    """
    path, trained = Path(model_folder) / SPLITS_FILE, _arguments(model_folder)
    if not path.is_file() or os.path.realpath(trained.get("data") or "") != os.path.realpath(data):
        return
    known = pd.read_csv(path, dtype=str, keep_default_na=False)
    seen = set(known.loc[known["split"] != "test", "id"])
    table = labelled.table
    again = [name for name in table.loc[table["split"] == "test", "id"] if name in seen]
    if again:
        raise RetFoundError(
            f"{len(again)} test image(s) of {data} were trained or validated on ({listed(again)}): the set has "
            f"changed since, and with it its splits; give it a column split, which {path} has for the others"
        )


def _arguments(model_folder: str) -> dict[str, Any]:
    record = Path(model_folder) / "run.json"
    return json.loads(record.read_text(encoding="utf-8"))["arguments"] if record.is_file() else {}
