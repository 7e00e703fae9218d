"""Integrated gradients (Sundararajan et al. 2017) from captum, summed over each patch."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..runs.errors import RetFoundError
from .passes import scored

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
