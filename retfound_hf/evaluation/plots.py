"""The figures of an evaluation, fit for a paper: curves, confusion, calibration, predicted against true."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from statsmodels.stats.proportion import proportion_confint

from ..runs.errors import RetFoundError
from .calibration import confidence_and_correctness, reliability_curve
from .confusion_plot import plot_confusion
from .curve_plots import plot_precision_recall, plot_roc
from .decision_plot import plot_decision_curves
from .estimate import CONFIDENCE
from .figure_style import COLOURS, COLUMN, GREY, figure, unit_square
from .inputs import ProblemType, check_classification, check_regression
from .metrics import THRESHOLD
from .positive_class import positive_class
from .regression_plot import plot_predicted_vs_true


def plot_classification(
    labels: Any, probabilities: Any, class_names: Sequence[str], problem_type: ProblemType, output_dir: str | Path
) -> list[Path]:
    """Write `roc.png`, `precision_recall.png`, `confusion_matrix.png`, `reliability.png` and `decision_curve.png`.

    At 300 dpi. Of two exclusive classes the ROC and the decision curve of the positive one are drawn
    (`positive_class`). A curve that the labels leave undefined is left out and named in the figure.

    Args:
        labels, probabilities, class_names, problem_type: as in `metrics.classification_metrics`.
        output_dir: folder for the files, made where it is missing; each file appears whole or not at all.

    Returns:
        The paths written.
    """
    labels, probabilities, truth = check_classification(labels, probabilities, class_names, problem_type)
    single = problem_type == "single_label_classification"
    output_dir = Path(output_dir)
    drawn = [positive_class(class_names)] if single and len(class_names) == 2 else list(range(len(class_names)))
    names = [class_names[index] for index in drawn]
    predicted = probabilities.argmax(axis=1) if single else (probabilities >= THRESHOLD).astype(np.int64)
    confidence, correct = confidence_and_correctness(truth, probabilities, single)
    return [
        plot_roc(truth[:, drawn], probabilities[:, drawn], names, output_dir / "roc.png"),
        plot_precision_recall(truth, probabilities, class_names, output_dir / "precision_recall.png"),
        plot_confusion(labels, predicted, class_names, output_dir / "confusion_matrix.png", single),
        plot_reliability(confidence, correct, output_dir / "reliability.png", single),
        plot_decision_curves(truth[:, drawn], probabilities[:, drawn], names, output_dir / "decision_curve.png"),
    ]


def plot_reliability(confidence: np.ndarray, correct: np.ndarray, path: Path, single: bool) -> Path:
    """Accuracy in bins of confidence with 95% Wilson intervals, the ECE, and how many there are in each bin.

    Args:
        confidence, correct: (N,), as `calibration.reliability_curve` takes them.
        path: the image file to write.
        single: confidence is that of the predicted class, otherwise each label's probability.
    """
    curve = reliability_curve(confidence, correct)
    filled = curve.count > 0
    x, y, count = curve.confidence[filled], curve.accuracy[filled], curve.count[filled]
    low, high = proportion_confint(y * count, count, 1 - CONFIDENCE, "wilson")
    with figure(path, COLUMN, 4.4) as drawn:
        top, bottom = drawn.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        unit_square(top, "", "Accuracy" if single else "Fraction of labels that hold")
        top.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), label="perfect calibration")
        bars = np.maximum([y - low, high - y], 0)
        top.errorbar(x, y, bars, fmt="o-", color=COLOURS[0], markersize=3, elinewidth=0.8, label="model (95% CI)")
        top.legend(loc="upper left")
        top.text(0.98, 0.04, f"ECE {curve.error:.3f}\nn = {len(confidence):,}", ha="right", va="bottom")
        bottom.bar(curve.edges[:-1], curve.count / curve.count.sum(), np.diff(curve.edges), align="edge",
                   color=COLOURS[0], edgecolor="white", linewidth=0.5)  # fmt: skip
        bottom.set(xlabel="Confidence" if single else "Predicted probability", ylabel="Fraction", box_aspect=0.22)
    return path


def plot_regression(labels: Any, predictions: Any, target_names: Sequence[str], output_dir: str | Path) -> list[Path]:
    """Write `predicted_vs_true.png`: per target the scatter with the identity and, beside it, a Bland-Altman plot.

    Args:
        labels, predictions, target_names: as in `regression.regression_metrics`.
        output_dir: folder for the file, made where it is missing.

    Returns:
        The path written, in a list.
    """
    labels, predictions = check_regression(labels, predictions)
    if len(target_names) != labels.shape[1]:
        raise RetFoundError(f"{len(target_names)} target names for {labels.shape[1]} targets; give one per target")
    return [plot_predicted_vs_true(labels, predictions, target_names, Path(output_dir) / "predicted_vs_true.png")]
