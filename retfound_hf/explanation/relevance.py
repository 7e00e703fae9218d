"""Relevance maps: where a classifier looks, by one of four methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ..errors import RetFoundError, nearest
from .attention import (
    AttentionPass,
    Target,
    attention_pass,
    device_and_dtype,
    relevance_of_patches,
    rollout_of_patches,
    scored,
    view_of,
)
from .relprop import relprop_of_patches

DEFAULT_PATCH = 16  # pixels, of models that know no patches


def integrated_gradients_of_patches(
    view: PreTrainedModel, pixel_values: Tensor, targets: Tensor, steps: int
) -> Tensor:
    """What every patch adds to the target's logit on the way from the baseline, (batch, grid, grid) float32, signed.

    The baseline is an image of the mean colour that the preprocessing takes off (0 after it), not black: from black
    the dark lesions and the surround of a fundus would count for nothing. The values of an image add up to its logit
    less the baseline's, the better the more `steps`.

    Args:
        view: of any classifier of images (`views.view_of`).
        targets: int64 (batch,).
        steps: forward and backward passes per image; they run in batches of the images' number.

    Raises:
        RetFoundError: an image size that no whole number of patches fills.
    """
    from captum.attr import IntegratedGradients

    patch, size = getattr(view.config, "patch_size", None), pixel_values.shape[-1]
    patch = patch if isinstance(patch, int) else DEFAULT_PATCH
    if size % patch:
        raise RetFoundError(f"image size {size} is not a multiple of the patch size {patch}")

    def logits(pixels: Tensor) -> Tensor:
        return scored(view, pixels, [0] * len(pixels)).outputs.logits.float()

    found = IntegratedGradients(logits).attribute(
        pixel_values, target=targets, n_steps=steps, internal_batch_size=len(pixel_values)
    )
    by_pixel = found.detach().float().sum(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(by_pixel, patch)[:, 0] * patch**2


Method = Literal["relevance", "relprop", "rollout", "integrated_gradients"]
METHODS: tuple[str, ...] = get_args(Method)
STEPS = 32
FROM_ATTENTION: dict[str, Callable[[AttentionPass], Tensor]] = {
    "relevance": relevance_of_patches,
    "relprop": relprop_of_patches,
    "rollout": rollout_of_patches,
}


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
    method: Method = "relevance",
    steps: int = STEPS,
) -> RelevanceMaps:
    """Maps of where a classifier looks for a class.

    The model is left as it is (mode, gradients, attention implementation, hooks), and several threads may explain one
    model at the same time. Gradients are taken whatever the caller's `torch.no_grad`.

    Args:
        model: a classifier of transformers, full or with peft adapters, on any device. Integrated gradients work on
            any, the other methods need attention among patches.
        pixel_values: (batch, 3, size, size), standardised, of any size that the model accepts.
        target: class index or name, for all images or one for each; None explains the output of highest logit.
        method: `relevance` (Chefer et al., ICCV 2021), `relprop` (Chefer et al., CVPR 2021; RETFound's own blocks
            alone), `rollout` (Abnar & Zuidema 2020; the same for every class of models with RETFound's head) or
            `integrated_gradients` (Sundararajan et al. 2017).
        steps: of integrated gradients.

    Raises:
        RetFoundError: an unknown method or class, a model without logits, an architecture that the method does not
            know, or images that the model refuses.
    """
    if method not in METHODS:
        raise RetFoundError(f"method {method!r} is unknown{nearest(method, METHODS)}; accepted: {', '.join(METHODS)}")
    if pixel_values.ndim != 4 or not len(pixel_values):
        raise RetFoundError(f"pixel_values has shape {tuple(pixel_values.shape)}; give (batch, 3, size, size)")
    if steps < 1:
        raise RetFoundError(f"steps {steps} must be at least 1")
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
    logits = score.outputs.logits
    return RelevanceMaps(
        *(tensor.detach().cpu() for tensor in (patches.float(), score.targets, logits.float())), method
    )
