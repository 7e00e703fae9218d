"""Reading an official `.pth` without running what a pickle may hold."""

import argparse
import hashlib
import pickle
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...runs.errors import RetFoundError

# Where the official codes keep the weights: MAE and fine-tuning under `model`, DINO and DINOv2 under `teacher`,
# MoCo v3 and most copies of SimCLR under `state_dict`.
STATE_KEYS = ("model", "teacher", "state_dict")
# And the library VISSL, which published SimCLR's for PyTorch, four dicts down.
VISSL_KEYS = ("classy_state_dict", "base_model", "model", "trunk")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official file holds.

    Args:
        path: the file.
        state: weights by their official names.
        origin: the key that held them, such as `model` or `teacher`, or None for a bare state dict.
        args: the training arguments saved beside them, empty when there were none.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str | None
    args: dict[str, Any]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file: seconds of reading, which no refusal should cost."""
        return sha256_of(self.path)


def read_checkpoint(path: str | Path) -> OfficialCheckpoint:
    """Read a `.pth` file of RETFound or of another method.

    Only tensors, plain containers and `argparse.Namespace` are unpickled; anything else is refused before it runs.

    Raises:
        RetFoundError: no such file, not a checkpoint, a pickle with other objects, or no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise RetFoundError(f"checkpoint {path} does not exist; give a .pth file or a Hub id such as ORG/NAME")
    content = _load(path)
    if not isinstance(content, dict):
        raise RetFoundError(f"checkpoint {path} holds a {type(content).__name__}; accepted: a dict of tensors")
    origin = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[origin] if origin else content
    if trunk := _down(content, VISSL_KEYS):
        origin, state = VISSL_KEYS[-1], trunk
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = f"{', '.join(others[:5])} instead" if others else "nothing"
        raise RetFoundError(
            f"checkpoint {path} has no weights under {' or '.join(map(repr, STATE_KEYS))} and is no state dict: "
            f"found {found}"
        )
    args = content.get("args") if origin else None
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return OfficialCheckpoint(path, state, origin, args if isinstance(args, dict) else {})


def _down(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The dict at the end of nested keys, None where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else None


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            # Memory-mapped, so that the optimiser state of a 4 GB file is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except pickle.UnpicklingError as error:
            # The name alone: torch goes on to advise how to let it through.
            asked = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {asked[1]}" if asked else "it is no PyTorch file"
            raise RetFoundError(
                f"checkpoint {path} is refused, nothing in it was run: {reason}, and only tensors, plain containers "
                "and argparse.Namespace are read"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RetFoundError(
                f"checkpoint {path} cannot be read, it may be cut short or no PyTorch file: {first}"
            ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
