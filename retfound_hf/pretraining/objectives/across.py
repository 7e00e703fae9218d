"""Tensors across processes, with gradients: a loss over all of them, on each a part.

Every process computes the mean loss of its own images, which may depend on what others computed. A gradient that comes
back here is summed over processes, and `DistributedDataParallel` divides the gradients of weights by their number: the
result is the gradient of the mean loss over all images, as on one process.
"""

import torch
from torch import Tensor
from torch import distributed as dist
from torch.distributed.nn import functional


def num_processes() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    return dist.get_rank() if num_processes() > 1 else 0


def gather(values: Tensor) -> Tensor:
    """(rows, ...) of this process -> (processes * rows, ...) of all, in their order."""
    return values if num_processes() == 1 else torch.cat(functional.all_gather(values))


def sum_of_all(values: Tensor) -> Tensor:
    """The sum over processes, on each."""
    return values if num_processes() == 1 else functional.all_reduce(values)


def mean_of_all(values: Tensor) -> Tensor:
    """The mean over processes, on each."""
    return sum_of_all(values) / num_processes()
