"""The recipe of each public data set, from `recipes.yaml`."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

from ...runs.errors import RetFoundError, nearest

FILE = Path(__file__).with_name("recipes.yaml")


@dataclass(frozen=True)
class Recipe:
    """What is known of a public data set.

    Attributes:
        name: as in RETFound's benchmark.
        task: in words.
        modality: "cfp" or "oct".
        site: where its owners publish it.
        split: where RETFound's authors published their split of it.
        licence: "unknown" unless its text was seen.
        classes: meaning by name of the class folder, in the order of the grades.
    """

    name: str
    task: str
    modality: Literal["cfp", "oct"]
    site: str
    split: str
    licence: str
    classes: dict[str, str]


@cache
def recipes() -> dict[str, Recipe]:
    """All recipes by name."""
    import yaml

    read = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    return {name: Recipe(name, **fields) for name, fields in read.items()}


def recipe(name: str) -> Recipe:
    """The recipe of a data set, whatever the case of its name.

    Raises:
        RetFoundError: an unknown name.
    """
    known = {_plain(each): found for each, found in recipes().items()}
    if _plain(name) not in known:
        raise RetFoundError(
            f"data set {name!r} is unknown{nearest(_plain(name), known)}; accepted: {', '.join(recipes())}"
        )
    return known[_plain(name)]


def _plain(name: str) -> str:
    return name.casefold().replace("-", "").replace("_", "").replace(" ", "")
