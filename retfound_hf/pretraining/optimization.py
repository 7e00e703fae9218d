"""The optimiser of the recipe: AdamW without decay on vectors, warm-up and half a cosine per step."""

import math
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from .lars import Lars


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay, and vectors (biases, norms) without, as in MAE's code.

    `set_schedule` knows them by their order, which checkpoints keep.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float], name: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW or LARS in one fused kernel, which can also pass over a step without asking the host (`guarded_step`)."""
    if name == "lars":
        return Lars(parameter_groups(model, weight_decay), learning_rate)
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=True)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linear to 1 at `warmup`, then half a cosine to 0 (He et al. 2022, code).

    Args:
        progress: finished share of the run before the step.
        warmup: share of the run that is warm-up.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-12), 1.0)))


def warmup_share(warmup_steps: float, total_steps: int) -> float:
    """Warm-up as a share of the run; below 1 it is one already."""
    return warmup_steps if warmup_steps < 1 else min(warmup_steps / total_steps, 1.0)


def weight_decay_at(progress: float, start: float, end: float | None) -> float:
    """Weight decay on its way from `start` to `end` by half a cosine (Caron et al. 2021); constant for None."""
    return start if end is None else end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def set_schedule(optimizer: Any, learning_rate: float, weight_decay: float) -> None:
    """What the coming step of an optimiser of `parameter_groups` has; vectors have no decay, whatever it is."""
    decayed, plain = optimizer.param_groups
    decayed.update(lr=learning_rate, weight_decay=weight_decay)
    plain.update(lr=learning_rate)


def gradient_norm(accelerator: Accelerator, model: nn.Module, max_grad_norm: float) -> Tensor:
    """Norm of all gradients before clipping, a scalar on the device; 0 for `max_grad_norm` clips nothing."""
    return accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)


def guarded_step(accelerator: Accelerator, optimizer: Any, finite: Tensor) -> None:
    """Step where `finite` (a bool scalar on the device) holds; else weights, moments and counts stay as they are.

    The decision is made on the device: asking for it on the host would stop the GPU at every step. It takes the way
    by which torch's GradScaler tells fused optimisers of overflow; with fp16 the scaler itself does that.
    """
    if accelerator.scaler is not None:
        optimizer.step()
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.found_inf = (~finite).float()
    try:
        optimizer.step()
    finally:
        del inner.found_inf
