"""Signs of collapse: all images at one place, all on one prototype."""

import math

import torch
from torch import Tensor


@torch.no_grad()
def spread(vectors: Tensor) -> Tensor:
    """Deviation of unit vectors over the batch, averaged over channels, in units of 1 / sqrt(channels).

    Args:
        vectors: (batch, channels), of any length.

    Returns:
        Scalar: near 1 for directions that are spread evenly, 0 where all are the same.
    """
    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    return units.std(dim=0, correction=0).mean() * math.sqrt(vectors.shape[1])


@torch.no_grad()
def entropy(shares: Tensor) -> Tensor:
    """Entropy of each row of shares (..., outputs) that sum to 1, over that of even ones: 0 to 1."""
    return torch.special.entr(shares.float()).sum(dim=-1) / math.log(shares.shape[-1])
