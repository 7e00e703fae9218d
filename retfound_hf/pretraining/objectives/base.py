"""What the training loop asks of an objective, and the options that a run may set of it."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ...errors import RetFoundError

# Those that not every objective has.
OPTIONS = (
    "views", "temperature", "teacher_momentum", "num_prototypes", "head_width", "local_crops", "sinkhorn_epsilon",
)  # fmt: skip


@dataclass(kw_only=True)
class ObjectiveArguments:
    views: Literal["retina", "published"] | None = field(
        default=None,
        metadata={
            "help": "augmentation of the objectives beside mae: weakened for retinal images (default), or as published"
        },
    )
    temperature: float | None = field(
        default=None, metadata={"help": "of the objective's softmax; default: the published one"}
    )
    teacher_momentum: float | None = field(
        default=None, metadata={"help": "dino, moco_v3: of the averaged network at the start; it ends at 1"}
    )
    num_prototypes: int | None = field(
        default=None, metadata={"help": "swav: prototypes (3000); dino: outputs of the head (65536)"}
    )
    head_width: int | None = field(
        default=None,
        metadata={"help": "hidden layers of the head; default: simclr the features', moco_v3 4096, else 2048"},
    )
    local_crops: int | None = field(
        default=None, metadata={"help": "swav, dino: small crops beside the two large ones (6, 8)"}
    )
    sinkhorn_epsilon: float | None = field(
        default=None,
        metadata={"help": "swav: smaller makes assignments sharper, if the loss stays at log(num_prototypes) (0.05)"},
    )

    def __post_init__(self) -> None:
        if self.temperature is not None and not self.temperature > 0:
            raise RetFoundError(f"--temperature {self.temperature} must be above 0")
        if self.teacher_momentum is not None and not 0 <= self.teacher_momentum <= 1:
            raise RetFoundError(f"--teacher_momentum {self.teacher_momentum} must be in [0, 1]")
        if self.num_prototypes is not None and self.num_prototypes < 2:
            raise RetFoundError(f"--num_prototypes {self.num_prototypes} must be at least 2")
        if self.head_width is not None and self.head_width < 1:
            raise RetFoundError(f"--head_width {self.head_width} must be at least 1")
        if self.local_crops is not None and self.local_crops < 0:
            raise RetFoundError(f"--local_crops {self.local_crops} must be at least 0")
        if self.sinkhorn_epsilon is not None and not self.sinkhorn_epsilon > 0:
            raise RetFoundError(f"--sinkhorn_epsilon {self.sinkhorn_epsilon} must be above 0")

    def refuse_others(self, objective: str, accepted: tuple[str, ...]) -> None:
        """Raise for an option that is set and that `objective` does not have."""
        for name in OPTIONS:
            if getattr(self, name) is not None and name not in accepted:
                has = ", ".join(f"--{option}" for option in accepted) or "no options of this kind"
                raise RetFoundError(f"--{name} is not an option of --objective {objective}, which has {has}")


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
