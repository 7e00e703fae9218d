"""Figures of an evaluation, fit for a paper: curves, confusion, calibration, decision, regression."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.metrics import confusion_matrix, multilabel_confusion_matrix, precision_recall_curve, roc_curve
from statsmodels.stats.proportion import proportion_confint

from ..files import atomic_file
from ..vocabulary import REGRESSION
from .bootstrap import CONFIDENCE
from .metrics import class_areas
from .predictions import Predictions
from .thresholds import confidence_and_correctness, decision_curve, reliability_curve

COLUMN, PAGE = 3.5, 7.2  # inches: one and two columns of Nature's pages
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, PALE = "#6e6e6e", "#b8c4cf"
# fmt: off
STYLE = {
    "font.family": "sans-serif", "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"], "font.size": 8,
    "axes.labelsize": 8, "axes.titlesize": 8, "legend.fontsize": 7, "xtick.labelsize": 7, "ytick.labelsize": 7,
    "axes.linewidth": 0.6, "axes.spines.top": False, "axes.spines.right": False,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "xtick.major.size": 2.5, "ytick.major.size": 2.5,
    "lines.linewidth": 1.2, "legend.frameon": False, "legend.handlelength": 1.6, "legend.borderaxespad": 0.2,
    "figure.constrained_layout.use": True, "savefig.dpi": 300, "svg.hashsalt": "retfound",
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
}
# fmt: on


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the common style, `width` x `height` inches, written to `path` when the block ends well.

    Neither pyplot nor the process's backend and settings are touched.
    """
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)
        yield drawn
        with atomic_file(path) as partial:
            # The same figure is the same file.
            drawn.savefig(partial, metadata={"Date": None} if path.suffix == ".svg" else None)


def short(name: str, length: int = 30) -> str:
    """A name that fits its place: the middle of a long one gives way to an ellipsis."""
    if len(name) <= length:
        return name
    head = (length - 1) * 2 // 3
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"


def unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Both axes from 0 to 1, one as long as the other, with room for lines on the border."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=xlabel, ylabel=ylabel, box_aspect=1)
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)


def note(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why nothing is drawn there."""
    box = {"facecolor": "white", "edgecolor": "none"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, bbox=box)


CHANCE = {"color": GREY, "linewidth": 0.8, "linestyle": (0, (3, 2))}
LEGEND_LINE = 0.16  # inches
GRID = np.linspace(0, 1, 501)  # where the classes' curves are averaged
ONE_SIDED = "undefined:\nthe labels hold one class only"
Lines = dict[int, tuple[np.ndarray, np.ndarray]]  # by class, x and y


def write_plots(folder: str | Path, predictions: Predictions) -> list[Path]:
    """Write the figures of a set, at 300 dpi: for classes `roc.png`, `precision_recall.png`, `confusion_matrix.png`,
    `reliability.png` and `decision_curve.png`, for numbers `predicted_vs_true.png`.

    Of two exclusive classes the curves are those of the positive one (`positive_class`). A curve that the labels leave
    undefined is left out and named in the figure.

    Args:
        folder: made where it is missing; each file appears whole or not at all.
        predictions: with labels.

    Returns:
        The paths written.
    """
    figures: dict[str, Callable[[Predictions, Path], None]] = {
        "roc": plot_roc, "precision_recall": plot_precision_recall, "confusion_matrix": plot_confusion,
        "reliability": plot_reliability, "decision_curve": plot_decision_curves,
    }  # fmt: skip
    if predictions.problem_type == REGRESSION:
        figures = {"predicted_vs_true": plot_predicted_vs_true}
    paths = {Path(folder, f"{name}.png"): plot for name, plot in figures.items()}
    for path, plot in paths.items():
        plot(predictions, path)
    return list(paths)


def shown_classes(predictions: Predictions) -> list[int]:
    """Of two exclusive classes the positive one, else all."""
    return [index for index, name in enumerate(predictions.class_names) if predictions.finding in (None, name)]


def plot_roc(predictions: Predictions, path: Path) -> None:
    """ROC curves with their AUROC, and their mean over the classes at equal false positive rate."""
    truth, scores, shown = predictions.truth, predictions.scores, shown_classes(predictions)
    areas, lines = class_areas(truth, scores), {}
    for index in predictions.rows.two_sided:
        if index in shown:
            lines[index] = roc_curve(truth[:, index], scores[:, index])[:2]
    with _curves(predictions, path, lines, len(shown)) as axes:
        unit_square(axes, "False positive rate (1 − specificity)", "True positive rate (sensitivity)")
        _draw_areas(axes, predictions, lines, ("AUROC", areas), _rising, "default")
        axes.plot([0, 1], [0, 1], label="chance (AUROC 0.500)", **CHANCE)


def plot_precision_recall(predictions: Predictions, path: Path) -> None:
    """Precision-recall curves with their average precision, and chance, which is the prevalence.

    Curves are steps, as the average precision sums them: interpolation would flatter.
    """
    truth, scores, shown = predictions.truth, predictions.scores, shown_classes(predictions)
    areas, lines = class_areas(truth, scores, precision=True), {}
    for index in (index for index in predictions.rows.two_sided if index in shown):
        precision, recall, _ = precision_recall_curve(truth[:, index], scores[:, index])
        # Ascending in recall. Points at recall 0 add no area; the curve starts level with the first one beyond.
        recall, precision = recall[::-1], precision[::-1]
        recall, precision = recall[recall > 0], precision[recall > 0]
        lines[index] = np.r_[0, recall], np.r_[precision[0], precision]
    prevalence = truth.mean(axis=0)
    with _curves(predictions, path, lines, len(shown)) as axes:
        unit_square(axes, "Recall (sensitivity)", "Precision (positive predictive value)")
        _draw_areas(axes, predictions, lines, ("AUPRC", areas), _step, "steps-pre")
        if len(lines) > len(COLOURS):
            level = prevalence[list(lines)].mean()
            axes.axhline(level, label=f"chance (mean prevalence {level:.3f})", **CHANCE)
        else:
            for colour, index in zip(COLOURS, lines, strict=False):
                axes.axhline(prevalence[index], **CHANCE | {"color": colour})
            axes.plot([], [], label="chance (prevalence)", **CHANCE)


@contextmanager
def _curves(predictions: Predictions, path: Path, lines: Lines, asked: int) -> Iterator[Axes]:
    """Axes as wide as the column, and the legend below them, where it covers no curve."""
    entries = len(lines) + 3 if len(lines) <= len(COLOURS) else 4
    with figure(path, COLUMN, COLUMN + LEGEND_LINE * entries) as drawn:
        axes = drawn.add_subplot()
        yield axes
        if not lines:
            note(axes, ONE_SIDED)
        elif len(lines) < asked:
            missing = [name for index, name in enumerate(predictions.class_names) if index not in lines]
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            axes.plot([], [], " ", label=f"undefined (one outcome only): {short(missing[0], 20)}{more}")
        drawn.legend(loc="outside lower center")


def _draw_lines(axes: Axes, lines: Lines, labels: dict[int, str], steps: str = "default") -> None:
    """Every class in its colour; too many for that, all thin and pale."""
    many = len(lines) > len(COLOURS)
    for place, (index, (x, y)) in enumerate(lines.items()):
        style = {"color": PALE, "linewidth": 0.5} if many else {"color": COLOURS[place]}
        label = ("_" if place else f"{len(lines)} classes") if many else labels[index]
        axes.plot(x, y, drawstyle=steps, label=label, **style)


def _counted(predictions: Predictions, index: int) -> str:
    """A class with the number of its rows among all, such as `amd (96 of 480)`."""
    return (
        f"{short(predictions.class_names[index], 24)} ({predictions.truth[:, index].sum():,} of {len(predictions):,})"
    )


def _draw_areas(
    axes: Axes, predictions: Predictions, lines: Lines, areas: tuple[str, np.ndarray],
    at: Callable[..., np.ndarray], steps: str,
) -> None:  # fmt: skip
    """Curves with their areas, and above two their mean on top."""
    title, values = areas
    labels = {index: f"{_counted(predictions, index)}: {title} {values[index]:.3f}" for index in lines}
    _draw_lines(axes, lines, labels, steps)
    if len(lines) > 2:
        mean = np.mean([at(GRID, x, y) for x, y in lines.values()], axis=0)
        label = f"mean of the classes ({title} {np.mean(values[list(lines)]):.3f})"
        axes.plot(GRID, mean, color="black", linewidth=1.8, label=label)


def _rising(grid: np.ndarray, fpr: np.ndarray, tpr: np.ndarray) -> np.ndarray:
    """True positive rate between the points, and 0 at the start, where the curve may rise at once."""
    return np.where(grid > 0, np.interp(grid, fpr, tpr), 0)


def _step(grid: np.ndarray, recall: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Precision at the first point of the curve that reaches each recall."""
    return precision[np.searchsorted(recall, grid, side="left")]


WIDE = 12  # classes from which on the matrix takes the width of the page
OUTCOMES = ("true\nnegative", "false\npositive", "false\nnegative", "true\npositive")


def plot_confusion(predictions: Predictions, path: Path) -> None:
    """Confusion matrix; for multi-label one row of the four outcomes per label.

    Cells are coloured by their fraction of the true class, or of those without and of those with the label.
    """
    rows, names = predictions.rows, [short(name, 22) for name in predictions.class_names]
    if rows.single:
        counts = confusion_matrix(rows.targets, rows.predicted, labels=np.arange(len(names)))
        shares = _fractions(counts)
        columns, xlabel, ylabel = names, "Predicted", "True"
    else:
        # A lone label is padded because scikit-learn takes one column for a two-class task.
        pair = (rows.targets, rows.predicted.astype(np.int64))
        tables = multilabel_confusion_matrix(*(np.c_[array, array] for array in pair))[: len(names)]
        counts, shares = tables.reshape(-1, 4), np.concatenate([_fractions(table) for table in tables]).reshape(-1, 4)
        columns, xlabel, ylabel = list(OUTCOMES), "Outcome", "Label"
    wide = len(columns) >= WIDE
    width = PAGE if wide else COLUMN
    # As high as wide cells ask; long lists of labels get a row of fixed height each.
    height = width * 0.95 if rows.single else max(2.4, 1.2 + 0.26 * len(names))
    with figure(path, width, height) as drawn:
        drawn.set_layout_engine("compressed")  # made for axes of fixed aspect
        axes = drawn.add_subplot()
        axes.spines[:].set_visible(False)
        image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="equal" if rows.single else "auto")
        size = 5.5 if wide else 7
        rotation = {}
        if rows.single and max(map(len, columns)) > 24 / len(columns):
            rotation = {"rotation": 90, "ha": "center"} if wide else {"rotation": 45, "ha": "right"}
            rotation |= {} if wide else {"rotation_mode": "anchor"}
        axes.set_xticks(np.arange(len(columns)), columns, fontsize=size, **rotation)
        axes.set_yticks(np.arange(len(names)), names, fontsize=size)
        axes.tick_params(length=0)
        axes.set(xlabel=xlabel, ylabel=ylabel)
        # Counts shrink with their cells: 39 classes leave 0.13 inch for each.
        fontsize = min(7.0, 170 / len(columns)) if wide else 8 if len(columns) <= 6 else 7
        for row, column in np.argwhere((counts > 0) | (not wide)):
            colour = "white" if shares[row, column] > 0.55 else "black"
            text = f"{counts[row, column]:,}"
            axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=fontsize)
        bar = drawn.colorbar(image, cax=axes.inset_axes((1.03, 0, 0.035, 1)))
        label = "Fraction of the true class" if rows.single else "Fraction of negatives or of positives"
        bar.set_label(label, fontsize=7)
        bar.outline.set_visible(False)


def _fractions(counts: np.ndarray) -> np.ndarray:
    """Each row divided by its sum, 0 for a class without examples."""
    return counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)


def plot_decision_curves(predictions: Predictions, path: Path) -> None:
    """Net benefit of acting on each class's probability, and of treating everyone (thin), in the class's colour.

    Of more classes than colours all are drawn pale, under their mean.
    """
    shown = [index for index in predictions.rows.two_sided if index in shown_classes(predictions)]
    curves = {index: decision_curve(predictions.truth[:, index], predictions.scores[:, index]) for index in shown}
    many = len(curves) > len(COLOURS)
    with figure(path, COLUMN, COLUMN * 0.8 + LEGEND_LINE * (3 if many else len(curves) + 2)) as drawn:
        axes = drawn.add_subplot()
        axes.set(xlim=(0, 1), xlabel="Threshold probability", ylabel="Net benefit")
        if not curves:
            note(axes, ONE_SIDED)
            return
        lines = {index: (curve.thresholds, curve.model) for index, curve in curves.items()}
        for colour, curve in () if many else zip(COLOURS, curves.values(), strict=False):
            axes.plot(curve.thresholds, curve.treat_all, color=colour, linewidth=0.6, linestyle="--")
        _draw_lines(axes, lines, {index: _counted(predictions, index) for index in shown})
        if many:
            mean = np.mean([model for _, model in lines.values()], axis=0)
            axes.plot(lines[shown[0]][0], mean, color="black", linewidth=1.8, label="mean of the classes")
        else:
            axes.plot([], [], color="black", linewidth=0.6, linestyle="--", label="treat all")
        axes.axhline(0, label="treat none", **CHANCE)
        top = max(max(curve.model.max(), curve.treat_all.max()) for curve in curves.values())
        # Below no benefit at all a curve need not be followed.
        axes.set_ylim(-0.25 * top, 1.08 * top)
        drawn.legend(loc="outside lower center")


def plot_reliability(predictions: Predictions, path: Path) -> None:
    """Accuracy in bins of confidence with 95% Wilson intervals, the ECE, and how many there are in each bin.

    Confidence is that of the predicted class of exclusive ones, otherwise each label's probability.
    """
    single = predictions.rows.single
    confidence, correct = confidence_and_correctness(predictions.truth, predictions.scores, single)
    curve = reliability_curve(confidence, correct)
    filled = curve.count > 0
    x, y, count = curve.confidence[filled], curve.accuracy[filled], curve.count[filled]
    low, high = proportion_confint(y * count, count, 1 - CONFIDENCE, "wilson")
    with figure(path, COLUMN, 4.4) as drawn:
        top, bottom = drawn.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        unit_square(top, "", "Accuracy" if single else "Fraction of labels that hold")
        top.plot([0, 1], [0, 1], label="perfect calibration", **CHANCE)
        bars = np.maximum([y - low, high - y], 0)
        top.errorbar(x, y, bars, fmt="o-", color=COLOURS[0], markersize=3, elinewidth=0.8, label="model (95% CI)")
        top.legend(loc="upper left")
        top.text(0.98, 0.04, f"ECE {curve.error:.3f}\nn = {len(confidence):,}", ha="right", va="bottom")
        bottom.bar(curve.edges[:-1], curve.count / curve.count.sum(), np.diff(curve.edges), align="edge",
                   color=COLOURS[0], edgecolor="white", linewidth=0.5)  # fmt: skip
        bottom.set(xlabel="Confidence" if single else "Predicted probability", ylabel="Fraction", box_aspect=0.22)


def plot_predicted_vs_true(predictions: Predictions, path: Path) -> None:
    """Per target the scatter with the identity and, beside it, a Bland-Altman plot."""
    names = predictions.class_names
    with figure(path, PAGE, 3.3 * len(names)) as drawn:
        rows = drawn.subplots(len(names), 2, squeeze=False)
        for axes, true, predicted, name in zip(rows, predictions.targets.T, predictions.scores.T, names, strict=True):
            _scatter(axes[0], true, predicted, short(name))
            _bland_altman(axes[1], true, predicted, short(name))


Z = 1.96  # limits of agreement hold 95% of normal differences


def _scatter(axes: Axes, true: np.ndarray, predicted: np.ndarray, name: str) -> None:
    values = np.concatenate([true, predicted])
    margin = 0.04 * (np.ptp(values) or 1)
    limits = (values.min() - margin, values.max() + margin)
    axes.plot(limits, limits, label="identity", **CHANCE)
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
    axes.axhline(0, **CHANCE)
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
