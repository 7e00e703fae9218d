"""Faithfulness of a map to its model: relevance inside known lesions, deletion and insertion of patches."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from retfound_hf.errors import RetFoundError
from retfound_hf.explanation.attention import Target, device_and_dtype, scored, view_of


@dataclass(frozen=True)
class Curves:
    """Fall and rise of the target's probability, means over the images.

    Attributes:
        shares: (steps + 1,) of the patches that are taken away (deletion) or put in (insertion), 0 to 1.
        deletion: (steps + 1,) probability while patches go, the most relevant first; a true map falls early.
        insertion: (steps + 1,) probability while they come, the most relevant first; a true map rises early.
    """

    shares: np.ndarray
    deletion: np.ndarray
    insertion: np.ndarray

    @property
    def deletion_area(self) -> float:
        return float(np.trapezoid(self.deletion, self.shares))

    @property
    def insertion_area(self) -> float:
        return float(np.trapezoid(self.insertion, self.shares))


def deletion_and_insertion(
    model: nn.Module,
    pixel_values: Tensor,
    patches: Tensor,
    target: Target,
    empty: Tensor | float = 0.0,
    steps: int = 16,
) -> Curves:
    """Take patches out of images, and put them into empty ones, in the order of a map (Petsiuk et al. 2018).

    Args:
        pixel_values: (batch, 3, size, size), standardised.
        patches: (batch, grid, grid), the map; negative values come last.
        target: as in `relevance`; None explains what each whole image is predicted as.
        empty: what an absent patch shows, to be broadcast to `pixel_values`: 0 for the mean colour, a blurred or
            healthy image.
        steps: of equal numbers of patches.

    Raises:
        RetFoundError: maps of another batch or that do not fit the images.
    """
    count, size = len(pixel_values), pixel_values.shape[-1]
    grid = patches.shape[-1]
    if patches.shape != (count, grid, grid) or size % grid:
        raise RetFoundError(
            f"maps of shape {tuple(patches.shape)} do not fit images of shape {tuple(pixel_values.shape)}"
        )
    view = view_of(model)
    device, dtype = device_and_dtype(view)
    images = pixel_values.to(device, dtype)
    empty = torch.as_tensor(empty).to(device, dtype).expand_as(images)
    # Place of every patch in the order, 0 for the most relevant.
    rank = patches.flatten(1).argsort(dim=1, descending=True).argsort(dim=1).unflatten(1, (grid, grid)).to(device)
    rank = functional.interpolate(rank[:, None].float(), (size, size), mode="nearest")
    targets = None if target is None else target
    deleted, inserted = [], []
    with torch.no_grad():
        if targets is None:
            targets = scored(view, images, None).targets
        shares = np.linspace(0, 1, steps + 1)
        for share in shares:
            chosen = rank < round(share * grid**2)
            deleted.append(_probability(view, torch.where(chosen, empty, images), targets))
            inserted.append(_probability(view, torch.where(chosen, images, empty), targets))
    return Curves(shares, np.array(deleted), np.array(inserted))


def mass_over_chance(patches: Tensor, lesions: Tensor) -> Tensor:
    """Share of a map within lesions over that of an even map, (batch,).

    Args:
        patches: (batch, grid, grid); what is negative counts as none.
        lesions: bool (batch, size, size) over the network's input. A patch is in a lesion if any of its pixels is.

    Returns:
        1 for an even map; NaN for an image without lesion or with an empty map.
    """
    grid = patches.shape[-1]
    inside = functional.adaptive_max_pool2d(lesions[:, None].float(), grid)[:, 0]
    positive = patches.float().clamp(min=0)
    share = (positive * inside).sum(dim=(1, 2)) / positive.sum(dim=(1, 2))
    return share / inside.mean(dim=(1, 2))


def _probability(view: nn.Module, pixels: Tensor, targets: Target) -> float:
    score = scored(view, pixels, targets)
    logits = score.outputs.logits.float()
    several = view.config.problem_type == "multi_label_classification"
    scores = logits.sigmoid() if several else logits.softmax(dim=1)
    return float(scores.gather(1, score.targets[:, None]).mean())
