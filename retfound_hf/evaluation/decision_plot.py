"""Decision curves: net benefit against the threshold probability, each class against the rest."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .curve_plots import CHANCE, LEGEND_LINE
from .decision_curve import decision_curve
from .figure_style import COLOURS, COLUMN, PALE, figure, note, short
from .ranking import defined_classes


def plot_decision_curves(truth: np.ndarray, probabilities: np.ndarray, class_names: Sequence[str], path: Path) -> Path:
    """Net benefit of acting on each class's probability, and of treating everyone (thin), in the class's colour.

    Of more classes than colours all are drawn pale, under their mean.

    Args:
        truth: bool (N, C).
        probabilities: float (N, C).
        class_names: C names.
        path: the image file to write.
    """
    drawn = np.flatnonzero(defined_classes(truth))
    curves = [decision_curve(truth[:, index], probabilities[:, index]) for index in drawn]
    many = len(curves) > len(COLOURS)
    lines = 3 if many else len(curves) + 2
    with figure(path, COLUMN, COLUMN * 0.8 + LEGEND_LINE * lines) as figure_:
        axes = figure_.add_subplot()
        axes.set(xlim=(0, 1), xlabel="Threshold probability", ylabel="Net benefit")
        if not curves:
            note(axes, "undefined:\nthe labels hold one class only")
            return path
        for place, (index, curve) in enumerate(zip(drawn, curves, strict=True)):
            style = {"color": PALE, "linewidth": 0.5} if many else {"color": COLOURS[place]}
            label = f"{len(curves)} classes" if many and not place else short(class_names[index])
            axes.plot(curve.thresholds, curve.model, label="_" if many and place else label, **style)
            if not many:
                axes.plot(curve.thresholds, curve.treat_all, color=COLOURS[place], linewidth=0.6, linestyle="--")
        if many:
            mean = np.mean([curve.model for curve in curves], axis=0)
            axes.plot(curves[0].thresholds, mean, color="black", linewidth=1.8, label="mean of the classes")
        else:
            axes.plot([], [], color="black", linewidth=0.6, linestyle="--", label="treat all")
        axes.axhline(0, label="treat none", **CHANCE)
        top = max(max(curve.model.max(), curve.treat_all.max()) for curve in curves)
        # Below no benefit at all a curve need not be followed.
        axes.set_ylim(-0.25 * top, 1.08 * top)
        figure_.legend(loc="outside lower center")
    return path
