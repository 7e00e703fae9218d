"""The small networks between features and loss; they end with the run."""

from itertools import pairwise

from torch import nn


def mlp(*widths: int, last_norm: str | None = None) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; only a layer that no batch norm follows has a bias.

    Args:
        widths: of the input, the hidden layers and the output.
        last_norm: batch norm of the output: `affine`, `plain` (without weights), or None.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_norm is None))
    if last_norm is not None:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)
