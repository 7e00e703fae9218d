"""Targets of fine-tuning: labels, class weights, balanced sampling, and the scale of regression targets."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from ..errors import RetFoundError


@dataclass(frozen=True)
class TargetScale:
    """Mean and scale of the training targets, (targets,) each.

    An optimiser such as AdamW moves every weight by about the learning rate, whatever the loss: a head that had to
    give micrometres would need a hundred times the steps of one that gives millimetres. So the head gives standard
    deviations while it is trained, and the numbers themselves when it is done.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray) -> "TargetScale":
        """Of the training targets, (images,) or (images, targets); a constant target keeps its unit."""
        columns = targets.reshape(len(targets), -1).astype(np.float64)
        deviations = columns.std(axis=0)
        return cls(columns.mean(axis=0), np.where(deviations > 0, deviations, 1.0))

    def to_units(self, outputs: Tensor) -> Tensor:
        """What a head in training gave, (batch, targets), as numbers of the targets' unit in float32."""
        mean, scale = self._rows(torch.float32, outputs.device)
        return outputs.float() * scale + mean

    @torch.no_grad()
    def take_from(self, head: nn.Linear) -> None:
        """Make a head that gives the targets' unit one that gives standard deviations from the mean."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight / scale[:, None])
        head.bias.copy_((head.bias - mean) / scale)

    @torch.no_grad()
    def put_into(self, head: nn.Linear) -> None:
        """Make a trained head give the targets' unit."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight * scale[:, None])
        head.bias.copy_(head.bias * scale + mean)

    def _rows(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, scale = torch.tensor(np.stack([self.mean, self.scale]), dtype=dtype, device=device)
        return mean, scale


def label_options(
    targets: np.ndarray, class_names: tuple[str, ...], problem_type: str, class_weights: str, smoothing: float
) -> dict[str, Any]:
    """The part of the model's configuration that the training targets decide.

    Balanced weights are N / (classes x count) per class, and negatives / positives per label of multi-label targets.
    Errors of regression are measured in standard deviations of the training targets.
    """
    options: dict[str, Any] = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
        "problem_type": problem_type,
        "label_smoothing": 0.0 if problem_type == "regression" else smoothing,
        "class_weights": None,
        "target_scale": None,
        "calibration_temperature": 1.0,  # what training makes of a calibrated head is calibrated no more
    }
    if problem_type == "regression":
        if class_weights != "none":
            raise RetFoundError("--class_weights balanced needs classes, and the targets are numbers")
        options["target_scale"] = TargetScale.of(targets).scale.tolist()
    elif class_weights == "balanced":
        options["class_weights"] = _balanced(targets, len(class_names), problem_type).tolist()
    return options


def _balanced(targets: np.ndarray, num_classes: int, problem_type: str) -> np.ndarray:
    if problem_type == "multi_label_classification":
        positives = targets.sum(axis=0)
        return (len(targets) - positives) / np.maximum(positives, 1)
    counts = np.bincount(targets, minlength=num_classes)
    return len(targets) / (num_classes * np.maximum(counts, 1))


class BalancedSampler(Sampler[int]):
    """Draws with replacement so that every class comes equally often.

    The draws follow from the seed and the epoch alone: every process has the same, and so has a resumed run.
    """

    def __init__(self, targets: np.ndarray, seed: int):
        shares = 1.0 / np.bincount(targets)[targets]
        self.probabilities = shares / shares.sum()
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.probabilities)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        yield from generator.choice(len(self), size=len(self), p=self.probabilities).tolist()


def balanced_sampler(targets: np.ndarray, problem_type: str, seed: int) -> BalancedSampler:
    """The sampler of `--sampler balanced` for integer classes (images,)."""
    if problem_type != "single_label_classification":
        raise RetFoundError(f"--sampler balanced needs one class per image; the problem type is {problem_type}")
    return BalancedSampler(targets, seed)
