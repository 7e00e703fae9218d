"""Maps from attention: gradient-weighted relevance (Chefer et al. 2021) and rollout (Abnar & Zuidema 2020)."""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..runs.errors import RetFoundError
from .passes import Score, scored
from .targets import Target

HALF_SCALE = 1024.0  # keeps gradients of float16 models above its smallest number


@dataclass(frozen=True)
class AttentionPass:
    """One forward and backward pass; matrices are (batch, heads, tokens, tokens), detached, one per block.

    Attributes:
        view: what was run.
        weights: attention, row i telling from which tokens token i takes.
        gradients: of the targets' logits by `weights`.
        readout: (batch, tokens), the share that the head's reading of each last token has in the whole, sums to 1.
        grid: patches on a side, the last `grid`^2 of the tokens.
    """

    view: PreTrainedModel
    score: Score
    weights: tuple[Tensor, ...]
    gradients: tuple[Tensor, ...]
    readout: Tensor
    grid: int


def relevance_of_patches(found: AttentionPass) -> Tensor:
    """Relevance of every patch for the target, (batch, grid, grid) float32, not negative.

    The rule for self-attention of Chefer et al., ICCV 2021: a block's matrix A is the mean over heads of the positive
    part of gradient times attention, and R <- R + A R from the identity on, so that R tells how much of each token
    has entered each other. The paper reads the row of the class token, as its models do. RETFound's head reads the
    mean of the patch tokens: the logit is a function of that mean alone, and its row is the mean of the patches' rows.
    The identity is taken off first. In the row of the class token it falls on the class token; in the mean of patch
    rows it adds the same to every patch, and far more than the blocks do.

    What is positive in one head may be outweighed by another, so that maps of opposite classes can show the same
    places; integrated gradients keep the sign.
    """
    blocks = zip(reversed(found.weights), reversed(found.gradients), strict=True)
    return rolled_out(found, ((gradients * weights.float()).clamp(min=0).mean(dim=1) for weights, gradients in blocks))


def rolled_out(found: AttentionPass, matrices: Iterable[Tensor]) -> Tensor:
    """What the read tokens take from every patch over all blocks, (batch, grid, grid), of which the identity is none.

    Args:
        matrices: A of each block, (batch, tokens, tokens), from the last block back.
    """
    total = torch.zeros_like(found.readout)
    # The row r (I + A_n) ... (I + A_1) - r, without a square product. Without r too: beside it float32 would round
    # away what a weak gradient has to say.
    for matrix in matrices:
        total = total + ((found.readout + total)[:, None] @ matrix)[:, 0]
    return _patches(total, found.grid)


def rollout_of_patches(found: AttentionPass) -> Tensor:
    """Attention rollout, (batch, grid, grid) float32: where the read tokens come from, whatever the target.

    Every block mixes half attention (mean over heads) and half identity, for its residual connection.
    """
    rows = found.readout
    for weights in reversed(found.weights):
        rows = 0.5 * rows + 0.5 * (rows[:, None] @ weights.float().mean(dim=1))[:, 0]
    return _patches(rows, found.grid)


def attention_pass(view: PreTrainedModel, pixel_values: Tensor, target: Target) -> AttentionPass:
    """Run a view (`views.view_of`) of a classifier and its gradient once, with the attention of every block kept.

    Works on models whose attention is between all of an image's patches, given in raster order after any class and
    register tokens: RetFound, ViT, DINOv2, DeiT, BEiT.

    Args:
        pixel_values: must require gradients, which reach the attention of a model with frozen weights through it.

    Raises:
        RetFoundError: another architecture.
    """
    # Fused kernels never form the matrices.
    view.set_attn_implementation("eager")
    score = scored(view, pixel_values, target, output_attentions=True, output_hidden_states=True)
    outputs, size = score.outputs, pixel_values.shape[-1]
    weights = tuple(getattr(outputs, "attentions", None) or ())
    patch = getattr(view.config, "patch_size", None)
    grid = size // patch if isinstance(patch, int) else 0
    tokens = weights[0].shape[-1] if weights else 0
    if not grid or any(w is None or w.shape[-2:] != (tokens, tokens) for w in weights) or tokens < grid**2:
        raise RetFoundError(
            f"{type(view).__name__} has no attention among all patches of an image; "
            "use the method integrated_gradients"
        )
    last = outputs.hidden_states[-1]
    scale = HALF_SCALE if last.dtype == torch.float16 else 1.0
    found = torch.autograd.grad(scale * score.values.sum(), [*weights, last])
    *gradients, by_token = (gradient.detach().float() / scale for gradient in found)
    # A head reads a token if and only if the target depends on it; how strongly, its gradient tells.
    readout = by_token.norm(dim=-1)
    readout = readout / readout.sum(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    return AttentionPass(view, score, tuple(w.detach() for w in weights), tuple(gradients), readout, grid)


def _patches(rows: Tensor, grid: int) -> Tensor:
    return rows[:, -(grid**2) :].unflatten(1, (grid, grid))
