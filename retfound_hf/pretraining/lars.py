"""LARS (You et al. 2017): large batches on convolutional networks, as SimCLR and SwAV were published with."""

from collections.abc import Callable
from typing import Any

import torch

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
