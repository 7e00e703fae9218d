"""What a card says of results: read from the files of the run, rounded, and nothing else."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..evaluation.subgroups import FEWEST
from ..evaluation.temperature import is_uninformed

INTERVAL = "_ci95"
INDEXED = ("auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "kappa", "quadratic_kappa", "r2", "mae")
SUBGROUP_METRICS = ("auroc", "mae")  # the one of classifiers, the one of regression
MAX_SUBGROUPS = 40  # rows shown
NUMERIC = re.compile(r"(-?\d[\d.]*( to .*| \(.*)?|undefined)?")
# Of the names in `metrics.json` that are no words of their own.
TITLES = {
    "auroc": "AUROC", "auprc": "AUPRC", "balanced_accuracy": "balanced accuracy", "f1_macro": "F1, mean of classes",
    "precision_macro": "precision, mean of classes", "recall_macro": "recall, mean of classes",
    "jaccard": "Jaccard index", "kappa": "Cohen's kappa", "quadratic_kappa": "Cohen's kappa, quadratic weights",
    "mcc": "Matthews correlation", "hamming": "Hamming loss", "ece": "expected calibration error",
    "brier": "Brier score", "loss": "log loss", "mae": "mean absolute error", "mse": "mean squared error",
    "rmse": "root mean squared error", "r2": "R²", "pearson": "Pearson correlation",
    "spearman": "Spearman correlation",
}  # fmt: skip


def read_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json` of a folder, empty where there is none."""
    path = Path(folder) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluation_text(folder: Path, of_what: str) -> str:
    """The section on evaluation: all metrics with their intervals, by class, and by group of patients.

    Args:
        of_what: the images, such as "the test split, 120 images".
    """
    metrics = read_metrics(folder)
    values = {name: value for name, value in metrics.items() if not name.endswith(INTERVAL)}
    overall = [name for name in values if "/" not in name and values[name] is not None]
    interval = any(name.endswith(INTERVAL) for name in metrics)
    heading = ["metric", "value", *(["95% interval"] if interval else [])]
    rows = [[title(name), number(values[name]), *([_interval(metrics, name)] if interval else [])] for name in overall]
    parts = [f"On {of_what}:", _table(heading, rows)]
    parts += _by_class(metrics, values, interval)
    undefined = [name for name, value in values.items() if value is None]
    if undefined:
        parts.append(f"Undefined on these images: {', '.join(map(title, undefined))}.")
    subgroups = Path(folder) / "subgroups.csv"
    if subgroups.is_file():
        parts += _by_group(subgroups)
    return "\n\n".join(parts)


def calibration_text(folder: Path, problem_type: str | None) -> str:
    """The section on calibration: its error, and the temperature by which logits are divided."""
    if problem_type == "regression":
        return "Not applicable: the model predicts numbers, not probabilities."
    metrics = read_metrics(folder)
    if metrics.get("ece") is None:
        return "Not measured."
    text = f"Expected calibration error {number(metrics['ece'])}"
    text += f", Brier score {number(metrics['brier'])}" if metrics.get("brier") is not None else ""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    temperature = config.get("calibration_temperature", 1.0)
    if temperature == 1.0:
        return f"{text}; the probabilities are those of the network, no temperature was fitted to them."
    text += f", after the head was divided by a temperature of {number(temperature)}, fitted on validation images."
    if is_uninformed(temperature):
        text += (
            " That is the highest that is tried: on the validation images the scores were hardly better than "
            "guessing, or far too sure. The probabilities are not calibrated, however small the error above: nearly "
            "equal ones may have a small one whatever the model knows."
        )
    return text


def model_index(folder: Path, name: str, dataset: str, dataset_id: str | None = None) -> list[dict[str, Any]]:
    """The card's `model-index` in the form of huggingface_hub, values as they stand in `metrics.json`."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id or "retinal-images",
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in read_metrics(folder).items()
        if metric in INDEXED and value is not None
    ]
    return eval_results_to_model_index(name, results) if results else []


def cost_text(seconds: float | None, hardware: str | None) -> str:
    """Measured time on what machine; energy is no part of what is measured."""
    if seconds is None:
        return "Not measured."
    whole = max(1, round(seconds))
    shown = f"{whole} second{'s' if whole > 1 else ''}" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    shown = shown if seconds < 7200 else f"{seconds / 3600:.1f} hours"
    return f"Measured: {shown} on {hardware or 'an unnamed machine'}. Power was not measured; no energy is claimed."


def number(value: float) -> str:
    """A figure as cards show it."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def title(name: str) -> str:
    """A metric as cards name it: `auroc` is AUROC, `auroc/3` AUROC of `3`, whose marks tell a grade from a figure."""
    metric, _, label = name.partition("/")
    return f"{TITLES.get(metric, metric)} of `{label}`" if label else TITLES.get(metric, metric)


def _by_class(metrics: dict[str, Any], values: dict[str, Any], interval: bool) -> list[str]:
    # A class name may hold a slash itself: only the first one separates.
    split = [(name, *name.split("/", 1)) for name, value in values.items() if "/" in name and value is not None]
    columns = list(dict.fromkeys(column for _, column, _ in split))
    labels = list(dict.fromkeys(label for _, _, label in split))
    if not labels:
        return []

    def cell(name: str) -> str:
        if values.get(name) is None:
            return ""
        shown = _interval(metrics, name) if interval else ""
        return number(values[name]) + (f" ({shown})" if shown else "")

    rows = [[label, *(cell(f"{column}/{label}") for column in columns)] for label in labels]
    return ["By class:", _table(["class", *map(title, columns)], rows)]


def _interval(metrics: dict[str, Any], name: str) -> str:
    found = metrics.get(name + INTERVAL)
    return f"{number(found[0])} to {number(found[1])}" if found else ""


def _by_group(path: Path) -> list[str]:
    """The groups and the gaps between them, for the one metric that the card shows.

    Groups of few patients are left out: a card is public, and the figures of one or two patients are theirs.
    """
    with path.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["metric"] in SUBGROUP_METRICS]
    shown = [row for row in found if float(row["n"]) >= FEWEST]
    rows = []
    for row in shown[:MAX_SUBGROUPS]:
        interval = f"{_rounded(row['low'])} to {_rounded(row['high'])}" if row["low"] else ""
        value = _rounded(row["value"]) or "undefined"
        metric = title(row["metric"])
        rows.append([row["column"], row["group"], row["n"], metric, value, interval, _rounded(row["p_value"])])
    parts = []
    if rows:
        table = _table(["by", "group", "patients", "metric", "value", "95% interval", "p of a gap"], rows)
        parts = ["By group of patients (`subgroups.csv` has every metric):", table]
    if len(shown) < len(found):
        parts.append(f"Groups of fewer than {FEWEST} patients are left out.")
    return parts


def _rounded(cell: str) -> str:
    try:
        return number(int(cell)) if cell.lstrip("-").isdigit() else number(float(cell))
    except ValueError:
        return cell


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns of numbers to the right, those without any cell left out."""
    columns = [column for column in zip(heading, *rows, strict=True) if any(column[1:])]
    right = [all(NUMERIC.fullmatch(cell) for cell in column[1:]) for column in columns]
    heading, *rows = zip(*columns, strict=True)
    lines = [heading, ["---:" if numbers else "---" for numbers in right], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)
