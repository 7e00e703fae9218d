"""Losses of the classifier, chosen by `config.problem_type`."""

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedConfig

PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")


def infer_problem_type(num_labels: int, labels: Tensor) -> str:
    """The problem type that the labels tell, by the rule of the transformers classifiers."""
    if num_labels == 1:
        return "regression"
    return "multi_label_classification" if labels.is_floating_point() else "single_label_classification"


def classification_loss(logits: Tensor, labels: Tensor, config: PreTrainedConfig) -> Tensor:
    """Mean loss over a batch, of which each image counts by the weight of its class, if there are such.

    Args:
        logits: (batch, num_labels).
        labels: (batch,) integer classes, or (batch, num_labels) class probabilities from mixup and cutmix, for
            single-label targets; (batch, num_labels) of 0 and 1 for multi-label; (batch,) or (batch, num_labels)
            for regression.
        config: its `problem_type` (inferred when None), `label_smoothing`, `class_weights` and `target_scale`
            are read; those that a stock configuration lacks count as unset.

    Returns:
        Scalar: cross-entropy, binary cross-entropy or mean squared error, in float32.
    """
    problem = config.problem_type or infer_problem_type(config.num_labels, labels)
    if problem not in PROBLEM_TYPES:
        raise ValueError(f"problem_type={problem!r} is unknown; accepted: {', '.join(PROBLEM_TYPES)}")
    logits = logits.float()
    smoothing = getattr(config, "label_smoothing", 0.0) or 0.0
    weights = _row(getattr(config, "class_weights", None), logits)
    if problem == "single_label_classification":
        # Over the number of images, not the sum of their weights: a batch that lacks the rare class weighs less.
        total = functional.cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="sum")
        return total / len(logits)
    labels = labels.to(logits.dtype).view_as(logits)
    if problem == "multi_label_classification":
        smoothed = labels * (1 - smoothing) + smoothing / 2
        return functional.binary_cross_entropy_with_logits(logits, smoothed, pos_weight=weights)
    scale = _row(getattr(config, "target_scale", None), logits)
    errors = logits - labels if scale is None else (logits - labels) / scale
    return errors.square().mean()


def _row(values: list[float] | None, logits: Tensor) -> Tensor | None:
    if values is None:
        return None
    if len(values) != logits.shape[-1]:
        raise ValueError(f"{len(values)} weights were configured for {logits.shape[-1]} labels; give one per label")
    return torch.tensor(values, dtype=logits.dtype, device=logits.device)
