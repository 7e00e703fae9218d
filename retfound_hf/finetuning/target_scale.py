"""Numbers of any unit, trained as standard deviations from their mean."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class TargetScale:
    """Mean and scale of the training targets, (targets,) each.

    An optimiser such as AdamW moves every weight by about the learning rate, whatever the loss: a head that had to
    give micrometres would need a hundred times the steps of one that gives millimetres. So the head gives standard
    deviations while it is trained, and the numbers themselves when it is done.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray) -> "TargetScale":
        """Of the training targets, (images,) or (images, targets); a constant target keeps its unit."""
        columns = targets.reshape(len(targets), -1).astype(np.float64)
        deviations = columns.std(axis=0)
        return cls(columns.mean(axis=0), np.where(deviations > 0, deviations, 1.0))

    def to_units(self, outputs: Tensor) -> Tensor:
        """What a head in training gave, (batch, targets), as numbers of the targets' unit in float32."""
        mean, scale = self._rows(torch.float32, outputs.device)
        return outputs.float() * scale + mean

    @torch.no_grad()
    def take_from(self, head: nn.Linear) -> None:
        """Make a head that gives the targets' unit one that gives standard deviations from the mean."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight / scale[:, None])
        head.bias.copy_((head.bias - mean) / scale)

    @torch.no_grad()
    def put_into(self, head: nn.Linear) -> None:
        """Make a trained head give the targets' unit."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight * scale[:, None])
        head.bias.copy_(head.bias * scale + mean)

    def _rows(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, scale = torch.tensor(np.stack([self.mean, self.scale]), dtype=dtype, device=device)
        return mean, scale
