"""A metadata column as groups: its values, or bands of its numbers."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from ..runs.errors import RetFoundError

UNKNOWN = "unknown"
MOST_VALUES = 6  # a column of more different numbers is cut into bands
BANDS = 4


def column_groups(values: Any, edges: Sequence[float] | None = None) -> np.ndarray:
    """The group of each row, object (N,): the value as text, a band such as `50–<65`, or `unknown` where missing.

    Args:
        values: a column of a table.
        edges: where bands of numbers start; by default columns of more than 6 different numbers are cut at their
            quartiles, others are left as they are.

    Raises:
        RetFoundError: edges for a column that does not hold numbers, or edges that do not rise.
    """
    import pandas as pd

    column = pd.Series(np.asarray(values, dtype=object))
    numbers = pd.to_numeric(column, errors="coerce")
    numeric = bool((numbers.notna() == column.notna()).all()) and bool(numbers.notna().any())
    if edges is not None:
        if not numeric:
            wrong = column[numbers.isna() & column.notna()]
            raise RetFoundError(f"bands need numbers, and the column holds {list(wrong[:3])}; leave out the edges")
        if not len(edges) or not (np.diff(edges) > 0).all():
            raise RetFoundError(f"edges of bands {list(edges)} must rise, as 50,65")
    elif numeric and numbers.nunique() > MOST_VALUES:
        quantiles = np.quantile(numbers.dropna(), np.arange(1, BANDS) / BANDS)
        edges = np.unique([float(f"{edge:.3g}") for edge in quantiles])
    if edges is None:
        return np.array([UNKNOWN if pd.isna(value) else _plain(value) for value in column], dtype=object)
    marks = [f"{edge:g}" for edge in edges]
    names = [f"<{marks[0]}", *(f"{a}–<{b}" for a, b in pairwise(marks)), f"≥{marks[-1]}"]
    band = np.searchsorted(edges, numbers.to_numpy(), side="right")
    return np.where(numbers.isna(), UNKNOWN, np.array(names, dtype=object)[band])


def in_order(groups: np.ndarray) -> list[str]:
    """The groups that occur: bands and numbers by value, other names by alphabet, `unknown` last."""

    def key(name: str) -> tuple[int, float, str]:
        start = name.lstrip("<≥").split("–")[0]
        try:
            return name == UNKNOWN, float(start) - name.startswith("<") * 1e-9, name
        except ValueError:
            return name == UNKNOWN, 0.0, name

    return sorted(set(groups), key=key)


def _plain(value: Any) -> str:
    whole = isinstance(value, (float, np.floating)) and float(value).is_integer()
    return str(int(value)) if whole else str(value).strip()
