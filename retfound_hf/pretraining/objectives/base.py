"""What the loop asks of an objective, and no more."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

# Random numbers for `count` images, drawn on the CPU: one row per image in every tensor. The object is sent to the
# loader's workers, and must be light.
Draw = Callable[[int, torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Recipe:
    """The published optimisation of an objective, which flags override; names and units as in the arguments."""

    base_learning_rate: float
    warmup_steps: float
    weight_decay: float
    final_weight_decay: float | None = None
    adam_beta2: float = 0.999
    max_grad_norm: float = 0.0
    optim: str = "adamw"


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
        recipe: how the network is optimised unless the run says otherwise.
        log_names: names of the values that `forward` returns beside the loss.
        option_names: those of `ObjectiveArguments` that it takes.
        has_decoder: `model` is the masked autoencoder, not an encoder alone.
        adds_up: the loss of a batch is the mean of the losses of its parts, so that gradients may be accumulated.
    """

    log_names: ClassVar[tuple[str, ...]] = ()
    option_names: ClassVar[tuple[str, ...]] = ()
    has_decoder: ClassVar[bool] = False
    adds_up: ClassVar[bool] = False
    model: PreTrainedModel
    draw: Draw
    recipe: Recipe

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

    def before_step(self, progress: float, epochs: float) -> None:
        """Set what follows a schedule; `progress` is the finished share of the run, `epochs` how many are done."""

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The mean loss over the batch (a scalar) and float (len(log_names),) values to log, detached."""
        raise NotImplementedError

    def held(self, epochs: float) -> Iterable[nn.Parameter]:
        """Parameters that train, but that the coming step leaves as they are."""
        return ()

    def after_step(self, progress: float) -> None:
        """Follow an optimiser step, as a momentum encoder does; `progress` is the finished share of the run."""

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]] | None:
        """Rows of pictures, each float (3, height, width) in 0..1, of what is learned; None where there are none.

        Args:
            images, draws: as in `views`.
        """
        return None

    preview_titles: ClassVar[tuple[str, ...]] = ()
