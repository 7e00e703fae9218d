"""The classifier that fine-tuning starts from: any encoder folder with a fresh head."""

from typing import Any

from torch import nn
from transformers import AutoModelForImageClassification, PreTrainedModel

from ..inference.loading import is_adapter, read_config
from ..models.configuration import RetFoundConfig
from ..models.modeling import RetFoundForImageClassification
from ..runs.errors import RetFoundError

HEAD = ("fc_norm.", "classifier.")


def build_classifier(
    name_or_path: str | None,
    config_name: str | None,
    labels: dict[str, Any],
    drop_path: float = 0.0,
    image_size: int | None = None,
) -> PreTrainedModel:
    """A classifier with a head for `labels`, everything else from the folder, or from scratch for a preset.

    RETFound and ViT-MAE folders become `RetFoundForImageClassification`; other architectures their stock classifier.
    A head that was trained on the same class names is kept, any other is replaced.

    Args:
        labels: `num_labels`, `id2label`, `label2id`, `problem_type`, and `label_smoothing`, `class_weights`,
            `target_scale` for the loss.
        image_size: of a preset that is trained from scratch; trained positions are interpolated instead.

    Raises:
        RetFoundError: weights of the encoder that are missing, or an adapter in place of a model.
    """
    if config_name is not None:
        size = {} if image_size is None else {"image_size": image_size}
        try:
            config = RetFoundConfig.from_preset(config_name, **labels, **size, drop_path_rate=drop_path)
        except ValueError as error:
            raise RetFoundError(f"--config_name {config_name}: {error}") from error
        return RetFoundForImageClassification(config)
    if is_adapter(name_or_path):
        raise RetFoundError(f"{name_or_path} is a LoRA adapter; fine-tune from a folder written with --merge")
    stored = read_config(name_or_path)
    own_labels = dict(stored.id2label)
    if stored.model_type in ("retfound", "vit_mae"):
        config = _retfound_config(stored, labels, drop_path)
        model_class: Any = RetFoundForImageClassification
    else:
        config = read_config(name_or_path)
        if hasattr(config, "drop_path_rate"):
            config.drop_path_rate = drop_path
        # Set one by one: `from_pretrained` drops what the stock class does not know, such as `class_weights`.
        for name, value in labels.items():
            setattr(config, name, value)
        model_class = AutoModelForImageClassification
    model, info = model_class.from_pretrained(
        name_or_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
    )
    missing = [name for name in info["missing_keys"] if not name.startswith(HEAD) and "pooler" not in name]
    if missing:
        raise RetFoundError(
            f"model {name_or_path} lacks {len(missing)} tensors of its encoder, such as {sorted(missing)[0]}; "
            "fine-tuning would start from random weights"
        )
    if own_labels != labels["id2label"] or info["missing_keys"] or info["mismatched_keys"]:
        reset_head(model)
    return model


def reset_head(model: PreTrainedModel) -> None:
    """Start the head anew, as the official code does: weights near zero, an identity norm before it."""
    nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
    nn.init.zeros_(model.classifier.bias)
    if hasattr(model, "fc_norm"):
        model.fc_norm.reset_parameters()


def _retfound_config(stored: Any, labels: dict[str, Any], drop_path: float) -> RetFoundConfig:
    own = {key: value for key, value in stored.to_dict().items() if key not in ("model_type", "transformers_version")}
    # A fresh head has the one norm of the 2023 code; a kept one keeps its own.
    same_head = stored.id2label == labels["id2label"]
    own |= {"head_norm": getattr(stored, "head_norm", "single") if same_head else "single"}
    return RetFoundConfig(**{**own, **labels, "drop_path_rate": drop_path})
