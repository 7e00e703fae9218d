"""Predicted against true numbers, and their difference (Bland and Altman 1986)."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes

from .figure_style import COLOURS, GREY, PAGE, figure, short

Z = 1.96  # limits of agreement hold 95% of normal differences


def plot_predicted_vs_true(
    labels: np.ndarray, predictions: np.ndarray, target_names: Sequence[str], path: Path
) -> Path:
    """One row of two axes per target.

    Args:
        labels, predictions: float (N, T).
        target_names: T names.
        path: the image file to write.
    """
    targets = labels.shape[1]
    with figure(path, PAGE, 3.3 * targets) as drawn:
        rows = drawn.subplots(targets, 2, squeeze=False)
        for axes, true, predicted, name in zip(rows, labels.T, predictions.T, target_names, strict=True):
            _scatter(axes[0], true, predicted, short(name))
            _bland_altman(axes[1], true, predicted, short(name))
    return path


def _scatter(axes: Axes, true: np.ndarray, predicted: np.ndarray, name: str) -> None:
    values = np.concatenate([true, predicted])
    margin = 0.04 * (np.ptp(values) or 1)
    limits = (values.min() - margin, values.max() + margin)
    axes.plot(limits, limits, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), label="identity")
    axes.scatter(true, predicted, **_dots(len(true)))
    axes.set(xlim=limits, ylim=limits, box_aspect=1, xlabel=f"True {name}", ylabel=f"Predicted {name}")
    lines = [f"MAE {np.abs(predicted - true).mean():.3g}"]
    if np.ptp(true) > 0:
        lines.append(f"R² {1 - ((predicted - true) ** 2).mean() / true.var():.3f}")
    lines.append(f"n = {len(true):,}")
    axes.text(0.03, 0.97, "\n".join(lines), transform=axes.transAxes, va="top")
    axes.legend(loc="lower right")


def _bland_altman(axes: Axes, true: np.ndarray, predicted: np.ndarray, name: str) -> None:
    difference = predicted - true
    bias = difference.mean()
    axes.scatter((true + predicted) / 2, difference, **_dots(len(true)))
    axes.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
    levels = {"bias": bias}
    if len(true) > 1:
        spread = Z * difference.std(ddof=1)
        levels |= {"+1.96 SD": bias + spread, "−1.96 SD": bias - spread}
        reach = 1.15 * max(np.abs(difference).max(), abs(bias) + spread) or 1
        axes.set_ylim(-reach, reach)
    for label, level in levels.items():
        axes.axhline(level, color=COLOURS[1], linewidth=1.2 if label == "bias" else 0.8)
        # Beside the axes, where no dot can hide it.
        text = f"{label}\n{level:.3g}".replace("-", "−")
        axes.annotate(text, (1.02, level), xycoords=axes.get_yaxis_transform(), va="center", fontsize=7)
    axes.set(xlabel=f"Mean of true and predicted {name}", ylabel="Predicted − true", box_aspect=1)


def _dots(count: int) -> dict[str, object]:
    """Many dots are small and pale, so that where they are dense is seen."""
    return {"s": 12 if count < 300 else 5, "alpha": 0.6 if count < 300 else 0.3, "color": COLOURS[0], "linewidths": 0}
