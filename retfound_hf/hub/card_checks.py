"""A card that tells the truth: complete, valid for the Hub, without placeholders, its numbers those of results."""

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from .contents import Contents, read_json
from .small_groups import check_no_small_groups

PLACEHOLDERS = ("{{", "}}", "{%", "TODO", "TBD", "FIXME", "[More Information Needed]", "[optional]", "lorem ipsum")
SECTIONS = ("Use", "Intended use", "Training data", "Preprocessing", "Limits", "Citation")
RESULT_SECTIONS = ("Evaluation", "Calibration")
METADATA = ("license", "library_name", "pipeline_tag", "tags")
RESULT_FILES = (
    "metrics.json", "validation/metrics.json", "config.json", "run.json", "intervals.csv", "subgroups.csv",
    "calibration.csv", "operating_points.csv",
)  # fmt: skip
# A number on its own, not a part of a name such as f1_macro, auroc/2 or v1.0.2.
NUMBER = re.compile(r"(?<![\w./`-])-?\d+(?:,\d{3})*(?:\.\d+)?(?![\w`]|\.\d) ?%?")
CONFIDENCE = {"95%", "95 %", "0.95"}  # of the intervals


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card, as the Hub's own library reads them.

    Raises:
        RetFoundError: metadata that are no valid YAML or no valid results.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise RetFoundError(f"the metadata of {path} are not valid for the Hub: {_first(error)}") from error
    return card.data.to_dict(), card.text


def check_card(contents: Contents, metadata: dict[str, Any], text: str) -> None:
    """Raise RetFoundError for the first thing that keeps a card from being published, naming it."""
    path = contents.folder / "README.md"
    for word in PLACEHOLDERS:
        if word.lower() in text.lower() or word in str(metadata):
            raise RetFoundError(f"{path} has a placeholder left: {_line_with(word, text, metadata)!r}; fill it in")
    for name in METADATA:
        if not metadata.get(name):
            raise RetFoundError(f"the metadata of {path} have no {name}; add it")
    sections = sections_of(text)
    for name in SECTIONS + (RESULT_SECTIONS if contents.is_classifier else ()):
        if not sections.get(name, "").strip():
            raise RetFoundError(f"{path} has no section `## {name}`, or an empty one; write it")
    check_no_small_groups(contents.folder, text)
    known = set(_results(contents.folder))
    labels = [str(label) for label in (contents.config.get("id2label") or {}).values()] + _groups(contents.folder)
    for name in RESULT_SECTIONS:
        for found in numbers_of(sections.get(name, ""), labels):
            if not is_known(found, known):
                raise RetFoundError(
                    f"the section `## {name}` of {path} says {found}, which is in none of the results "
                    f"({', '.join(RESULT_FILES)}); correct it, or evaluate again"
                )
    for value in _index_values(metadata):
        if not any(value == number for number in known):
            raise RetFoundError(f"the model-index of {path} says {value}, which is in none of the results")


def sections_of(text: str) -> dict[str, str]:
    """Titles of the second level and the text below each."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def numbers_of(text: str, labels: list[str]) -> Iterator[str]:
    """The numbers that a text states; those in code and in names of classes and groups are none.

    A name that is a number itself, such as a grade, is one only where it opens a row of a table.
    """
    text = re.sub(r"```.*?```|`[^`]*`|\(https?:[^)]*\)", " ", text, flags=re.S)
    for label in sorted(filter(None, labels), key=len, reverse=True):
        name = re.escape(label)
        whole = rf"^\| {name} (?=\|)" if NUMBER.fullmatch(label) else rf"(?<![\w.]){name}(?!\w|\.\d)"
        text = re.sub(whole, " ", text, flags=re.M)
    for found in NUMBER.finditer(text):
        if found[0].strip() not in CONFIDENCE:
            yield found[0].strip()


def is_known(stated: str, known: set[float]) -> bool:
    """Whether a stated number is one of the results: a whole one exactly, others as they are rounded there."""
    plain = stated.replace(",", "").rstrip("% ")
    scale = 100 if stated.endswith("%") else 1
    decimals = len(plain.split(".")[1]) if "." in plain else 0
    if not decimals and scale == 1:
        return float(plain) in known
    return any(f"{scale * value:.{decimals}f}" == plain for value in known)


def _results(folder: Path) -> Iterator[float]:
    for name in RESULT_FILES:
        path = folder / name
        if path.is_file() and path.suffix == ".json":
            yield from _numbers_in(read_json(path))
        elif path.is_file():
            with path.open(encoding="utf-8", newline="") as file:
                for row in csv.reader(file):
                    yield from (float(cell) for cell in row if _is_number(cell))


def _groups(folder: Path) -> list[str]:
    """Names of subgroups, which may hold numbers such as those of an age group."""
    path = folder / "subgroups.csv"
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [cell for row in csv.reader(file) for cell in row if cell and not _is_number(cell)]


def _is_number(cell: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?(e-?\d+)?", cell) is not None


def _numbers_in(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield float(value)


def _index_values(metadata: dict[str, Any]) -> Iterator[float]:
    for model in metadata.get("model-index") or []:
        for result in model["results"]:
            yield from (float(metric["value"]) for metric in result["metrics"])


def _line_with(word: str, text: str, metadata: dict[str, Any]) -> str:
    for line in [*text.splitlines(), *(f"{name}: {value}" for name, value in metadata.items())]:
        if word.lower() in line.lower():
            return line.strip()
    return word


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
