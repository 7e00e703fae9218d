"""Reconstruction of hidden patches by a masked autoencoder."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import BadArgumentError, BadModelError
from .patches import check_image

GRAY = 0.5


@dataclass(frozen=True)
class Reconstruction:
    """Batch with hidden patches and their reconstruction, on the model's device.

    Attributes:
        original: (count, 3, height, width) float32 in 0..1, the input without its standardisation.
        masked: the same with hidden patches flat gray.
        reconstructed: the same with hidden patches as the model paints them.
        predicted: every patch as the model paints it, the visible ones too, on which it was never trained.
        error: (count, rows, columns) float32, the squared error of each hidden patch as the loss counts it, 0 where
            visible; its mean over the hidden patches is the model's loss.
        mask: (count, rows, columns) bool, true where hidden.
    """

    original: Tensor
    masked: Tensor
    reconstructed: Tensor
    predicted: Tensor
    error: Tensor
    mask: Tensor


@torch.no_grad()
def reconstruct(
    model: ViTMAEForPreTraining,
    pixel_values: Tensor,
    noise: Tensor | None = None,
    mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
    std: Sequence[float] = IMAGENET_DEFAULT_STD,
) -> Reconstruction:
    """Hide patches and let the masked autoencoder paint them (He et al. 2022, figure 2).

    A model with `norm_pix_loss` predicts patches standardised each by its own mean and deviation, which the hidden
    patch alone knows. They are taken from the original here: the picture shows the structure that the model found,
    while brightness and contrast of a hidden patch are given.

    Args:
        model: `RetFoundForPreTraining` or a stock `ViTMAEForPreTraining`. It runs in eval mode and is left in its own.
        pixel_values: (count, 3, height, width), standardised by `mean` and `std`; any size that the model accepts.
        noise: (count, patches): the patches of lowest noise stay visible. None draws it from the global generator.
        mean, std: of each channel, for values in 0..1.

    Raises:
        BadModelError: a model without decoder.
        BadDataError, BadArgumentError: images or noise of a shape that does not fit the model.
    """
    if not isinstance(model, ViTMAEForPreTraining):
        raise BadModelError(
            f"{type(model).__name__} has no decoder to paint hidden patches with; load a folder of pretraining with "
            "AutoModelForPreTraining"
        )
    grid = check_image(pixel_values, model.config, interpolate_pos_encoding=True)
    wanted, size = (len(pixel_values), grid[0] * grid[1]), tuple(pixel_values.shape[-2:])
    if noise is not None and tuple(noise.shape) != wanted:
        message = f"`noise` has shape {tuple(noise.shape)}; give {wanted}, a number per patch"
        raise BadArgumentError(message, field="noise", value=tuple(noise.shape))
    pixels = pixel_values.to(model.device, torch.float32)
    with _eval_mode(model):
        outputs = model(
            pixels.to(model.dtype),
            noise=None if noise is None else noise.to(model.device),
            interpolate_pos_encoding=size != (model.config.image_size,) * 2,
        )
    target = model.patchify(pixels, interpolate_pos_encoding=True)
    painted, centre, spread = outputs.logits.float(), 0.0, 1.0
    if model.config.norm_pix_loss:
        centre, spread = target.mean(-1, keepdim=True), (target.var(-1, keepdim=True) + 1e-6).sqrt()
    hidden = outputs.mask.bool()
    error = (painted - (target - centre) / spread).square().mean(-1).where(hidden, 0.0)
    mean, std = (torch.tensor(part, device=pixels.device)[:, None, None] for part in (mean, std))
    original = (pixels * std + mean).clamp(0, 1)
    predicted = (model.unpatchify(painted * spread + centre, size) * std + mean).clamp(0, 1)
    mask = hidden.unflatten(1, grid)
    patch = model.config.patch_size
    covered = mask.repeat_interleave(patch, dim=1).repeat_interleave(patch, dim=2)[:, None]
    return Reconstruction(
        original=original,
        masked=original.masked_fill(covered, GRAY),
        reconstructed=torch.where(covered, predicted, original),
        predicted=predicted,
        error=error.unflatten(1, grid),
        mask=mask,
    )


@contextmanager
def _eval_mode(model: nn.Module) -> Iterator[None]:
    """Evaluation mode within the block; afterwards each module has its own mode back, as parts may differ."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
