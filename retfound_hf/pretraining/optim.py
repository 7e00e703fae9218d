"""Optimisation: AdamW or LARS, warm-up and half a cosine, gradient guard, batch-norm statistics."""

import math
from collections.abc import Callable
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .objectives.distributed import mean_of_all

TRUST = 1e-3
MOMENTUM = 0.9


class Lars(torch.optim.SGD):
    """SGD with momentum; each matrix steps by a share of its own norm, with the decay counted as gradient.

    gradient <- (gradient + decay x weight) x TRUST x |weight| / |gradient + decay x weight|. Vectors (biases, norms)
    step by their gradient, as in the released code of SimCLR. Nothing asks the host for a norm.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float):
        super().__init__(groups, lr=learning_rate, momentum=MOMENTUM, fused=True)
        # Else the fused kernel leaves them as they come from memory, where it passes over the first step.
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            self._adapt([parameter for parameter in group["params"] if parameter.ndim > 1], group["weight_decay"])
            group["weight_decay"] = 0.0  # it is in the gradients now
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    @staticmethod
    def _adapt(parameters: list[torch.Tensor], decay: float) -> None:
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_add_(gradients, parameters, alpha=decay)
        of_weights, of_gradients = (torch.stack(torch._foreach_norm(values)) for values in (parameters, gradients))
        ratios = torch.where((of_weights > 0) & (of_gradients > 0), TRUST * of_weights / of_gradients, 1.0)
        torch._foreach_mul_(gradients, list(ratios.unbind()))


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


class RunningStatistics:
    """Means and variances of all batch norms within, those of averaged networks too; nothing without batch norms.

    Without this one step that is not finite would stay in them for good, since a share of NaN is NaN.

    Args:
        network: on its device.
    """

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self.buffers = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]

    def keep(self) -> None:
        """Note them before the first forward pass of a step."""
        if self.buffers:
            self._kept = torch.cat(self.buffers)

    @torch.no_grad()
    def put_back(self, loss: Tensor, norm: Tensor) -> None:
        """Take those from before the step where its loss or its gradient's norm is not finite.

        As in `guarded_step` the decision is made on the device, and all processes make the same.

        Args:
            loss: scalar, of this process.
            norm: scalar, of all processes.
        """
        if not self.buffers:
            return
        finite = norm.isfinite() & mean_of_all(loss).isfinite()
        settled = torch.where(finite, torch.cat(self.buffers), self._kept)
        torch._foreach_copy_(self.buffers, settled.split([len(buffer) for buffer in self.buffers]))
