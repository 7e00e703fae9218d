"""Arguments of fine-tuning; the defaults are the official recipe (Zhou et al. 2023, Methods; released code)."""

from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Literal

import torch
from transformers import TrainingArguments

from ..errors import RetFoundError
from ..evaluation.metrics import lower_is_better
from ..models.configuration_retfound import PRESETS
from ..models.starting_points import accepted_weights

# Peak learning rate per 256 images of the effective batch, by method. `full` is the official recipe. LoRA moves few
# parameters from zero and takes a larger one.
BASE_LEARNING_RATES = {"full": 5e-3, "lora": 2e-2, "linear": 0.0}


@dataclass
class ModelArguments:
    model_name_or_path: str | None = field(
        default=None, metadata={"help": f"weights to start from: {accepted_weights()}"}
    )
    config_name: str | None = field(
        default=None, metadata={"help": f"instead: train from scratch with this preset ({', '.join(PRESETS)})"}
    )
    image_size: int | None = field(
        default=None, metadata={"help": "input side in pixels, a multiple of the patch size; default: the model's"}
    )
    crop_fundus: Literal["auto", "yes", "no"] = field(
        default="auto", metadata={"help": "crop to the field of view; auto: as the model's folder says"}
    )

    def __post_init__(self) -> None:
        if (self.model_name_or_path is None) == (self.config_name is None):
            raise RetFoundError("give either --model_name_or_path FOLDER or --config_name PRESET, not both or neither")
        if self.config_name is not None and self.config_name not in PRESETS:
            raise RetFoundError(f"--config_name {self.config_name!r} is unknown; accepted: {', '.join(PRESETS)}")


@dataclass
class DataArguments:
    data: str = field(metadata={"help": "{train,val,test}/<class>/ folder, CSV or parquet table, or Hub dataset id"})
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "columns of the targets in a table; default: label"}
    )
    problem_type: str | None = field(
        default=None,
        metadata={"help": "single_label_classification, multi_label_classification or regression; default: by labels"},
    )
    image_column: str = field(default="image", metadata={"help": "column of the image paths in a table"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: the table's"}
    )
    split_fractions: list[float] = field(
        default_factory=lambda: [0.55, 0.15, 0.30],
        metadata={"help": "train, val and test shares where the data has no splits; split by patient where known"},
    )
    split_seed: int = field(default=0, metadata={"help": "seed of that split, apart from the seed of training"})
    train_fraction: float = field(
        default=1.0,
        metadata={"help": "share of the training patients to use, drawn by --seed; smaller ones lie in larger ones"},
    )
    on_bad_image: Literal["error", "skip"] = field(
        default="error", metadata={"help": "unreadable images: stop and name them, or skip and count them"}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "where decoded images are kept between runs; default: the datasets cache"}
    )

    def __post_init__(self) -> None:
        if not 0 < self.train_fraction <= 1:
            raise RetFoundError(f"--train_fraction {self.train_fraction} must be above 0 and at most 1; 1 is all")


@dataclass
class MethodArguments:
    method: Literal["full", "lora", "linear"] = field(
        default="full", metadata={"help": "train all weights, a LoRA adapter with the head, or the head alone"}
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={"help": "peak learning rate per 256 images of the effective batch; default: 5e-3 full, 2e-2 lora"},
    )
    layer_decay: float = field(default=0.65, metadata={"help": "full: rate of a block per that of the one above"})
    drop_path: float = field(default=0.2, metadata={"help": "full: stochastic depth of the last block"})
    class_weights: Literal["none", "balanced"] = field(
        default="none", metadata={"help": "balanced: weight classes in the loss by the inverse of their frequency"}
    )
    sampler: Literal["random", "balanced"] = field(
        default="random", metadata={"help": "balanced: draw training images so that classes come equally often"}
    )
    augmentation: Literal["recipe", "light", "none"] = field(
        default="recipe",
        metadata={"help": "recipe: random crop, flip, RandAugment, erasing; light: mild random crop and flip"},
    )
    random_erasing: float = field(default=0.25, metadata={"help": "probability of random erasing (recipe)"})
    mixup: float = field(default=0.0, metadata={"help": "alpha of mixup; 0 is off"})
    cutmix: float = field(default=0.0, metadata={"help": "alpha of cutmix; 0 is off"})
    lora_rank: int = field(default=16, metadata={"help": "lora: rank"})
    lora_alpha: int = field(default=16, metadata={"help": "lora: scale of the update is alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: dropout before the adapter"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["query", "value"], metadata={"help": "lora: linear layers to adapt, by name"}
    )
    merge: bool = field(default=False, metadata={"help": "lora: write a plain model folder instead of the adapter"})

    def __post_init__(self) -> None:
        for name in ("drop_path", "lora_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be in [0, 1)")
        if not 0 <= self.random_erasing <= 1:
            raise RetFoundError(f"--random_erasing {self.random_erasing} is a probability: it must be in [0, 1]")
        if not 0 < self.layer_decay <= 1:
            raise RetFoundError(f"--layer_decay {self.layer_decay} must be above 0 and at most 1; 1 is no decay")
        for name in ("mixup", "cutmix"):
            if getattr(self, name) < 0:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least 0; 0 is off")
        if self.lora_rank < 1:
            raise RetFoundError(f"--lora_rank {self.lora_rank} must be at least 1")


@dataclass
class FinetuneTrainingArguments(TrainingArguments):
    """`TrainingArguments` with the recipe's defaults; everything that Trainer does stays available.

    50 epochs, 10 of them (a fifth) warm-up, cosine to 1e-6, batch 16, AdamW with weight decay 0.05, no clipping,
    label smoothing 0.1, evaluation every epoch and the best one kept.
    """

    output_dir: str = field(default="", metadata={"help": "folder to write"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "write into a folder that is not empty"})
    num_train_epochs: float = field(default=50.0, metadata={"help": "passes over the training images"})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "training images per device and step"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "images per device in evaluation"})
    learning_rate: float | None = field(  # type: ignore[assignment]
        default=None, metadata={"help": "peak learning rate; default: base_learning_rate x effective batch / 256"}
    )
    lr_scheduler_type: str = field(default="cosine_with_min_lr", metadata={"help": "schedule, stepped every batch"})
    lr_scheduler_kwargs: dict | str | None = field(
        default=None, metadata={"help": "options of the schedule; default: of cosine_with_min_lr a min_lr of 1e-6"}
    )
    warmup_steps: float = field(default=0.2, metadata={"help": "warm-up: steps, or below 1 a share of all"})
    weight_decay: float = field(default=0.05, metadata={"help": "of matrices; biases, norms, positions have none"})
    max_grad_norm: float = field(default=0.0, metadata={"help": "gradient clipping; 0 is off"})
    label_smoothing_factor: float = field(default=0.1, metadata={"help": "label smoothing in the loss"})
    eval_strategy: str = field(default="epoch", metadata={"help": "when to evaluate on the validation split"})
    save_strategy: str = field(default="epoch", metadata={"help": "when to write a checkpoint"})
    save_total_limit: int | None = field(default=1, metadata={"help": "checkpoints kept beside the best"})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "keep the best epoch, not the last"})
    logging_steps: float = field(default=10, metadata={"help": "steps between log lines"})
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "keep Trainer's checkpoints beside the finished folder"}
    )
    # HfArgumentParser reads unions of three by position.
    report_to: None | str | list[str] = field(  # noqa: RUF036
        default="none", metadata={"help": "trackers, such as tensorboard"}
    )
    seed: int = field(default=0, metadata={"help": "seed of initialisation, shuffling and augmentation"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "loader processes"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "false: the collator needs all columns"})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise RetFoundError("--output_dir is missing; give the folder to write")
        if self.num_train_epochs <= 0 and self.max_steps <= 0:
            raise RetFoundError(f"--num_train_epochs {self.num_train_epochs} must be above 0")
        if not 0 <= self.label_smoothing_factor < 1:
            raise RetFoundError(f"--label_smoothing_factor {self.label_smoothing_factor} must be in [0, 1)")
        if self.fp16 and not torch.accelerator.is_available():
            raise RetFoundError("--fp16 needs a GPU, and there is none here; leave it out")
        if "tensorboard" in (self.report_to or ()) and find_spec("tensorboard") is None:
            raise RetFoundError("--report_to tensorboard: it is not installed; pip install tensorboard")
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": 1e-6}
        # Before Trainer's own default, which is the loss.
        self.metric_for_best_model = self.metric_for_best_model or "selection"
        if self.greater_is_better is None:  # Trainer's own guess is that all but the loss are
            self.greater_is_better = not lower_is_better(self.metric_for_best_model.removeprefix("eval_"))
        # accelerate joins processes on CPUs only when it is told.
        self.use_cpu = self.use_cpu or not torch.accelerator.is_available()
        super().__post_init__()

    def resolve_learning_rate(self, method: str, base: float | None) -> None:
        """Set `learning_rate`, unless it is given, from the base rate and the effective batch (Goyal et al. 2017)."""
        if self.learning_rate is None:
            # `train_batch_size` is that of a process, which may drive several GPUs.
            batch = self.train_batch_size * self.gradient_accumulation_steps * self.world_size
            self.learning_rate = (BASE_LEARNING_RATES[method] if base is None else base) * batch / 256
