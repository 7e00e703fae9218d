"""Relevance maps of a classifier by one of four methods."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedModel

from ..errors import BadDataError, BadModelError, require, require_range
from ..models.modeling_retfound import RetFoundForImageClassification, RetFoundLayer
from . import attention

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


def relprop_of_patches(found: attention.AttentionPass) -> Tensor:
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
        return attention.rolled_out(found, matrices)


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
        return attention.scored(view, pixels, [0] * len(pixels)).outputs.logits.float()

    found = IntegratedGradients(logits).attribute(
        pixel_values, target=targets, n_steps=steps, internal_batch_size=len(pixel_values)
    )
    by_pixel = found.detach().float().sum(dim=1, keepdim=True)
    return torch.nn.functional.avg_pool2d(by_pixel, patch)[:, 0] * patch**2


STEPS = 32
FROM_ATTENTION: dict[str, Callable[[attention.AttentionPass], Tensor]] = {
    "relevance": attention.relevance_of_patches,
    "relprop": relprop_of_patches,
    "rollout": attention.rollout_of_patches,
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
    target: attention.Target = None,
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
    view = attention.view_of(model)
    device, dtype = attention.device_and_dtype(view)
    with torch.inference_mode(False), torch.enable_grad():
        pixels = pixel_values.detach().to(device, dtype, copy=True).requires_grad_()
        if method in FROM_ATTENTION:
            found = attention.attention_pass(view, pixels, target)
            score, patches = found.score, FROM_ATTENTION[method](found)
        else:
            with torch.no_grad():
                score = attention.scored(view, pixels, target)
            patches = integrated_gradients_of_patches(view, pixels, score.targets, steps)
    tensors = patches.float(), score.targets, score.outputs.logits.float()
    patches, targets, logits = (tensor.detach().cpu() for tensor in tensors)
    return RelevanceMaps(patches, targets, logits, method)
