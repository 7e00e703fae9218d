"""One forward pass of a classifier, ready to be differentiated."""

import inspect
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..runs.errors import RetFoundError
from .targets import Target, resolve_targets


@dataclass(frozen=True)
class Score:
    """What is differentiated.

    Attributes:
        outputs: of the model.
        targets: int64 (batch,), the output that is explained for each image.
        values: (batch,), the logits of `targets` (for regression the predicted values).
    """

    outputs: Any
    targets: Tensor
    values: Tensor


def scored(view: PreTrainedModel, pixel_values: Tensor, target: Target, **options: Any) -> Score:
    """Run a view (`views.view_of`) of a classifier and pick the target of each image.

    Args:
        pixel_values: (batch, 3, size, size) on any device; gradients flow to it where it requires them.
        options: for the model's forward.

    Raises:
        RetFoundError: a model that is no classifier, or images that it refuses.
    """
    parameters = inspect.signature(getattr(view, "get_base_model", lambda: view)().forward).parameters
    # RetFound and DINOv2 fit their positions to the image; stock ViT refuses other sizes unless told.
    if "interpolate_pos_encoding" in parameters and pixel_values.shape[-1] != getattr(view.config, "image_size", None):
        options["interpolate_pos_encoding"] = True
    try:
        outputs = view(pixel_values=pixel_values, **options)
    except ValueError as error:
        raise RetFoundError(f"{type(view).__name__} refuses the images: {error}") from error
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim != 2:
        raise RetFoundError(
            f"{type(view).__name__} is no classifier, so that there is no class to explain; give a fine-tuned folder"
        )
    targets = resolve_targets(target, logits.detach(), view.config)
    return Score(outputs, targets, logits.float().gather(1, targets[:, None])[:, 0])


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Of the first weights of floating point, where and as which images are wanted."""
    weights = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return weights.device, weights.dtype
