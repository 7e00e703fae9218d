"""Classifier that a fine-tuning starts from: weights of any kind, a head for the labels, the scale of its numbers."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BadArgumentError, BadModelError
from ..models.configuration_retfound import RetFoundConfig
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import is_adapter, load_network, load_processor, network_config, read_config, resolve
from ..models.modeling_retfound import RetFoundForImageClassification
from ..vocabulary import MULTI_LABEL, REGRESSION


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
        """Outputs (batch, targets) of a head in training as float32 numbers of the targets' unit."""
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

    Args:
        targets, class_names, problem_type: of the training split.
        class_weights: "none" or "balanced".
        smoothing: of the labels; numbers have none.
    """
    options: dict[str, Any] = {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
        "problem_type": problem_type,
        "label_smoothing": 0.0 if problem_type == REGRESSION else smoothing,
        "class_weights": None,
        "target_scale": None,
        "calibration_temperature": 1.0,  # what training makes of a calibrated head is calibrated no more
    }
    if problem_type == REGRESSION:
        if class_weights != "none":
            raise BadArgumentError(
                f"`class_weights={class_weights}` needs classes, and the targets are numbers",
                field="class_weights", value=class_weights,
            )  # fmt: skip
        options["target_scale"] = TargetScale.of(targets).scale.tolist()
    elif class_weights == "balanced" and problem_type == MULTI_LABEL:
        positives = targets.sum(axis=0)
        options["class_weights"] = ((len(targets) - positives) / np.maximum(positives, 1)).tolist()
    elif class_weights == "balanced":
        counts = np.bincount(targets, minlength=len(class_names))
        options["class_weights"] = (len(targets) / (len(class_names) * np.maximum(counts, 1))).tolist()
    return options


def build_classifier(
    name_or_path: str | None,
    config_name: str | None,
    labels: dict[str, Any],
    drop_path: float = 0.0,
    image_size: int | None = None,
    target_scale: TargetScale | None = None,
) -> PreTrainedModel:
    """Classifier with a head for `labels`, everything else from the folder, or from scratch for a preset.

    Whatever the weights, the head is RETFound's. A head of that kind that was trained on the same class names is kept,
    any other is replaced.

    Args:
        name_or_path: folder, Hub id or starting point; None with `config_name`, a preset.
        labels: as `label_options` gives them.
        drop_path: stochastic depth of the last block.
        image_size: of a preset that is trained from scratch; trained positions are interpolated instead.
        target_scale: of a regression: a fresh head predicts the mean.

    Raises:
        BadModelError: weights of the encoder that are missing, or an adapter in place of a model.
    """
    if config_name is not None:
        size = {} if image_size is None else {"image_size": image_size}
        config = RetFoundConfig.from_preset(config_name, **labels, **size, drop_path_rate=drop_path)
        model, fresh = RetFoundForImageClassification(config), True
    else:
        name_or_path = resolve(name_or_path)
        if is_adapter(name_or_path):
            raise BadModelError(
                f"{name_or_path} is a LoRA adapter; fine-tune from a folder that was written with `merge`",
                model=name_or_path,
            )
        stored = read_config(name_or_path)
        options = {**labels, "drop_path_rate": drop_path}
        keeps_head = stored.id2label == labels["id2label"]
        if hasattr(stored, "head_norm") and not keeps_head:
            options["head_norm"] = "single"  # a fresh head is that of the 2023 code
        model, is_whole = load_network(name_or_path, stored, network_config(stored, **options), classifier=True)
        fresh = not (keeps_head and is_whole)
        if fresh:
            # As the official code does: weights near zero, an identity norm before it.
            nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
            nn.init.zeros_(model.classifier.bias)
            model.fc_norm.reset_parameters()
    if fresh and target_scale is not None:
        target_scale.put_into(model.classifier)
    return model


def build_processor(
    name_or_path: str | None, model: PreTrainedModel, image_size: int | None, crop: str
) -> RetFoundImageProcessor:
    """Image processor of the folder, or of a new model's input size.

    Args:
        name_or_path: as for `build_classifier`.
        model: the classifier.
        image_size: input side in pixels, None for the folder's.
        crop: "yes", "no", or "auto" as the folder says.
    """
    wanted = {"auto": None, "yes": True, "no": False}[crop]
    if name_or_path is None:
        return RetFoundImageProcessor.for_image_size(model.config.image_size, do_fundus_crop=wanted is not False)
    processor = load_processor(name_or_path, image_size, wanted)
    side, patch = processor.crop_size.height, model.config.patch_size
    if side % patch:
        raise BadArgumentError(
            f"`image_size={side}` is not a multiple of the model's patch size {patch}", field="image_size", value=side
        )
    return processor


def trained_head(model: nn.Module) -> nn.Linear:
    """The last linear layer: of a network, or that which an adapter trains."""
    head = model.base_model.model.classifier if hasattr(model, "peft_config") else model.classifier
    return head.modules_to_save[model.active_adapter] if hasattr(head, "modules_to_save") else head


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
