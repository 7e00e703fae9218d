"""All that one fine-tuning run works with, put together once."""

from dataclasses import dataclass
from typing import Any

from transformers import PreTrainedModel

from ..data.fractions import keep_fraction
from ..data.labelled import LabelledSet, read_labelled
from ..inference.loading import load_processor
from ..inference.sets import PreparedSplit, prepare_split, warn_of_modality
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
from .models import build_classifier
from .target_scale import TargetScale
from .targets import label_options

PRECISIONS = {(True, False): "fp16", (False, True): "bf16", (False, False): "no"}


@dataclass
class FinetuneJob:
    """Arguments, data and the untrained classifier of one run.

    Attributes:
        labelled: the labelled set, with the share of its training images that is to be used.
        prepared: its splits, decoded.
        all_training: all training images, decoded, whatever share of them is used.
        target_scale: of a regression, that of the training targets.
    """

    model_args: ModelArguments
    data_args: DataArguments
    method_args: MethodArguments
    args: FinetuneTrainingArguments
    labelled: LabelledSet
    model: PreTrainedModel
    processor: RetFoundImageProcessor
    prepared: dict[str, PreparedSplit]
    all_training: PreparedSplit
    target_scale: TargetScale | None

    @property
    def forward_options(self) -> dict[str, Any]:
        """Options of `inference.forward` that follow from the arguments."""
        return {
            "batch_size": self.args.per_device_eval_batch_size,
            "num_workers": self.args.dataloader_num_workers,
            "precision": PRECISIONS[bool(self.args.fp16), bool(self.args.bf16)],
        }


def make_job(
    model_args: ModelArguments,
    data_args: DataArguments,
    method_args: MethodArguments,
    args: FinetuneTrainingArguments,
) -> FinetuneJob:
    """Read the data, build the model and decode the images; every mistake of the user shows here, before training."""
    if method_args.method == "lora" and model_args.config_name:
        raise RetFoundError("--method lora adapts trained weights, and a preset has none: give --model_name_or_path")
    args.resolve_learning_rate(method_args.method, method_args.base_learning_rate)
    labelled = read_labelled(
        data_args.data,
        label_columns=data_args.label_columns,
        problem_type=data_args.problem_type,
        image_column=data_args.image_column,
        image_root=data_args.image_root,
        split_fractions=tuple(data_args.split_fractions),
        seed=data_args.split_seed,
    )
    everything, labelled = labelled, keep_fraction(labelled, data_args.train_fraction, args.seed)
    if labelled.problem_type == "regression" and (method_args.mixup > 0 or method_args.cutmix > 0):
        raise RetFoundError("--mixup and --cutmix mix classes, and the targets are numbers; leave them at 0")
    targets = labelled.targets("train")
    options = label_options(
        targets, labelled.class_names, labelled.problem_type, method_args.class_weights, args.label_smoothing_factor
    )
    drop_path = method_args.drop_path if method_args.method == "full" else 0.0
    # Predicted numbers start at the mean: a head near zero would first spend epochs on reaching it.
    scale = TargetScale.of(targets) if labelled.problem_type == "regression" else None
    model = build_classifier(
        model_args.model_name_or_path, model_args.config_name, options, drop_path, model_args.image_size, scale
    )
    processor = _processor(model_args, model)
    prepared = {
        split: prepare_split(
            everything,
            split,
            processor,
            exact=split != "train" or method_args.method == "linear" or method_args.augmentation == "none",
            on_bad_image=data_args.on_bad_image,
            num_workers=args.dataloader_num_workers,
            cache_dir=data_args.cache_dir,
        )
        for split in ("train", "val", "test")
    }
    # All training images are decoded, once for whatever share of them a run takes.
    all_training = prepared["train"]
    prepared["train"] = all_training.only(labelled.rows("train")["id"])
    warn_of_modality(prepared["train"].images, getattr(model.config, "modality", None))
    return FinetuneJob(
        model_args, data_args, method_args, args, labelled, model, processor, prepared, all_training, scale
    )


def _processor(model_args: ModelArguments, model: PreTrainedModel) -> RetFoundImageProcessor:
    crop = {"auto": None, "yes": True, "no": False}[model_args.crop_fundus]
    if model_args.model_name_or_path is None:
        return RetFoundImageProcessor.for_image_size(model.config.image_size, do_fundus_crop=crop is not False)
    processor = load_processor(model_args.model_name_or_path, model_args.image_size, crop)
    side, patch = processor.crop_size.height, model.config.patch_size
    if side % patch:
        raise RetFoundError(f"--image_size {side} is not a multiple of the model's patch size {patch}")
    return processor
