"""Relevance propagation through whole blocks (Chefer, Gur & Wolf, CVPR 2021), the RELPROP of RETFound's paper.

The explained output's relevance of 1 is handed back, part by part (`rules`), to the first block; norms, softmax and
activation hand on what they receive. In all, relevance neither grows nor is lost. What arrives at an attention matrix
takes the place there that attention itself has in `attention.relevance_of_patches`.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from ..models.layers import RetFoundLayer
from ..models.modeling import RetFoundForImageClassification
from ..runs.errors import RetFoundError
from .attention import AttentionPass, rolled_out
from .rules import through_linear, through_mean, through_product, through_sum


def relprop_of_patches(found: AttentionPass) -> Tensor:
    """Relevance of every patch for the target, (batch, grid, grid) float32, not negative.

    All zero where nothing in the features speaks for the target. Computed in float32 whatever the model's precision.

    Raises:
        RetFoundError: another architecture than RETFound's.
    """
    view = getattr(found.view, "get_base_model", lambda: found.view)()
    if not isinstance(view, RetFoundForImageClassification):
        raise RetFoundError(
            f"{type(view).__name__} has blocks whose relevance is not known here; use the method relevance"
        )
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
    return functional.pad(through_mean(patches, relevance), (0, 0, 1, 0))  # the class token is not read


def through_block(layer: RetFoundLayer, tokens: Tensor, weights: Tensor, relevance: Tensor) -> tuple[Tensor, Tensor]:
    """Relevance of a block's input, and of its attention matrix, from that of its output.

    Args:
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
        """What a module computes, adapters of any kind included."""
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
