"""Relevance propagation through whole blocks (Chefer, Gur & Wolf, CVPR 2021), the RELPROP of RETFound's paper."""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..errors import BadModelError
from ..models.modeling_retfound import RetFoundForImageClassification, RetFoundLayer
from .attention import AttentionPass, rolled_out

TINY = 1e-9  # outputs closer to zero pass no relevance on


def through_linear(inputs: Tensor, weight: Tensor, relevance: Tensor) -> Tensor:
    """Relevance of inputs (..., into) from that of the outputs (..., out) of a layer with weight (out, into).

    Every output passes its relevance to the inputs that raised it, in proportion. Biases take none.
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


def relprop_of_patches(found: AttentionPass) -> Tensor:
    """Relevance of every patch for the target, (batch, grid, grid) float32, not negative.

    All zero where nothing in the features speaks for the target. Computed in float32 whatever the model's precision.

    Raises:
        BadModelError: another architecture than RETFound's.
    """
    view = getattr(found.view, "get_base_model", lambda: found.view)()
    if not isinstance(view, RetFoundForImageClassification):
        name = type(view).__name__
        raise BadModelError(f"{name} has no RETFound blocks; use `method=relevance`", model=name)
    with torch.no_grad(), torch.autocast(found.readout.device.type, enabled=False):
        *inputs, last = found.score.outputs.hidden_states
        relevance = through_head(view, last.float(), found.score.targets)
        blocks = zip(view.vit.encoder.layer, inputs, found.weights, found.gradients, strict=True)
        matrices = []
        for layer, tokens, weights, gradients in reversed(list(blocks)):
            relevance, of_weights = through_block(layer, tokens, weights.float(), relevance)
            matrices.append((gradients * of_weights).clamp(min=0).mean(dim=1))
        return rolled_out(found, matrices)


def through_head(view: RetFoundForImageClassification, tokens: Tensor, targets: Tensor) -> Tensor:
    """Relevance of the last block's tokens (batch, 1 + patches, width), in all 1 for the target of each image."""
    patches = tokens[:, 1:]
    mean = patches.mean(dim=1)
    features = _normed(view.fc_norm, mean)
    if view.config.head_norm == "double":
        features = _normed(view.fc_norm, features)
    start = functional.one_hot(targets, view.config.num_labels).to(features)
    relevance = through_linear(features, Linear.of(view.classifier).weight, start)
    return functional.pad(through_mean(patches, relevance), (0, 0, 1, 0))  # the head does not read the class token


def through_block(layer: RetFoundLayer, tokens: Tensor, weights: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of a block's input, and of its attention matrix, from that of its output.

    Args:
        layer: the block.
        tokens: (batch, tokens, width), the input.
        weights: (batch, heads, tokens, tokens), the attention that it led to.
        relevance: (batch, tokens, width).
    """
    own, tokens = layer.attention.attention, tokens.float()
    project, expand, reduce = map(
        Linear.of, (layer.attention.output.dense, layer.intermediate.dense, layer.output.dense)
    )
    inner = [Linear.of(module) for module in (own.query, own.key, own.value)]
    normed = _normed(layer.layernorm_before, tokens)
    query, key, value = (_to_heads(linear(normed), own.num_attention_heads) for linear in inner)
    context = _from_heads(weights @ value)
    attended = project(context)
    middle = tokens + attended
    normed_middle = _normed(layer.layernorm_after, middle)
    hidden = layer.activation(expand(normed_middle))

    of_middle, of_mlp = through_sum(middle, reduce(hidden), relevance)
    of_hidden = through_linear(hidden, reduce.weight, of_mlp)
    of_middle = of_middle + through_linear(normed_middle, expand.weight, of_hidden)
    of_tokens, of_attended = through_sum(tokens, attended, of_middle)
    of_context = _to_heads(through_linear(context, project.weight, of_attended), own.num_attention_heads)
    of_weights, of_value = through_product(weights, value, of_context)
    of_query, of_key = through_product(query, key.mT, of_weights)
    for linear, part in zip(inner, (of_query, of_key.mT, of_value), strict=True):
        of_tokens = of_tokens + through_linear(normed, linear.weight, _from_heads(part))
    return of_tokens, of_weights


class Linear(NamedTuple):
    """A linear layer in float32: weight (out, into) and bias (out,)."""

    weight: Tensor
    bias: Tensor | float

    @classmethod
    def of(cls, module: nn.Module) -> "Linear":
        """Weight and bias of a module, including adapters of any kind."""
        if isinstance(module, nn.Linear):
            return cls(module.weight.float(), 0.0 if module.bias is None else module.bias.float())
        basis = torch.eye(module.in_features, device=module.weight.device, dtype=module.weight.dtype)
        bias = module(torch.zeros_like(basis[:1])).float()
        return cls((module(basis).float() - bias).mT, bias[0])

    def __call__(self, inputs: Tensor) -> Tensor:
        return inputs @ self.weight.mT + self.bias


def _normed(norm: nn.Module, tokens: Tensor) -> Tensor:
    return norm(tokens.to(norm.weight.dtype)).float()


def _to_heads(tokens: Tensor, heads: int) -> Tensor:
    """(batch, tokens, width) -> (batch, heads, tokens, width / heads)."""
    return tokens.unflatten(-1, (heads, -1)).transpose(1, 2)


def _from_heads(tokens: Tensor) -> Tensor:
    return tokens.transpose(1, 2).flatten(2)
