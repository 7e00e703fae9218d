"""What the validation split decides after training: the temperature of the head, and thresholds for decisions."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import nn

from ..errors import RetFoundError
from ..evaluation.calibration import fit_temperature
from ..evaluation.report import POINTS_FILE, ReportArguments, to_level, write_points
from ..evaluation.thresholds import OperatingPoint, choose_threshold
from ..evaluation.validation import check_classification
from .methods import FinetuneJob, trained_head


@dataclass
class DecisionArguments:
    calibrate: bool = field(
        default=False, metadata={"help": "after training, scale the head by a temperature fitted on validation images"}
    )
    target_sensitivity: float = field(
        default=0.9, metadata={"help": "per class, validation chooses the threshold that reaches this sensitivity"}
    )
    target_specificity: float = field(default=0.9, metadata={"help": "and another one that reaches this specificity"})

    def __post_init__(self) -> None:
        for name in ("target_sensitivity", "target_specificity"):
            if not 0 < getattr(self, name) <= 1:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be above 0 and at most 1")


def check_requests(job: FinetuneJob, decision: DecisionArguments, report: ReportArguments) -> None:
    """Raise before training for what could not be done after it."""
    kind = job.labelled.problem_type
    if decision.calibrate and kind == "regression":
        raise RetFoundError("--calibrate scales probabilities, and regression has none; leave it out")
    report.check_columns(job.labelled.table, job.data_args.data)
    for split in ("val", "test"):
        rows, targets = job.prepared[split].rows, job.prepared[split].targets
        to_level(rows, targets, np.ones((len(rows), len(job.labelled.class_names))), kind, report)


def calibrate(model: nn.Module, logits: dict[str, np.ndarray], targets: np.ndarray, problem_type: str) -> float:
    """Fit the temperature on the validation logits, fold it into the head, and scale all `logits` in place.

    Args:
        logits: by split; those of "val" are fitted.
        targets: of the validation images.
    """
    temperature = fit_temperature(logits["val"], targets, problem_type)
    fold_temperature(model, temperature)
    for split in logits:
        logits[split] = logits[split] / np.float32(temperature)
    return temperature


@torch.no_grad()
def fold_temperature(model: nn.Module, temperature: float) -> None:
    """Divide the last linear layer by the temperature: of a network, or of the head that an adapter trains.

    Whatever reads the weights, be it `pipeline`, ONNX or another library, then gives calibrated probabilities.
    `config.calibration_temperature` records the division; transformers refuses the plain name in models of images.
    """
    network = model.base_model.model if hasattr(model, "peft_config") else model
    head = trained_head(model)
    head.weight.div_(temperature)
    head.bias.div_(temperature)
    earlier = getattr(network.config, "calibration_temperature", 1.0)
    network.config.calibration_temperature = earlier * temperature


def choose_points(
    job: FinetuneJob, scores: np.ndarray, decision: DecisionArguments, report: ReportArguments
) -> list[OperatingPoint]:
    """Thresholds for every class that validation images do and do not show, at the level of the report."""
    if job.labelled.problem_type == "regression":
        return []
    val, names = job.prepared["val"], job.labelled.class_names
    _, targets, scores = to_level(val.rows, val.targets, scores, job.labelled.problem_type, report)
    _, scores, truth = check_classification(targets, scores, names, job.labelled.problem_type)
    wanted = (
        ("sensitivity", decision.target_sensitivity),
        ("specificity", decision.target_specificity),
        ("youden", None),
    )
    return [
        OperatingPoint(
            name, criterion, target, choose_threshold(truth[:, column], scores[:, column], criterion, target)
        )
        for column, name in enumerate(names)
        if truth[:, column].any() and not truth[:, column].all()
        for criterion, target in wanted
    ]


def save_points(folder: Path, job: FinetuneJob, points: list[OperatingPoint], report: ReportArguments) -> None:
    """Write the thresholds beside the model, for `evaluate`; none are left of an earlier model."""
    if points:
        write_points(folder, points, report, images=len(job.prepared["val"].images))
    else:
        (folder / POINTS_FILE).unlink(missing_ok=True)
