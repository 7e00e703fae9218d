"""Arguments of pretraining; the defaults are the paper's recipe."""

import os
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import torch

from ..errors import RetFoundError, nearest
from ..models.configuration_retfound import PRESETS
from .objectives import OBJECTIVES
from .objectives.base import ObjectiveArguments

# The other encoder that objectives without a decoder train, from random weights.
RESNET = "resnet-50"


@dataclass
class ModelArguments(ObjectiveArguments):
    config_name: str | None = field(
        default=None,
        metadata={
            "help": f"preset ({', '.join(PRESETS)}, or {RESNET} for objectives other than mae); alone: from scratch; "
            "with a ViT-MAE folder: its settings"
        },
    )
    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "start from these weights: a RETFound or ViT-MAE folder or Hub id (facebook/vit-mae-large)"},
    )
    modality: Literal["cfp", "oct"] | None = field(
        default=None, metadata={"help": "of the images; default: the preset's or the folder's"}
    )
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of hidden patches; default: the preset's (0.75 CFP, 0.85 OCT)"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "input side in pixels of a model from scratch; default: the preset's"}
    )
    objective: str = field(default="mae", metadata={"help": f"what is learned: {', '.join(OBJECTIVES)}"})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config_name is None and self.model_name_or_path is None:
            raise RetFoundError(
                "give --config_name PRESET (from scratch), --model_name_or_path FOLDER (its weights), or both"
            )
        presets = (*PRESETS,) if self.objective == "mae" else (*PRESETS, RESNET)
        if self.config_name is not None and self.config_name not in presets:
            raise RetFoundError(
                f"--config_name {self.config_name!r} is unknown{nearest(self.config_name, presets)}; --objective "
                f"{self.objective} takes: {', '.join(presets)}"
            )
        if self.mask_ratio is not None and not 0 < self.mask_ratio < 1:
            raise RetFoundError(f"--mask_ratio {self.mask_ratio} must be above 0 and below 1")
        if self.image_size is not None and self.image_size < 1:
            raise RetFoundError(f"--image_size {self.image_size} must be at least 1 pixel")
        if self.objective not in OBJECTIVES:
            raise RetFoundError(
                f"--objective {self.objective!r} is unknown{nearest(self.objective, OBJECTIVES)}; accepted: "
                f"{', '.join(OBJECTIVES)}"
            )


if TYPE_CHECKING:
    from .objectives.base import Recipe

RECIPE = "default: the objective's recipe"


@dataclass
class DataArguments:
    train_data: list[str] = field(
        default_factory=list,
        metadata={"help": "folders of shards made by prepare_images, parquet files, or Hub dataset ids; several join"},
    )
    streaming: bool = field(
        default=False, metadata={"help": "fetch shards as they are needed, without a copy of all of them"}
    )
    mixed_shards: int = field(
        default=4,
        metadata={"help": "with --streaming: shards whose images are mixed; twice as many are here at a time"},
    )
    cache_dir: str | None = field(
        default=None,
        metadata={
            "help": "where datasets keeps its memory-mapped copy (default: the datasets cache), or --streaming its "
            "open shards (default: the output folder)"
        },
    )
    max_bad_share: float = field(
        default=0.01, metadata={"help": "share of unreadable images above which the run stops; others are replaced"}
    )
    probe_data: str | None = field(
        default=None, metadata={"help": "labelled set on whose features a linear head is fitted now and then"}
    )
    probe_epochs: float = field(default=10, metadata={"help": "epochs between two such probes"})
    preview_steps: int = field(default=500, metadata={"help": "steps between reconstruction previews; 0: none"})

    def __post_init__(self) -> None:
        if not self.train_data:
            raise RetFoundError("--train_data is missing; give a folder of shards made by prepare_images")
        if not 0 <= self.max_bad_share <= 1:
            raise RetFoundError(f"--max_bad_share {self.max_bad_share} is a share: it must be in [0, 1]")
        if self.mixed_shards < 1:
            raise RetFoundError(f"--mixed_shards {self.mixed_shards} must be at least 1")
        if self.preview_steps < 0:
            raise RetFoundError(f"--preview_steps {self.preview_steps} must be at least 0")
        if self.probe_epochs <= 0:
            raise RetFoundError(f"--probe_epochs {self.probe_epochs} must be above 0")


@dataclass
class PretrainingArguments:
    """Names as in `TrainingArguments`, where the meaning is the same."""

    output_dir: str = field(metadata={"help": "folder to write"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace what is in the output folder"})
    num_train_epochs: float = field(default=800, metadata={"help": "passes over the images"})
    max_steps: int = field(default=-1, metadata={"help": "optimiser steps instead of epochs, if above 0"})
    per_device_train_batch_size: int = field(default=224, metadata={"help": "images per device and forward pass"})
    gradient_accumulation_steps: int = field(default=1, metadata={"help": "forward passes per optimiser step"})
    base_learning_rate: float | None = field(
        default=None, metadata={"help": f"peak learning rate per 256 images of the effective batch; {RECIPE}"}
    )
    learning_rate: float | None = field(
        default=None, metadata={"help": "peak learning rate; default: base_learning_rate x effective batch / 256"}
    )
    warmup_steps: float | None = field(
        default=None, metadata={"help": f"linear warm-up: steps, or below 1 a share of all; {RECIPE}"}
    )
    weight_decay: float | None = field(
        default=None, metadata={"help": f"of matrices; biases and norms have none; {RECIPE}"}
    )
    final_weight_decay: float | None = field(
        default=None, metadata={"help": "that weight_decay comes to by half a cosine; default: as it is, dino: 0.4"}
    )
    optim: Literal["adamw", "lars"] | None = field(
        default=None, metadata={"help": f"optimiser; {RECIPE}, lars for simclr and swav on a ResNet"}
    )
    adam_beta1: float = field(default=0.9, metadata={"help": "AdamW"})
    adam_beta2: float | None = field(default=None, metadata={"help": f"AdamW; {RECIPE}"})
    max_grad_norm: float | None = field(default=None, metadata={"help": f"gradient clipping; 0 is off; {RECIPE}"})
    seed: int = field(default=0, metadata={"help": "seed of initialisation, order, crops and masks"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 (Ampere and later)"})
    fp16: bool = field(default=False, metadata={"help": "half precision with loss scaling (T4 and before Ampere)"})
    torch_compile: bool = field(default=False, metadata={"help": "compile the transformer blocks"})
    gradient_checkpointing: bool = field(
        default=False, metadata={"help": "compute activations twice instead of keeping them: less memory"}
    )
    dataloader_num_workers: int = field(
        default_factory=lambda: min(4, os.cpu_count() or 1), metadata={"help": "loader processes per device"}
    )
    logging_steps: int = field(default=10, metadata={"help": "steps between log lines"})
    save_steps: int = field(default=500, metadata={"help": "steps between checkpoints; 0: only at the end"})
    save_total_limit: int = field(default=2, metadata={"help": "checkpoints to keep, the newest; 0: all"})
    resume_from_checkpoint: str | None = field(
        default=None, metadata={"help": "go on from a checkpoint folder, or from the `latest` in the output folder"}
    )
    on_non_finite: Literal["stop", "skip"] = field(
        default="stop", metadata={"help": "NaN or infinite loss: stop and name the images, or skip and count the step"}
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"], metadata={"help": "trackers of Accelerate, such as tensorboard or wandb"}
    )

    def __post_init__(self) -> None:
        if self.max_steps <= 0 and self.num_train_epochs <= 0:
            raise RetFoundError(f"--num_train_epochs {self.num_train_epochs} must be above 0")
        if not 0 <= self.seed < 2**32:
            raise RetFoundError(f"--seed {self.seed} must be at least 0 and below 2**32")
        for name in ("per_device_train_batch_size", "gradient_accumulation_steps", "logging_steps"):
            if getattr(self, name) < 1:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least 1")
        for name in (
            "warmup_steps",
            "weight_decay",
            "final_weight_decay",
            "max_grad_norm",
            "save_steps",
            "save_total_limit",
            "dataloader_num_workers",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 0:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least 0")
        for name in ("base_learning_rate", "learning_rate"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be above 0")
        for name in ("adam_beta1", "adam_beta2"):
            if getattr(self, name) is not None and not 0 <= getattr(self, name) < 1:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least 0 and below 1")
        if self.fp16 and self.bf16:
            raise RetFoundError("--fp16 and --bf16 exclude each other; give one")
        if self.fp16 and not torch.accelerator.is_available():
            raise RetFoundError("--fp16 needs a GPU, and there is none here; leave it out")

    def with_recipe(self, recipe: "Recipe") -> "PretrainingArguments":
        """The same with the recipe's value for whatever is not set; a decay that is set stays as it is.

        Raises:
            RetFoundError: another optimiser than the recipe's, and no learning rate or weight decay for it.
        """
        has_rate = self.learning_rate is not None or self.base_learning_rate is not None
        if self.optim not in (None, recipe.optim) and (not has_rate or self.weight_decay is None):
            raise RetFoundError(
                f"--optim {self.optim} is not the recipe's, whose learning rate and weight decay are for "
                f"{recipe.optim}; give --base_learning_rate (or --learning_rate) and --weight_decay too"
            )
        own = dict(vars(recipe))
        if self.weight_decay is not None:
            own["final_weight_decay"] = None
        return replace(self, **{name: value for name, value in own.items() if getattr(self, name) is None})

    @property
    def mixed_precision(self) -> str | None:
        """For `Accelerator`; None leaves it to the configuration of `accelerate launch`."""
        return "fp16" if self.fp16 else "bf16" if self.bf16 else None

    def peak_learning_rate(self, global_batch: int) -> float:
        """The given rate, or the base rate scaled to the effective batch (Goyal et al. 2017)."""
        return self.base_learning_rate * global_batch / 256 if self.learning_rate is None else self.learning_rate
