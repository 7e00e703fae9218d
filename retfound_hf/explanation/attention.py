"""Attention maps: gradient-weighted relevance (Chefer et al. 2021) and rollout (Abnar & Zuidema 2020)."""

import copy
import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any, TypeAlias

import torch
from accelerate.utils import extract_model_from_parallel
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel

from ..errors import BadArgumentError, BadDataError, BadModelError, require

Target: TypeAlias = int | str | Sequence[int | str] | Tensor | None


def resolve_targets(target: Target, logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """Index of the explained output for each image of a batch, int64 (batch,) on the logits' device.

    Args:
        target: None for the output of highest logit; a class index or name for all images; or one for each.
        logits: (batch, outputs).
        config: of the classifier, for the names of its classes.

    Raises:
        BadArgumentError: an unknown class, another number of classes than images, or a regression of several values
            without a target.
    """
    count, outputs = logits.shape
    if target is None:
        if config.problem_type == "regression" and outputs > 1:
            names = [str(config.id2label[index]) for index in range(outputs)]
            message = f"the model predicts {outputs} values; pass the one to explain as `target`: {', '.join(names)}"
            raise BadArgumentError(message, field="target", accepted=names)
        return logits.argmax(dim=1)
    if isinstance(target, Tensor):
        target = target.tolist()
    each = [target] * count if isinstance(target, (int, str)) else list(target)
    if len(each) != count:
        message = f"`target` has {len(each)} classes for {count} images; pass one class, or one per image"
        raise BadArgumentError(message, field="target", value=each)
    return torch.tensor([_index(one, outputs, config) for one in each], device=logits.device)


def _index(target: int | str, outputs: int, config: PreTrainedConfig) -> int:
    names = [str(config.id2label.get(index, index)) for index in range(outputs)]
    if isinstance(target, str):
        require("target", target, names)
        return names.index(target)
    if not 0 <= target < outputs:
        message = f"`target={target}` is out of range; the model has {outputs} outputs: {', '.join(names)}"
        raise BadArgumentError(message, field="target", value=target, accepted=range(outputs))
    return int(target)


@dataclass(frozen=True)
class Score:
    """Logits of the explained outputs, ready to be differentiated.

    Attributes:
        outputs: of the model.
        targets: int64 (batch,), the output that is explained for each image.
        values: (batch,), the logits of `targets` (for regression the predicted values).
    """

    outputs: Any
    targets: Tensor
    values: Tensor


def scored(view: PreTrainedModel, pixel_values: Tensor, target: Target, **options: Any) -> Score:
    """Run a view (`view_of`) of a classifier and pick the target of each image.

    Args:
        view: of the classifier.
        pixel_values: (batch, 3, size, size) on any device; gradients flow to it where it requires them.
        target: as for `resolve_targets`.
        options: for the model's forward.

    Raises:
        BadModelError: a model without logits.
        BadDataError: images that the model refuses.
    """
    height, width = pixel_values.shape[-2:]
    if height != width:
        raise BadDataError(f"image size {height} x {width} is not accepted: explanations need square images")
    parameters = inspect.signature(getattr(view, "get_base_model", lambda: view)().forward).parameters
    # RetFound and DINOv2 fit their positions to the image; stock ViT refuses other sizes unless told.
    if "interpolate_pos_encoding" in parameters and width != getattr(view.config, "image_size", None):
        options["interpolate_pos_encoding"] = True
    try:
        outputs = view(pixel_values=pixel_values, **options)
    except ValueError as error:
        raise BadDataError(f"{type(view).__name__} refuses the images: {error}") from error
    logits = getattr(outputs, "logits", None)
    if logits is None or logits.ndim != 2:
        name = type(view).__name__
        raise BadModelError(f"{name} has no class to explain; pass a fine-tuned classifier", model=name)
    targets = resolve_targets(target, logits.detach(), view.config)
    return Score(outputs, targets, logits.float().gather(1, targets[:, None])[:, 0])


def device_and_dtype(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device and dtype of the first floating-point weights, which images are moved to."""
    weights = next(parameter for parameter in model.parameters() if parameter.is_floating_point())
    return weights.device, weights.dtype


def view_of(model: nn.Module) -> PreTrainedModel:
    """Copy of the modules of a model around the same weights, in evaluation mode.

    Settings of the view (mode, attention implementation, hooks) do not reach the model: nothing is restored after an
    error, and threads that explain one model at the same time need no lock. Takes no memory for weights and some
    30 ms for ViT-L. Never convert a view's dtype or device: its tensors are those of the model.

    Args:
        model: may be wrapped by peft, `torch.compile` or a distributed wrapper; the last two are taken off.
    """
    model = extract_model_from_parallel(model, keep_torch_compile=False)
    shared = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    return copy.deepcopy(model, shared).eval()


HALF_SCALE = 1024.0  # keeps gradients of float16 models above its smallest number


@dataclass(frozen=True)
class AttentionPass:
    """One forward and backward pass; matrices are (batch, heads, tokens, tokens), detached, one per block.

    Attributes:
        view: the model that was run.
        weights: attention; row i holds the weights by which token i takes from the others.
        gradients: of the targets' logits by `weights`.
        readout: (batch, tokens), the share that the head's reading of each last token has in the whole; sums to 1.
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
    """Share of every patch in the tokens that the head reads, over all blocks and without the identity.

    Args:
        found: for the head's reading of the tokens.
        matrices: A of each block, (batch, tokens, tokens), from the last block back.

    Returns:
        (batch, grid, grid).
    """
    total = torch.zeros_like(found.readout)
    # The row r (I + A_n) ... (I + A_1) - r, without a square product. Without r too, beside which
    # float32 would round weak gradients away.
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
    """Run a view (`view_of`) of a classifier and its gradient once, keeping the attention of every block.

    Works on models whose attention is between all of an image's patches, given in raster order after any class and
    register tokens: RetFound, ViT, DINOv2, DeiT, BEiT.

    Args:
        view: of the classifier.
        pixel_values: must require gradients, through which they reach the attention of a frozen model.
        target: as for `resolve_targets`.

    Raises:
        BadModelError: another architecture.
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
        name = type(view).__name__
        message = f"{name} has no attention among all patches of an image; use `method=integrated_gradients`"
        raise BadModelError(message, model=name)
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
