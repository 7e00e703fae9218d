"""Differentiable all-gather and all-reduce for losses over the global batch, and synchronised batch norm."""

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.distributed.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def all_gather(values: Tensor) -> Tensor:
    """(rows, ...) of this process -> (processes * rows, ...) of all, in their order."""
    return values if num_processes() == 1 else torch.cat(functional.all_gather(values))


def all_reduce_mean(values: Tensor) -> Tensor:
    """The mean over processes, on each."""
    return values if num_processes() == 1 else functional.all_reduce(values) / num_processes()


def convert_sync_batchnorm(network: nn.Module, device: torch.device) -> nn.Module:
    """Make every batch norm of a network use the images of all processes; weights, statistics and names stay.

    On one process the network stays as it is. The norms of heads, and all on a CPU, become `DistributedBatchNorm`,
    which never makes the host wait. Those of a ResNet on an accelerator become torch's, which does at every layer, but
    keeps one activation where ours keeps three.
    """
    if num_processes() == 1:
        return network
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm1d) or (isinstance(child, _BatchNorm) and device.type == "cpu"):
                norm = DistributedBatchNorm(child.num_features, child.eps, child.momentum, child.affine)
                norm.load_state_dict(child.state_dict())
                norm.requires_grad_(next(child.parameters(), norm.running_mean).requires_grad)
                setattr(parent, name, norm)
            elif isinstance(child, _BatchNorm):
                setattr(parent, name, nn.SyncBatchNorm.convert_sync_batchnorm(child))
    return network


class DistributedBatchNorm(_BatchNorm):
    """Batch norm over the images of all processes, each with as many."""

    def _check_input_dim(self, values: Tensor) -> None:
        pass

    def forward(self, values: Tensor) -> Tensor:
        """(batch, channels, ...) -> the same shape."""
        if not self.training:
            return super().forward(values)
        self.num_batches_tracked.add_(1)
        others = [axis for axis in range(values.ndim) if axis != 1]
        column = (-1, *[1] * (values.ndim - 2))
        # The deviations from the mean of all, not squares less a square, which cancel.
        mean = all_reduce_mean(values.float().mean(others))
        centred = values.float() - mean.view(column)
        variance = all_reduce_mean(centred.square().mean(others))
        count = values.numel() // values.shape[1] * num_processes()
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / (count - 1), self.momentum)
        result = centred * (variance + self.eps).rsqrt().view(column)
        if self.affine:
            result = result * self.weight.view(column) + self.bias.view(column)
        return result.to(values.dtype)
