"""The classifier that fine-tuning starts from: any accepted weights under a fresh head."""

from typing import Any

from torch import nn
from transformers import PreTrainedModel

from ..inference.loading import is_adapter, read_config
from ..models.configuration import RetFoundConfig
from ..models.modeling import RetFoundForImageClassification
from ..models.starting_points import resolve
from ..models.starting_weights import load_network, network_config
from ..runs.errors import RetFoundError
from .target_scale import TargetScale


def build_classifier(
    name_or_path: str | None,
    config_name: str | None,
    labels: dict[str, Any],
    drop_path: float = 0.0,
    image_size: int | None = None,
    target_scale: TargetScale | None = None,
) -> PreTrainedModel:
    """A classifier with a head for `labels`, everything else from the folder, or from scratch for a preset.

    Whatever the weights, the head is RETFound's (see `models.starting_weights` for the encoders that it may sit on). A
    head of that kind that was trained on the same class names is kept, any other is replaced.

    Args:
        labels: `num_labels`, `id2label`, `label2id`, `problem_type`, and `label_smoothing`, `class_weights`,
            `target_scale` for the loss.
        image_size: of a preset that is trained from scratch; trained positions are interpolated instead.
        target_scale: of a regression: a fresh head predicts the mean.

    Raises:
        RetFoundError: weights of the encoder that are missing, or an adapter in place of a model.
    """
    if config_name is not None:
        size = {} if image_size is None else {"image_size": image_size}
        try:
            config = RetFoundConfig.from_preset(config_name, **labels, **size, drop_path_rate=drop_path)
        except ValueError as error:
            raise RetFoundError(f"--config_name {config_name}: {error}") from error
        model = RetFoundForImageClassification(config)
        _scale_fresh_head(model, target_scale)
        return model
    name_or_path = resolve(name_or_path)
    if is_adapter(name_or_path):
        raise RetFoundError(f"{name_or_path} is a LoRA adapter; fine-tune from a folder written with --merge")
    stored = read_config(name_or_path)
    options = {**labels, "drop_path_rate": drop_path}
    has_head = stored.id2label == labels["id2label"]
    if hasattr(stored, "head_norm") and not has_head:
        options["head_norm"] = "single"  # a fresh head is that of the 2023 code
    model, is_whole = load_network(name_or_path, stored, network_config(stored, **options), classifier=True)
    if not (has_head and is_whole):
        reset_head(model)
        _scale_fresh_head(model, target_scale)
    return model


def reset_head(model: PreTrainedModel) -> None:
    """Start the head anew, as the official code does: weights near zero, an identity norm before it."""
    nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
    nn.init.zeros_(model.classifier.bias)
    model.fc_norm.reset_parameters()


def _scale_fresh_head(model: PreTrainedModel, target_scale: TargetScale | None) -> None:
    if target_scale is not None:
        target_scale.put_into(model.classifier)
