"""Relevance maps of a classifier by one of four methods."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import BadDataError, require, require_range
from .attention import (
    AttentionPass,
    Target,
    attention_pass,
    device_and_dtype,
    relevance_of_patches,
    rollout_of_patches,
    scored,
    view_of,
)  # fmt: skip
from .relprop import relprop_of_patches

DEFAULT_PATCH = 16  # pixels, of models that know no patches


def integrated_gradients_of_patches(
    view: PreTrainedModel, pixel_values: Tensor, targets: Tensor, steps: int
) -> Tensor:
    """Contribution of every patch to the target's logit, by integrated gradients (Sundararajan et al. 2017), signed.

    The baseline is an image of the mean colour that the preprocessing subtracts (0 after it), not black: from black
    the dark lesions and the surround of a fundus would count for nothing. The values of an image add up to its logit
    minus the baseline's, the closer the more `steps`.

    Args:
        view: of any classifier of images (`view_of`).
        pixel_values: (batch, 3, size, size).
        targets: int64 (batch,).
        steps: forward and backward passes per image; they run in batches of the images' number.

    Returns:
        (batch, grid, grid) float32.

    Raises:
        BadDataError: an image size that is not a multiple of the patch size.
    """
    from captum.attr import IntegratedGradients

    patch, size = getattr(view.config, "patch_size", None), pixel_values.shape[-1]
    patch = patch if isinstance(patch, int) else DEFAULT_PATCH
    if size % patch:
        raise BadDataError(f"image size {size} is not a multiple of the patch size {patch}")

    def logits(pixels: Tensor) -> Tensor:
        return scored(view, pixels, [0] * len(pixels)).outputs.logits.float()

    found = IntegratedGradients(logits).attribute(
        pixel_values, target=targets, n_steps=steps, internal_batch_size=len(pixel_values)
    )
    by_pixel = found.detach().float().sum(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(by_pixel, patch)[:, 0] * patch**2


STEPS = 32
FROM_ATTENTION: dict[str, Callable[[AttentionPass], Tensor]] = {
    "relevance": relevance_of_patches,
    "relprop": relprop_of_patches,
    "rollout": rollout_of_patches,
}
METHODS = (*FROM_ATTENTION, "integrated_gradients")


@dataclass(frozen=True)
class RelevanceMaps:
    """Maps of a batch, on the CPU.

    Attributes:
        patches: (batch, grid, grid) float32, row 0 at the top. Not negative, except for integrated gradients, whose
            values are parts of the logit and may speak against the target. Compare within an image, not between
            images: the scale is the logit's.
        targets: (batch,) int64, the output that each map explains.
        logits: (batch, outputs) float32.
        method: one of `METHODS`.
    """

    patches: Tensor
    targets: Tensor
    logits: Tensor
    method: str

    def at_size(self, size: int) -> Tensor:
        """The maps as (batch, size, size) float32 over the network's input, linear between the patches' centres."""
        return nn.functional.interpolate(self.patches[:, None], (size, size), mode="bilinear")[:, 0]


def relevance(
    model: nn.Module,
    pixel_values: Tensor,
    target: Target = None,
    method: str = "relevance",
    steps: int = STEPS,
) -> RelevanceMaps:
    """Relevance maps of a batch.

    The model is left as it is (mode, gradients, attention implementation, hooks), and several threads may explain one
    model at the same time. Gradients are taken whatever the caller's `torch.no_grad`.

    Args:
        model: a classifier of transformers, full or with peft adapters, on any device. Integrated gradients work on
            any, the other methods need attention among patches.
        pixel_values: (batch, 3, size, size), standardised, of any size that the model accepts.
        target: class index or name, for all images or one for each; None explains the output of highest logit.
        method: `relevance` (Chefer et al., ICCV 2021), `relprop` (Chefer et al., CVPR 2021; RETFound's own blocks
            only), `rollout` (Abnar & Zuidema 2020; the same for every class of models with RETFound's head) or
            `integrated_gradients` (Sundararajan et al. 2017).
        steps: of integrated gradients.

    Raises:
        BadArgumentError: an unknown method or class.
        BadModelError: a model without logits, or an architecture that the method does not support.
        BadDataError: images that the model refuses.
    """
    require("method", method, METHODS)
    require_range("steps", steps, 1)
    if pixel_values.ndim != 4 or not len(pixel_values):
        raise BadDataError(f"pixel_values has shape {tuple(pixel_values.shape)}; expected (batch, 3, size, size)")
    view = view_of(model)
    device, dtype = device_and_dtype(view)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixel_values.detach().to(device, dtype, copy=True).requires_grad_()
        if method in FROM_ATTENTION:
            found = attention_pass(view, pixels, target)
            score, patches = found.score, FROM_ATTENTION[method](found)
        else:
            with torch.no_grad():
                score = scored(view, pixels, target)
            patches = integrated_gradients_of_patches(view, pixels, score.targets, steps)
    tensors = patches.float(), score.targets, score.outputs.logits.float()
    patches, targets, logits = (tensor.detach().cpu() for tensor in tensors)
    return RelevanceMaps(patches, targets, logits, method)
