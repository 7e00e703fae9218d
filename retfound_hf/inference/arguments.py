"""Arguments that `evaluate` and `embed` share."""

from dataclasses import dataclass, field
from typing import Any, Literal

import torch

from ..runs.errors import RetFoundError


@dataclass
class ForwardArguments:
    output_dir: str = field(metadata={"help": "folder to write"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "write into a folder that is not empty"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "images per device and step"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "loader processes"})
    fp16: bool = field(default=False, metadata={"help": "half precision (T4 and other GPUs before Ampere)"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 (Ampere and later)"})
    on_bad_image: Literal["error", "skip"] = field(
        default="error", metadata={"help": "unreadable images: stop and name them, or skip and count them"}
    )
    seed: int = field(default=0, metadata={"help": "seed of a split by patient, where nothing else tells it"})

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise RetFoundError("--fp16 and --bf16 exclude each other; give one")
        if self.fp16 and not torch.accelerator.is_available():
            raise RetFoundError("--fp16 needs a GPU, and there is none here; leave it out")
        if self.per_device_eval_batch_size < 1:
            raise RetFoundError(f"--per_device_eval_batch_size {self.per_device_eval_batch_size} must be at least 1")

    @property
    def options(self) -> dict[str, Any]:
        """As `forward.forward_here` takes them."""
        return {
            "batch_size": self.per_device_eval_batch_size,
            "num_workers": self.dataloader_num_workers,
            "precision": "fp16" if self.fp16 else "bf16" if self.bf16 else "no",
        }
