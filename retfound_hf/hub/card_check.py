"""Check of a model card before publishing: complete, valid for the Hub, its generated figures those of the results.

Free text is free: only what the commands generate is compared with the files.
"""

import re
from pathlib import Path
from typing import Any, NoReturn

from ..errors import BadModelError, one_line
from ..models.cards import evaluation_tables, read_metrics, title
from .contents import SUBGROUPS, Contents, read_groups, small_groups

PLACEHOLDERS = ("{{", "}}", "{%", "TODO", "TBD", "FIXME", "[More Information Needed]", "[optional]", "lorem ipsum")
SECTIONS = ("Use", "Intended use", "Training data", "Preprocessing", "Limits", "Citation")
RESULT_SECTIONS = ("Evaluation", "Calibration")
METADATA = ("license", "library_name", "pipeline_tag", "tags")
DECIMALS = 3  # of a rounded value in the model-index, at least: one or two would fit many values


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card, as the Hub's own library reads them.

    Raises:
        BadModelError: metadata that are not valid YAML, or not valid results.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise BadModelError(
            f"the metadata of {path} are not valid for the Hub: {one_line(error)}", model=folder
        ) from error
    return card.data.to_dict(), card.text


def sections_of(text: str) -> dict[str, str]:
    """Titles of the second level and the text below each."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_card(contents: Contents, metadata: dict[str, Any], text: str) -> None:
    """Raise BadModelError for the first fault that keeps a card from being published.

    Args:
        contents: the folder, with its result files.
        metadata, text: of the card, as `read_card` gives them.
    """

    def refuse(reason: str) -> NoReturn:
        raise BadModelError(f"{contents.folder / 'README.md'} {reason}", model=contents.folder)

    for line in [*text.splitlines(), *(f"{name}: {value}" for name, value in metadata.items())]:
        if any(word.lower() in line.lower() for word in PLACEHOLDERS):
            refuse(f"has a placeholder left: {line.strip()!r}; fill it in")
    if missing := [name for name in METADATA if not metadata.get(name)]:
        refuse(f"has no {missing[0]} in its metadata; add it")
    sections = sections_of(text)
    for name in SECTIONS + (RESULT_SECTIONS if contents.is_classifier else ()):
        if not sections.get(name, "").strip():
            refuse(f"has no section `## {name}`, or an empty one; write it")
    for name in (SUBGROUPS, f"validation/{SUBGROUPS}"):
        path = contents.folder / name
        for column, group in small_groups(read_groups(path)) if path.is_file() else ():
            start = f"| {column.replace('|', '/')} | {group.replace('|', '/')} |"  # as tables of cards are written
            if any(line.lstrip().startswith(start) for line in text.splitlines()):
                refuse(f"shows the group {group!r} of {column!r}, which has fewer than 10 patients; remove its rows")
    if fault := _wrong_row(contents.folder, sections.get("Evaluation", "")):
        refuse(f"differs from the results in its section `## Evaluation`: {fault}; correct it, or evaluate again")
    if fault := _wrong_result(contents.folder, metadata):
        refuse(f"has a model-index that differs from the results: {fault}; correct it, or leave it out")


def _wrong_row(folder: Path, section: str) -> str | None:
    """A row of the generated tables that the section lacks, or has with other figures."""
    lines = [line.strip() for line in section.splitlines()]
    for table in evaluation_tables(folder):
        for row in table.splitlines():
            first = row.split(" | ")[0] + " | "
            changed = [line for line in lines if line.startswith(first) and line != row]
            if row not in lines:
                return f"{changed[0]!r} should be {row!r}" if changed else f"the row {row!r} is missing"
    return None


def _wrong_result(folder: Path, metadata: dict[str, Any]) -> str | None:
    """A value of the model-index that is not that of the metric of its own name, as it is rounded there."""
    for model in metadata.get("model-index") or []:
        for result in model["results"]:
            split = str((result.get("dataset") or {}).get("split") or "test")
            metrics = read_metrics(folder / "validation" if split in ("val", "validation") else folder)
            for metric in result["metrics"]:
                kind, value, own = str(metric["type"]), metric["value"], metrics.get(str(metric["type"]))
                if not isinstance(own, (int, float)):
                    return f"{kind} is not in metrics.json of the {split} split"
                decimals = len(str(value).partition(".")[2])
                if own != value and (decimals < DECIMALS or str(value) != f"{own:.{decimals}f}"):
                    return f"{kind} is {value}, and {own} in metrics.json"
                name = str(metric.get("name") or kind).casefold()
                if name not in (kind, title(kind).casefold()) and any(
                    name in (other, title(other).casefold()) for other in metrics
                ):
                    return f"{kind} is named {metric['name']}"
    return None
