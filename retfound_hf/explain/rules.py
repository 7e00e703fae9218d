"""How relevance is handed back through the parts of a network, so that its sum stays (Chefer, Gur & Wolf, CVPR 2021).

All tensors are float32; the rules are those of equations 5 to 12 of the paper.
"""

import torch
from torch import Tensor

TINY = 1e-9  # outputs closer to zero hand nothing on


def through_linear(inputs: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of inputs (..., into) from that of the outputs (..., out) of a layer with weight (out, into).

    Every output hands its relevance to the inputs that raised it, in shares of how much they did. Biases take none.
    """
    up, down, more, less = inputs.clamp(min=0), inputs.clamp(max=0), weight.clamp(min=0), weight.clamp(max=0)
    shares = _over(relevance, up @ more.mT + down @ less.mT)
    return up * (shares @ more) + down * (shares @ less)


def through_mean(tokens: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of tokens (batch, tokens, width) from that of their mean (batch, width).

    In every channel it goes to the tokens that agree with the mean's sign, in shares of their size.
    """
    agreeing = (tokens * tokens.mean(dim=1, keepdim=True).sign()).clamp(min=0)
    return agreeing * _over(relevance, agreeing.sum(dim=1))[:, None]


def through_sum(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of two summands (batch, ...) from that of their sum, in shares of the sum."""
    shares = _over(relevance, first + second)
    return _to_total(first * shares, second * shares, relevance)


def through_product(left: Tensor, right: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of the factors of `left @ right` (batch, ...) from that of the product, half of it to each."""
    shares = _over(relevance, left @ right)
    return _to_total(left * (shares @ right.mT), right * (left.mT @ shares), relevance)


def _to_total(first: Tensor, second: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Both parts scaled, so that their totals share the relevance of each image by their magnitudes.

    Shares of a sum near zero are large and of both signs; without this they would grow from block to block.
    """
    dims = tuple(range(1, relevance.ndim))
    sums = [part.sum(dim=dims, keepdim=True) for part in (first, second)]
    scale = _over(relevance.sum(dim=dims, keepdim=True), sums[0].abs() + sums[1].abs())
    return first * sums[0].sign() * scale, second * sums[1].sign() * scale


def _over(numerator: Tensor, denominator: Tensor) -> Tensor:
    return torch.where(denominator.abs() > TINY, numerator / denominator, 0)
