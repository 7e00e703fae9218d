"""Arithmetic on large images a strip at a time, so that doubles never exist for more than a strip."""

from collections.abc import Callable

import numpy as np

STRIP = 2**20  # values


def by_strips(values: np.ndarray, to_eight_bits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (rows, columns): what a function that treats every value by itself makes of an array of that shape."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP // max(values.shape[1], 1))
    for start in range(0, len(values), rows):
        result[start : start + rows] = to_eight_bits(values[start : start + rows])
    return result
