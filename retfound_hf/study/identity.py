"""What a result depends on, as digests of contents: the same on every machine, whatever folder it lies in."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..data.labelled_set import LabelledSet

MODEL_FILES = ("config.json", "adapter_config.json", "preprocessor_config.json")
WEIGHTS = ("*.safetensors", "*model*.bin")  # of other .bin files, such as the Trainer's, no result depends
CHUNK = 2**24


def model_identity(option: str, start: str) -> str:
    """Digest of a model folder's files; a Hub id or preset is its name."""
    folder = Path(start)
    if option == "config_name" or not folder.is_dir():
        return f"{option}={start}"
    digest = hashlib.blake2b(digest_size=16)
    weights = (path for pattern in WEIGHTS for path in folder.glob(pattern))
    for path in sorted([*weights, *(folder / name for name in MODEL_FILES)]):
        if path.is_file():
            digest.update(path.name.encode())
            _add_file(digest, path)
    return digest.hexdigest()


def data_identity(labelled: LabelledSet) -> str:
    """Digest of a labelled set: names and sizes of its images, their patients, splits and labels."""
    digest = hashlib.blake2b(repr((labelled.problem_type, labelled.class_names)).encode(), digest_size=16)
    columns = ["id", "image", "patient_id", "split", *labelled.label_columns]
    for name, image, *facts in labelled.table[columns].itertuples(index=False):
        # Contents would mean reading tens of gigabytes before anything starts.
        size = len(image) if isinstance(image, bytes) else os.path.getsize(image) if os.path.isfile(image) else None
        digest.update(repr((name, size, [str(fact) for fact in facts])).encode())
    return digest.hexdigest()


def digest_of(facts: Mapping[str, Any]) -> str:
    """Digest of plain values, whatever their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
