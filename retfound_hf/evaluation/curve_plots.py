"""ROC and precision-recall curves, each class against the rest."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from sklearn.metrics import precision_recall_curve, roc_curve

from .figure_style import COLOURS, COLUMN, GREY, PALE, figure, listed, note, short, unit_square
from .ranking import defined_classes, one_vs_rest

GRID = np.linspace(0, 1, 501)  # where the classes' curves are averaged
CHANCE = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (3, 2))}
LEGEND_LINE = 0.16  # inches
Curves = dict[int, tuple[np.ndarray, np.ndarray, float]]


def plot_roc(truth: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], path: Path) -> Path:
    """ROC curves with their AUROC, and their mean over the classes at equal false positive rate.

    Args:
        truth: bool (N, C).
        probabilities: float (N, C).
        class_names: C names.
        path: the image file to write.
    """
    auroc, _ = one_vs_rest(truth, probabilities)
    curves: Curves = {}
    for index in np.flatnonzero(defined_classes(truth)):
        fpr, tpr, _ = roc_curve(truth[:, index], probabilities[:, index])
        curves[index] = (fpr, tpr, auroc[index])

    def draw(axes: Axes) -> None:
        unit_square(axes, "False positive rate (1 − specificity)", "True positive rate (sensitivity)")
        _draw_curves(axes, curves, class_names, "AUROC", _rising, "default")
        axes.plot([0, 1], [0, 1], label="chance (AUROC 0.500)", **CHANCE)

    return _plot(path, curves, class_names, draw)


def plot_precision_recall(
    truth: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], path: Path
) -> Path:
    """Precision-recall curves with their average precision, and chance, which is the prevalence.

    Arguments as `plot_roc`. Curves are steps, as the average precision sums them: interpolation would flatter.
    """
    _, auprc = one_vs_rest(truth, probabilities)
    curves: Curves = {}
    for index in np.flatnonzero(defined_classes(truth)):
        precision, recall, _ = precision_recall_curve(truth[:, index], probabilities[:, index])
        # Ascending in recall. Points at recall 0 add no area; the curve starts level with the first one beyond.
        recall, precision = recall[::-1], precision[::-1]
        recall, precision = recall[recall > 0], precision[recall > 0]
        curves[index] = (np.r_[0, recall], np.r_[precision[0], precision], auprc[index])
    prevalence = truth.mean(axis=0)

    def draw(axes: Axes) -> None:
        unit_square(axes, "Recall (sensitivity)", "Precision (positive predictive value)")
        _draw_curves(axes, curves, class_names, "AUPRC", _step, "steps-pre")
        if len(curves) > len(COLOURS):
            level = prevalence[list(curves)].mean()
            axes.axhline(level, label=f"chance (mean prevalence {level:.3f})", **CHANCE)
            return
        for colour, index in zip(COLOURS, curves, strict=False):
            axes.axhline(prevalence[index], **CHANCE | {"color": colour})
        axes.plot([], [], label="chance (prevalence)", **CHANCE)

    return _plot(path, curves, class_names, draw)


def _plot(path: Path, curves: Curves, class_names: Sequence[str], draw: Callable[[Axes], None]) -> Path:
    """The axes as wide as the column, and the legend below them, where it covers no curve."""
    entries = len(curves) + 3 if len(curves) <= len(COLOURS) else 4
    with figure(path, COLUMN, COLUMN + LEGEND_LINE * entries) as drawn:
        axes = drawn.add_subplot()
        draw(axes)
        if not curves:
            note(axes, "undefined:\nthe labels hold one class only")
        elif len(curves) < len(class_names):
            missing = [name for index, name in enumerate(class_names) if index not in curves]
            axes.plot([], [], " ", label=f"undefined (one outcome only): {listed(missing, 1)}")
        drawn.legend(loc="outside lower center")
    return path


def _draw_curves(
    axes: Axes, curves: Curves, class_names: Sequence[str], area: str, at: Callable[..., np.ndarray], steps: str
) -> None:
    """Every class in its colour; too many for that, all thin and pale; their mean on top."""
    many = len(curves) > len(COLOURS)
    for place, (index, (x, y, value)) in enumerate(curves.items()):
        style = {"color": PALE, "linewidth": 0.5} if many else {"color": COLOURS[place]}
        label = f"{len(curves)} classes" if many and not place else f"{short(class_names[index])} ({area} {value:.3f})"
        axes.plot(x, y, drawstyle=steps, label="_" if many and place else label, **style)
    if len(curves) > 2:
        mean = np.mean([at(GRID, x, y) for x, y, _ in curves.values()], axis=0)
        value = np.mean([value for _, _, value in curves.values()])
        axes.plot(GRID, mean, color="black", linewidth=1.8, label=f"mean of the classes ({area} {value:.3f})")


def _rising(grid: np.ndarray, fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """True positive rate between the points, and 0 at the start, where the curve may rise at once."""
    return np.where(grid > 0, np.interp(grid, fpr, tpr), 0)


def _step(grid: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Precision at the first point of the curve that reaches each recall."""
    return precision[np.searchsorted(recall, grid, side="left")]
