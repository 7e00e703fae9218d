"""A network that follows another one: the teacher of DINO, the momentum encoder of MoCo-v3."""

import copy
import math

from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def follower(network: nn.Module) -> nn.Module:
    """A copy that no gradient reaches."""
    return copy.deepcopy(network).requires_grad_(False)


def follow(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """average = momentum x average + (1 - momentum) x network, for all parameters at once."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(network.parameters()), None)


def momentum_at(progress: float, start: float) -> float:
    """From `start` to 1 by half a cosine (Grill et al. 2020)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2
