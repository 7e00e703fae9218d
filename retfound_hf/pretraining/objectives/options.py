"""What a run may set of an objective; unset, the published value holds."""

from dataclasses import dataclass, field
from typing import Literal

from ...runs.errors import RetFoundError

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
