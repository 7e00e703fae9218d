"""What the loop asks of an objective, and no more."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Random numbers for `count` images, drawn on the CPU: one row per image in every tensor. The object is sent to the
# loader's workers, and must be light.
Draw = Callable[[int, torch.Generator], dict[str, Tensor]]


class Objective(nn.Module):
    """A network with the loss that trains it.

    All randomness comes from `draw`, which sees the images of a whole optimiser step on all processes at once: every
    process takes its rows. So the result depends neither on the number of processes nor on what was drawn before, and
    a resumed run has no generator to restore.

    All tensors of the module beside `model` (a teacher, centres, queues, heads) are the objective's own state: they
    are saved in every checkpoint as parameters and buffers.

    Attributes:
        model: what the run is for; its folder is the result.
        draw: see `Draw`.
        log_names: names of the values that `forward` returns beside the loss.
    """

    log_names: ClassVar[tuple[str, ...]] = ()
    model: PreTrainedModel
    draw: Draw

    @property
    def encoder(self) -> PreTrainedModel:
        """The network whose features are probed."""
        return self.model.base_model

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """The network's inputs, on the images' device and without gradients.

        Args:
            images: uint8 (batch, 3, side, side), as they lie in the shards.
            draws: what `draw` gave for these images, on the same device.
        """
        raise NotImplementedError

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch (a scalar) and float (len(log_names),) values to log, detached."""
        raise NotImplementedError

    def after_step(self, progress: float) -> None:
        """Follow an optimiser step, as a momentum encoder does; `progress` is the finished share of the run."""

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]] | None:
        """Rows of pictures, each float (3, height, width) in 0..1, of what is learned; None where there are none.

        Args:
            images, draws: as in `views`.
        """
        return None

    preview_titles: ClassVar[tuple[str, ...]] = ()
