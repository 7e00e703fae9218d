"""Metrics as a plain text table for the terminal."""

from collections.abc import Sequence
from typing import Any

INTERVAL = "_ci95"
HEADINGS = {"auroc": "AUROC", "auprc": "AUPRC"}


def format_table(metrics: dict[str, Any], class_names: Sequence[str] | None = None) -> str:
    """The overall metrics, one per line, then one line per class.

    Args:
        metrics: flat as in `metrics.json`: `name`, `name/<class>`, and `name_ci95` with `[low, high]`.
        class_names: order of the classes; as they come in `metrics` when None.

    Returns:
        Lines without a final line break: 3 decimals, `undefined` for None, an interval in brackets after its value.
    """
    overall = [name for name in metrics if "/" not in name and not name.endswith(INTERVAL)]
    lines = _aligned([[name, _cell(metrics, name)] for name in overall])
    # A class name may hold a slash itself: only the first one separates.
    split = [name.split("/", 1) for name in metrics if "/" in name and not name.endswith(INTERVAL)]
    columns = list(dict.fromkeys(column for column, _ in split))
    found = list(dict.fromkeys(label for _, label in split))
    rows = [name for name in class_names if name in found] if class_names is not None else found
    if rows:
        heading = ["class", *(HEADINGS.get(column, column) for column in columns)]
        cells = [[row, *(_cell(metrics, f"{column}/{row}") for column in columns)] for row in rows]
        lines += ["", *_aligned([heading, *cells])]
    return "\n".join(lines)


def _cell(metrics: dict[str, Any], name: str) -> str:
    if name not in metrics:
        return ""
    interval = metrics.get(name + INTERVAL)
    return _number(metrics[name]) + (f" [{_number(interval[0])}, {_number(interval[1])}]" if interval else "")


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    """Names to the left, numbers to the right, so that the decimal points stand below each other."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for name, *cells in rows:
        numbers = [cell.rjust(width) for cell, width in zip(cells, widths[1:], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *numbers]))
    return lines
