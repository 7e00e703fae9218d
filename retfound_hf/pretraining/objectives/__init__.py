"""What is learned, one file per objective; each is found by its name."""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .base import Objective

# name -> class; the module bears the name.
OBJECTIVES: dict[str, str] = {
    "mae": "MaskedAutoencoding",
    "simclr": "SimCLR",
    "swav": "SwAV",
    "dino": "DINO",
    "moco_v3": "MoCoV3",
}


def find_objective(name: str) -> "type[Objective]":
    """The class of an objective; its module is imported now and not before."""
    return getattr(importlib.import_module(f".{name}", __name__), OBJECTIVES[name])
