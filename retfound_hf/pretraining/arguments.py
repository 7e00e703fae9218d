"""Arguments of pretraining; the defaults are the paper's recipe. The options of objectives come from `OBJECTIVES`."""

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, make_dataclass, replace
from typing import Any, Literal, NamedTuple, get_type_hints

import torch
from accelerate.tracking import get_available_trackers
from accelerate.utils import LoggerType

from ..data.remote import check_address
from ..errors import BadArgumentError, require, require_range
from ..files import is_remote
from ..models.configuration_retfound import PRESETS
from ..options import build_arguments, check_ranges, check_trackers, option, parse_arguments
from ..vocabulary import MODALITIES
from .objectives import OBJECTIVES
from .objectives.base import RESNET, Objective, ObjectiveOptions, Recipe

FRESH_RATE = 5e-4  # of random weights at small batches
RECIPE = "default: the objective's recipe"


@dataclass
class ModelArguments:
    config_name: str | None = option(
        None,
        f"preset ({', '.join(PRESETS)}, or {RESNET} for objectives other than mae); alone: from scratch; with a "
        "ViT-MAE folder: its settings",
    )
    model_name_or_path: str | None = option(
        None, "start from these weights: a RETFound or ViT-MAE folder or Hub id (facebook/vit-mae-large)"
    )
    modality: str | None = option(
        None, f"of the images ({', '.join(MODALITIES)}); default: the preset's or the folder's"
    )
    mask_ratio: float | None = option(
        None, "share of hidden patches; default: the preset's (0.75 CFP, 0.85 OCT)", above=0, below=1
    )
    image_size: int | None = option(None, "input side in pixels of a model from scratch; default: the preset's", 1)

    def __post_init__(self) -> None:
        if self.config_name is None and self.model_name_or_path is None:
            raise BadArgumentError(
                "pass `config_name` (a preset, from scratch), `model_name_or_path` (its weights), or both",
                field="model_name_or_path",
            )
        if self.modality is not None:
            require("modality", self.modality, MODALITIES)
        check_ranges(self)


class _ObjectiveArguments:
    """Choice of an objective, with its options; see `objective_arguments`."""

    objective: str

    def __post_init__(self) -> None:
        require("objective", self.objective, OBJECTIVES)
        for name in ("name", "title", "citation", "recipe"):  # else its card would fail after the last step
            if not getattr(self.objective_class, name, None):
                raise BadArgumentError(
                    f"the class of `objective={self.objective}` has no {name}", field="objective", value=self.objective
                )
        self.make_options()

    @property
    def objective_class(self) -> type[Objective]:
        return OBJECTIVES[self.objective]

    def make_options(self) -> ObjectiveOptions:
        """The objective's options: the given values, and the published ones of the others.

        Raises:
            BadArgumentError: a given option that the objective does not have.
        """
        given = {name: value for name, value in vars(self).items() if name != "objective" and value is not None}
        accepted = [each.name for each in fields(self.objective_class.Options)]
        for name, value in given.items():
            if name not in accepted:
                has = f"which has {', '.join(f'`{own}`' for own in accepted)}" if accepted else "which has none"
                raise BadArgumentError(
                    f"`{name}` is not an option of `objective={self.objective}`, {has}",
                    field=name, value=value, accepted=accepted,
                )  # fmt: skip
        return self.objective_class.Options(**given)


def objective_arguments() -> type:
    """Dataclass of `objective` and the options of every objective, as `OBJECTIVES` has them now; None is not set."""
    texts: dict[str, dict[str, list[str]]] = {}
    types: dict[str, Any] = {}
    for objective, kind in OBJECTIVES.items():
        hints = get_type_hints(kind.Options)
        for each in fields(kind.Options):
            text = each.metadata["help"] + ("" if each.default is None else f" ({each.default})")
            texts.setdefault(each.name, {}).setdefault(text, []).append(objective)
            types[each.name] = hints[each.name] | None
    made = [("objective", str, option("mae", f"what is learned: {', '.join(OBJECTIVES)}"))]
    for name, by_text in texts.items():
        help = "; ".join(f"{', '.join(objectives)}: {text}" for text, objectives in by_text.items())
        made.append((name, types[name], option(None, help)))
    return make_dataclass("ObjectiveArguments", made, bases=(_ObjectiveArguments,))


@dataclass
class DataArguments:
    train_data: list[str] = field(
        default_factory=list,
        metadata={
            "help": "folders of shards made by prepare_images, parquet files (both also as s3://, gs://, hf://), or "
            "Hub dataset ids; several join"
        },
    )
    image_root: str | None = option(
        None, "folder of the image files, for shards that hold paths in place of images; default: the shards' folder"
    )
    streaming: bool = option(False, "fetch shards as they are needed, without a copy of all of them")
    mixed_shards: int = option(
        4, "with --streaming: shards whose images are mixed; twice as many are here at a time", 1
    )
    cache_dir: str | None = option(
        None,
        "where datasets keeps its memory-mapped copy (default: the datasets cache), or --streaming its open shards "
        "(default: the output folder)",
    )
    max_bad_share: float = option(
        0.01, "share of unreadable images above which the run stops; others are replaced", 0, 1
    )
    probe_data: str | None = option(None, "labelled data set for a periodic linear probe")
    probe_epochs: float = option(10, "epochs between two probes", above=0)
    preview_steps: int = option(500, "steps between previews of what is learned; 0: none", 0)

    def __post_init__(self) -> None:
        if not self.train_data:
            raise BadArgumentError(
                "`train_data` is missing; pass a folder of shards made by prepare_images", field="train_data"
            )
        check_ranges(self)
        for source in filter(is_remote, self.train_data):
            check_address(source, "train_data")


@dataclass
class PretrainingArguments:
    """Names as in `TrainingArguments`, where the meaning is the same."""

    output_dir: str = field(metadata={"help": "folder to write"})
    overwrite_output_dir: bool = option(False, "replace what is in the output folder")
    num_train_epochs: float = option(800, "passes over the images")
    max_steps: int = option(-1, "optimiser steps instead of epochs, if above 0")
    per_device_train_batch_size: int = option(224, "images per device and forward pass", 1)
    gradient_accumulation_steps: int = option(1, "forward passes per optimiser step", 1)
    base_learning_rate: float | None = option(
        None, f"peak learning rate per 256 images of the effective batch; {RECIPE}", above=0
    )
    learning_rate: float | None = option(
        None,
        "peak learning rate; default: base_learning_rate x effective batch / 256. Where neither is given, AdamW takes "
        f"the square root of that share below 256 images, and at least {FRESH_RATE:g} from random weights",
        above=0,
    )
    warmup_steps: float | None = option(None, f"linear warm-up: steps, or below 1 a share of all; {RECIPE}", 0)
    weight_decay: float | None = option(None, f"of matrices; biases and norms have none; {RECIPE}", 0)
    final_weight_decay: float | None = option(
        None, "that weight_decay comes to by half a cosine; default: as it is, dino: 0.4", 0
    )
    optim: Literal["adamw", "lars"] | None = option(None, f"optimiser; {RECIPE}, lars for simclr and swav on a ResNet")
    adam_beta1: float = option(0.9, "AdamW", 0, below=1)
    adam_beta2: float | None = option(None, f"AdamW; {RECIPE}", 0, below=1)
    max_grad_norm: float | None = option(None, f"gradient clipping; 0 is off; {RECIPE}", 0)
    seed: int = option(0, "seed of initialisation, order, crops and masks", 0, 2**32 - 1)
    bf16: bool = option(False, "bfloat16 (Ampere and later)")
    fp16: bool = option(False, "half precision with loss scaling (T4 and before Ampere)")
    torch_compile: bool = option(False, "compile the transformer blocks")
    gradient_checkpointing: bool = option(False, "compute activations twice instead of keeping them: less memory")
    dataloader_num_workers: int = option(lambda: min(4, os.cpu_count() or 1), "loader processes per device", 0)
    logging_steps: int = option(10, "steps between log lines", 1)
    save_steps: int = option(500, "steps between checkpoints; 0: only at the end", 0)
    save_total_limit: int = option(2, "checkpoints to keep, the newest; 0: all", 0)
    resume_from_checkpoint: str | None = option(
        None, "go on from a checkpoint folder, or from the `latest` in the output folder"
    )
    on_non_finite: Literal["stop", "skip"] = option(
        "stop", "NaN or infinite loss: stop and name the images, or skip and count the step"
    )
    report_to: list[str] = field(
        default_factory=lambda: ["none"],
        metadata={"help": "trackers: tensorboard, trackio, wandb, or others of Accelerate"},
    )

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.max_steps <= 0:
            require_range("num_train_epochs", self.num_train_epochs, 0, open_low=True)
        self.report_to = check_trackers(self.report_to, map(str, LoggerType), map(str, get_available_trackers()))
        require("optim", self.optim, (None, "adamw", "lars"))
        require("on_non_finite", self.on_non_finite, ("stop", "skip"))
        if self.fp16 and self.bf16:
            raise BadArgumentError("`fp16` and `bf16` exclude each other; pass one", field="fp16", value=True)
        if self.fp16 and not torch.accelerator.is_available():
            raise BadArgumentError("`fp16` needs a GPU, and there is none here", field="fp16", value=True)

    def with_recipe(
        self, recipe: Recipe, global_batch: int = 256, from_random_weights: bool = False
    ) -> "PretrainingArguments":
        """The same with the recipe's value for whatever is not set; a decay that is set stays as it is.

        The recipes' rates are for large batches. Scaled linearly (Goyal et al. 2017) to small ones they teach nothing
        in the steps that few images give (`scripts/benchmarks/small_data.py`). Below 256 images AdamW's follows the
        square root (Malladi et al. 2022), and random weights, which have nothing to lose, take `FRESH_RATE` or more.

        Args:
            global_batch: images per optimiser step.
            from_random_weights: the network starts from a preset and not from a folder.

        Raises:
            BadArgumentError: another optimiser than the recipe's, and no learning rate or weight decay for it.
        """
        has_rate = self.learning_rate is not None or self.base_learning_rate is not None
        if self.optim not in (None, recipe.optim) and (not has_rate or self.weight_decay is None):
            raise BadArgumentError(
                f"`optim={self.optim}` is not the recipe's, whose learning rate and weight decay are for "
                f"{recipe.optim}; pass `base_learning_rate` (or `learning_rate`) and `weight_decay` too",
                field="optim", value=self.optim,
            )  # fmt: skip
        own: dict[str, Any] = dict(vars(recipe))
        if not has_rate and recipe.optim == "adamw":
            share = global_batch / 256
            rate = recipe.base_learning_rate * (share if share >= 1 else math.sqrt(share))
            own["learning_rate"] = max(rate, FRESH_RATE) if from_random_weights else rate
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


class Arguments(NamedTuple):
    """All arguments of a run; `objective` is an instance of what `objective_arguments` returns."""

    model: ModelArguments
    objective: Any
    data: DataArguments
    training: PretrainingArguments

    @classmethod
    def parse(cls, argv: Sequence[str] | None, description: str) -> "Arguments":
        """From the words of a command line; `sys.argv` for None."""
        types = (ModelArguments, objective_arguments(), DataArguments, PretrainingArguments)
        return cls(*parse_arguments(*types, argv=argv, description=description))

    @classmethod
    def build(cls, options: Mapping[str, Any]) -> "Arguments":
        """From keyword arguments; TypeError for one that does not exist."""
        types = (ModelArguments, objective_arguments(), DataArguments, PretrainingArguments)
        return cls(*build_arguments(types, options))
