"""Running statistics of batch norms, which a forward pass changes before anyone knows whether its step is finite."""

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .objectives.across import mean_of_all


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
