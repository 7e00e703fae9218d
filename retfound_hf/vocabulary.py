"""Vocabulary that every room shares: modalities and problem types, one row each.

Rows may be added at run time; what reads the tables takes them.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

SINGLE_LABEL = "single_label_classification"
MULTI_LABEL = "multi_label_classification"
REGRESSION = "regression"
POINTS_FILE = "operating_points.json"  # of a model folder: thresholds of its head


@dataclass(frozen=True)
class Modality:
    """Kind of retinal image.

    Attributes:
        name: value of `config.modality`.
        title: in running text, plural.
        mask_ratio: share of hidden patches in pretraining (Zhou et al. 2023, Methods).
        gray: the three colour channels are equal.
        crop: images are cropped to the field of view.
    """

    name: str
    title: str
    mask_ratio: float
    gray: bool
    crop: bool


MODALITIES = {
    "cfp": Modality("cfp", "colour fundus photographs", 0.75, gray=False, crop=True),
    "oct": Modality("oct", "OCT B-scans", 0.85, gray=True, crop=False),
}


@dataclass(frozen=True)
class ProblemType:
    """Kind of target, named as `config.problem_type` of transformers.

    Attributes:
        name: value of `config.problem_type`.
        title: in running text.
        label: what the labels of one image are.
        loss: mean loss of (logits, labels, weights, smoothing, scale), see `classification_loss`.
        to_scores: from logits (batch, C) to probabilities or numbers of the same shape.
    """

    name: str
    title: str
    label: str
    loss: "Callable[[Tensor, Tensor, Tensor | None, float, Tensor | None], Tensor]"
    to_scores: "Callable[[Tensor], Tensor]"

    @property
    def is_classification(self) -> bool:
        """Whether scores are probabilities of classes."""
        return self.name != REGRESSION


def _cross_entropy(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    from torch.nn import functional

    # Over the number of images, not the sum of their weights: a batch that lacks the rare class weighs less.
    total = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
    return total / len(logits)


def _binary_cross_entropy(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    from torch.nn import functional

    smoothed = labels.to(logits.dtype).view_as(logits) * (1 - smoothing) + smoothing / 2
    return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)


def _squared_error(logits: Any, labels: Any, weights: Any, smoothing: float, scale: Any) -> Any:
    errors = logits - labels.to(logits.dtype).view_as(logits)
    return (errors if scale is None else errors / scale).square().mean()


PROBLEM_TYPES = {
    SINGLE_LABEL: ProblemType(
        SINGLE_LABEL, "one of several classes", "one class", _cross_entropy, lambda logits: logits.softmax(-1)
    ),
    MULTI_LABEL: ProblemType(
        MULTI_LABEL, "findings that may occur together", "0 or 1 for each finding", _binary_cross_entropy,
        lambda logits: logits.sigmoid(),
    ),
    REGRESSION: ProblemType(REGRESSION, "numbers", "one number per target", _squared_error, lambda logits: logits),
}  # fmt: skip


def problem_type_of(config: Any) -> str:
    """Key of `PROBLEM_TYPES` for a configuration of transformers, by the rule of its losses where it names none."""
    return config.problem_type or (REGRESSION if config.num_labels == 1 else SINGLE_LABEL)
