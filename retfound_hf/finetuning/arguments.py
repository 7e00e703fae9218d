"""Arguments of fine-tuning; the defaults are the official recipe (Zhou et al. 2023, Methods; released code)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import TrainingArguments, integrations

from ..errors import BadArgumentError, RetFoundError, one_line, require, require_range
from ..evaluation.metrics import lower_is_better
from ..evaluation.report import ReportArguments
from ..inference.predict import forward_options
from ..models.configuration_retfound import PRESETS
from ..models.loading import STARTING_POINTS, accepted_weights
from ..options import build_arguments, check_trackers
from ..record import read_run_record
from .methods import LAYER_DECAY, METHODS, FullOptions


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
            raise BadArgumentError(
                "pass exactly one of `model_name_or_path` and `config_name`",
                field="model_name_or_path", value=self.model_name_or_path,
            )  # fmt: skip
        if self.config_name is not None:
            require("config_name", self.config_name, PRESETS)


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
    patient_column: str | None = field(
        default=None,
        metadata={
            "help": "column of the patients; image: names of the images without left or right; none: each image is a "
            "patient; default: patient_id"
        },
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "classes in their order, such as grades; default: as stated, or sorted"}
    )
    positive_class: str | None = field(
        default=None,
        metadata={"help": "which of two classes is the finding, for curves and reports; default: as their names tell"},
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
        require_range("train_fraction", self.train_fraction, 0, 1, open_low=True)


@dataclass
class MethodArguments:
    method: str = field(
        default="full",
        metadata={"help": "train all weights, a LoRA adapter with the head, or the head alone", "choices": METHODS},
    )
    base_learning_rate: float | None = field(
        default=None,
        metadata={"help": "peak learning rate per 256 images of the effective batch; default: 5e-3 full, 2e-2 lora"},
    )
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

    def __post_init__(self) -> None:
        require("method", self.method, METHODS)
        require_range("random_erasing", self.random_erasing, 0, 1)
        require_range("mixup", self.mixup, 0)
        require_range("cutmix", self.cutmix, 0)


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
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "trackers: tensorboard, trackio, wandb, or others of Trainer"},
    )
    seed: int = field(default=0, metadata={"help": "seed of initialisation, shuffling and augmentation"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "loader processes"})
    remove_unused_columns: bool = field(default=False, metadata={"help": "false: the collator needs all columns"})

    def __post_init__(self) -> None:
        if not self.output_dir:
            raise BadArgumentError("`output_dir` is missing; give the folder to write", field="output_dir")
        if self.max_steps <= 0:
            require_range("num_train_epochs", self.num_train_epochs, 0, open_low=True)
        require_range("label_smoothing_factor", self.label_smoothing_factor, 0, 0.99)
        if self.fp16 and not torch.accelerator.is_available():
            raise BadArgumentError("`fp16` needs a GPU, and there is none here", field="fp16", value=True)
        installed = integrations.get_available_reporting_integrations()
        self.report_to = check_trackers(self.report_to, integrations.INTEGRATION_TO_CALLBACK, installed) or ["none"]
        self.remove_unused_columns = False  # there are none: the collator reads all
        for name, value in UNFIT.items():
            if getattr(self, name, None) == value:
                message = f"`{name}={value}` does not fit images with labels; leave it out"
                raise BadArgumentError(message, field=name, value=value)
        if self.save_strategy == "no" and self.load_best_model_at_end:
            raise BadArgumentError(
                "`save_strategy=no` leaves no epoch to choose the best from; pass `load_best_model_at_end=False` too, "
                "to keep the last one", field="save_strategy", value="no",
            )  # fmt: skip
        if self.lr_scheduler_kwargs is None and self.lr_scheduler_type == "cosine_with_min_lr":
            self.lr_scheduler_kwargs = {"min_lr": 1e-6}
        # Before Trainer's own default, which is the loss.
        self.metric_for_best_model: str = self.metric_for_best_model or "selection"
        if self.greater_is_better is None:  # Trainer's own guess is that all but the loss are
            self.greater_is_better: bool = not lower_is_better(self.metric_for_best_model.removeprefix("eval_"))
        # accelerate joins processes on CPUs only when it is told.
        self.use_cpu: bool = self.use_cpu or not torch.accelerator.is_available()
        try:
            super().__post_init__()
        except (ValueError, ImportError, RuntimeError) as error:  # options that exclude each other, or lack a package
            raise RetFoundError(f"options of the training: {one_line(error)}") from error


# Options of Trainer for data of other kinds, which would stop a run after its first steps or its first epoch.
UNFIT: dict[str, Any] = {
    "train_sampling_strategy": "group_by_length", "group_by_length": True, "batch_eval_metrics": True,
    "eval_do_concat_batches": False, "prediction_loss_only": True,
}  # fmt: skip


@dataclass
class DecisionArguments:
    calibrate: bool = field(
        default=False,
        metadata={
            "help": "after training, calibrate the head: fit slope and intercepts of its logits on validation images"
        },
    )
    target_sensitivity: float = field(
        default=0.9, metadata={"help": "per class, validation chooses the threshold that reaches this sensitivity"}
    )
    target_specificity: float = field(default=0.9, metadata={"help": "and another one that reaches this specificity"})

    def __post_init__(self) -> None:
        for name in ("target_sensitivity", "target_specificity"):
            require_range(name, getattr(self, name), 0, 1, open_low=True)


def training_types() -> tuple[type, ...]:
    """Dataclasses of all that decides a training, the options of every row of `METHODS` among them."""
    own = dict.fromkeys(method.options for method in METHODS.values() if method.options is not None)
    return (ModelArguments, DataArguments, MethodArguments, FinetuneTrainingArguments, *own)


def argument_types() -> tuple[type, ...]:
    """Dataclasses of the command `finetune`."""
    return (*training_types(), DecisionArguments, ReportArguments)


def learned_something(model: str) -> bool:
    """Whether the pretraining of a model folder says so; other models have learned."""
    return read_run_record(model).get("has_learned", True)


class FinetuneArguments:
    """Options of one run by name, such as `args.seed`, whichever dataclass they stand in.

    Attributes:
        parts: instances of `argument_types()`; without the last two, those have their defaults.
        training, report: the parts for Trainer and for the report.
        quiet: print no log of the training.
    """

    def __init__(self, parts: tuple[Any, ...], quiet: bool = False):
        missing = [kind() for kind in (DecisionArguments, ReportArguments) if kind not in map(type, parts)]
        self.parts = (*parts, *missing)
        self.quiet = quiet
        self.training = next(part for part in self.parts if isinstance(part, FinetuneTrainingArguments))
        self.report = next(part for part in self.parts if isinstance(part, ReportArguments))

    def __getattr__(self, name: str) -> Any:
        for part in self.__dict__.get("parts", ()):
            if name in vars(part):
                return vars(part)[name]
        raise AttributeError(name)

    @classmethod
    def of(cls, model: str | Path, data: str | Path, output_dir: str | Path, **options: Any) -> "FinetuneArguments":
        """Arguments of the function `finetune`, see there."""
        is_preset = model in PRESETS and model not in STARTING_POINTS and not Path(model).exists()
        given = {"config_name" if is_preset else "model_name_or_path": str(model), "data": str(data), **options}
        return cls(build_arguments(argument_types(), {**given, "output_dir": str(output_dir)}), quiet=True)

    @property
    def is_balanced(self) -> bool:
        """Whether loss or draws make all classes count alike, whatever their frequency."""
        return "balanced" in (self.class_weights, self.sampler)

    @property
    def forward_options(self) -> dict[str, Any]:
        """Options of `inference.predict.forward_here`."""
        return forward_options(self)

    def resolve_rates(self, base: float) -> None:
        """Set the learning rate, from the effective batch (Goyal et al. 2017), and the layer decay, unless given.

        Layers that have learned nothing must learn as fast as the head: no decay for random weights, nor for those of
        a pretraining that learned nothing (measured in `scripts/benchmarks/small_data.py`).

        Args:
            base: rate per 256 images, of the method; `base_learning_rate` comes before it.
        """
        training = self.training
        if training.learning_rate is None:
            # `train_batch_size` is that of a process, which may drive several GPUs.
            batch = training.train_batch_size * training.gradient_accumulation_steps * training.world_size
            base = base if self.base_learning_rate is None else self.base_learning_rate
            training.learning_rate = base * batch / 256
        if self.layer_decay is None:
            full = next(part for part in self.parts if isinstance(part, FullOptions))
            is_new = self.config_name is not None or not learned_something(self.model_name_or_path)
            full.layer_decay = 1.0 if is_new else LAYER_DECAY
