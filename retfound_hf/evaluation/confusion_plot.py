"""Confusion matrix: counts as numbers, fractions of each true class as colour."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix

from .figure_style import COLUMN, PAGE, figure, short

WIDE = 12  # classes from which on the matrix takes the width of the page
OUTCOMES = ("true\nnegative", "false\npositive", "false\nnegative", "true\npositive")


def plot_confusion(
    labels: np.ndarray, predicted: np.ndarray, class_names: Sequence[str], path: Path, single: bool
) -> Path:
    """Write the matrix.

    Args:
        labels, predicted: int (N,); for multi-label int (N, C) of 0 and 1, drawn as one row of the four outcomes per
            label, coloured by the fraction of those without and of those with the label.
        class_names: C names.
        path: the image file to write.
        single: one class per row.
    """
    if single:
        counts = confusion_matrix(labels, predicted, labels=np.arange(len(class_names)))
        shares = _fractions(counts)
        columns, xlabel, ylabel = [short(name, 22) for name in class_names], "Predicted", "True"
    else:
        # A lone label is padded because scikit-learn takes one column for a two-class task.
        tables = multilabel_confusion_matrix(*(np.c_[array, array] for array in (labels, predicted)))
        tables = tables[: len(class_names)]
        counts, shares = tables.reshape(-1, 4), np.concatenate([_fractions(table) for table in tables]).reshape(-1, 4)
        columns, xlabel, ylabel = list(OUTCOMES), "Outcome", "Label"
    rows = [short(name, 22) for name in class_names]
    wide = len(columns) >= WIDE
    width = PAGE if wide else COLUMN
    # As high as wide cells ask; long lists of labels get a row of fixed height each.
    height = width * 0.95 if single else max(2.4, 1.2 + 0.26 * len(rows))
    with figure(path, width, height) as drawn:
        drawn.set_layout_engine("compressed")  # made for axes of fixed aspect
        axes = drawn.add_subplot()
        axes.spines[:].set_visible(False)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal" if single else "auto")
        size = 5.5 if wide else 7
        upright = single and max(map(len, columns)) > 24 / len(columns)
        rotation = {"rotation": 90 if wide else 45, "ha": "center" if wide else "right"} if upright else {}
        if upright and not wide:
            rotation["rotation_mode"] = "anchor"
        axes.set_xticks(np.arange(len(columns)), columns, fontsize=size, **rotation)
        axes.set_yticks(np.arange(len(rows)), rows, fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        for row, column in np.argwhere((counts > 0) | (not wide)):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{counts[row, column]:,}"
            # Counts shrink with their cells: 39 classes leave 0.13 inch for each.
            fontsize = min(7.0, 170 / len(columns)) if wide else 8 if len(columns) <= 6 else 7
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
        bar = drawn.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
        bar.set_label("Fraction of the true class" if single else "Fraction of negatives or of positives", fontsize=7)
        bar.outline.set_visible(False)
    return path


def _fractions(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum, 0 for a class without examples."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
