"""Methods of fine-tuning: the whole network, LoRA adapters, or a linear head on frozen features."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..data.labelled import LabelledSet, keep_fraction, read_labelled
from ..errors import RetFoundError, require
from ..evaluation.linear_probe import LinearProbe, fit_linear_probe
from ..inference.predict import PreparedSet, PreparedSplit, head_inputs, prepare_split, warn_of_modality
from ..models.backbones import backbone_of
from ..models.configuration_retfound import RetFoundConfig
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import is_adapter, load_network, load_processor, network_config, read_config
from ..models.modeling_retfound import RetFoundForImageClassification
from ..models.starting_points import resolve
from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
from .augmentation import Mix, TrainingPixels
from .targets import TargetScale, balanced_sampler, label_options
from .trainer import make_trainer


def build_classifier(
    name_or_path: str | None,
    config_name: str | None,
    labels: dict[str, Any],
    drop_path: float = 0.0,
    image_size: int | None = None,
    target_scale: TargetScale | None = None,
) -> PreTrainedModel:
    """A classifier with a head for `labels`, everything else from the folder, or from scratch for a preset.

    Whatever the weights, the head is RETFound's (see `models.starting_weights` for the encoders that it may sit on). A
    head of that kind that was trained on the same class names is kept, any other is replaced.

    Args:
        labels: `num_labels`, `id2label`, `label2id`, `problem_type`, and `label_smoothing`, `class_weights`,
            `target_scale` for the loss.
        image_size: of a preset that is trained from scratch; trained positions are interpolated instead.
        target_scale: of a regression: a fresh head predicts the mean.

    Raises:
        RetFoundError: weights of the encoder that are missing, or an adapter in place of a model.
    """
    if config_name is not None:
        size = {} if image_size is None else {"image_size": image_size}
        config = RetFoundConfig.from_preset(config_name, **labels, **size, drop_path_rate=drop_path)
        model = RetFoundForImageClassification(config)
        _scale_fresh_head(model, target_scale)
        return model
    name_or_path = resolve(name_or_path)
    if is_adapter(name_or_path):
        raise RetFoundError(f"{name_or_path} is a LoRA adapter; fine-tune from a folder written with --merge")
    stored = read_config(name_or_path)
    options = {**labels, "drop_path_rate": drop_path}
    has_head = stored.id2label == labels["id2label"]
    if hasattr(stored, "head_norm") and not has_head:
        options["head_norm"] = "single"  # a fresh head is that of the 2023 code
    model, is_whole = load_network(name_or_path, stored, network_config(stored, **options), classifier=True)
    if not (has_head and is_whole):
        reset_head(model)
        _scale_fresh_head(model, target_scale)
    return model


def reset_head(model: PreTrainedModel) -> None:
    """Start the head anew, as the official code does: weights near zero, an identity norm before it."""
    nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
    nn.init.zeros_(model.classifier.bias)
    model.fc_norm.reset_parameters()


def _scale_fresh_head(model: PreTrainedModel, target_scale: TargetScale | None) -> None:
    if target_scale is not None:
        target_scale.put_into(model.classifier)


def add_lora(
    model: PreTrainedModel, rank: int = 16, alpha: int = 16, dropout: float = 0.0, targets: Sequence[str] = ()
) -> nn.Module:
    """Wrap `model` so that only the adapters and the head are trained, and saved together.

    Raises:
        BadArgumentError: no linear layer has one of the names in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    own = backbone_of(model.config).projections
    targets = [own.get(target, target) for target in targets]
    for target in targets:
        require("lora_targets", target, sorted(linear))
    head = ["fc_norm", "classifier"]
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, modules_to_save=head),
    )


def trained_head(model: nn.Module) -> nn.Linear:
    """The last linear layer: of a network, or that which an adapter trains."""
    head = model.base_model.model.classifier if hasattr(model, "peft_config") else model.classifier
    return head.modules_to_save[model.active_adapter] if hasattr(head, "modules_to_save") else head


def save_adapter(model: nn.Module, processor: RetFoundImageProcessor, folder: str | Path) -> None:
    """Write the adapter with its head, the labels' configuration and the preprocessing."""
    config = model.peft_config[model.active_adapter]
    if Path(config.base_model_name_or_path).is_dir():
        # The adapter finds its base from wherever it is loaded.
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    model.save_pretrained(folder)
    model.base_model.model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def fit_head(
    model: PreTrainedModel,
    train_features: np.ndarray,
    train_targets: np.ndarray,
    val_features: np.ndarray,
    val_targets: np.ndarray,
    seed: int = 0,
) -> LinearProbe:
    """Fit the head on what `inference.forward.head_inputs` gives and put it into `model.classifier`.

    The class weights of the model's configuration weigh the training images of the fit.
    """
    probe = fit_linear_probe(
        train_features,
        train_targets,
        val_features,
        val_targets,
        model.config.problem_type,
        class_weights=getattr(model.config, "class_weights", None),
        seed=seed,
        class_names=[model.config.id2label[index] for index in range(model.config.num_labels)],
    )
    with torch.no_grad():
        model.classifier.weight.copy_(torch.from_numpy(probe.weight))
        model.classifier.bias.copy_(torch.from_numpy(probe.bias))
    return probe


@torch.inference_mode()
def head_logits(model: PreTrainedModel, features: np.ndarray) -> np.ndarray:
    """Logits (images, num_labels) for what `inference.forward.head_inputs` gives, without the network below."""
    vectors = torch.tensor(np.asarray(features), device=model.classifier.weight.device)
    return model.classifier(vectors).float().cpu().numpy()


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


def train_network(job: FinetuneJob, checkpoint: str | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """Train all weights or an adapter.

    Args:
        checkpoint: folder of a Trainer checkpoint to resume from.

    Returns:
        The best epoch's model (a `PeftModel` for an adapter that is not to be merged) and Trainer's log.
    """
    method = job.method_args
    model, layer_decay = job.model, method.layer_decay
    train, val = job.prepared["train"], job.prepared["val"]
    scale = job.target_scale
    if scale:
        scale.take_from(model.classifier)
    if method.method == "lora":
        model = add_lora(model, method.lora_rank, method.lora_alpha, method.lora_dropout, method.lora_targets)
        layer_decay = None
    sampler = None
    if method.sampler == "balanced":
        sampler = balanced_sampler(train.targets, job.labelled.problem_type, job.args.seed)
    mix = None
    if method.mixup > 0 or method.cutmix > 0:
        mix = Mix(len(job.labelled.class_names), method.mixup, method.cutmix)
    # The model's loss smooths: Trainer's own smoother knows integer labels only.
    args = copy.copy(job.args)
    args.label_smoothing_factor = 0.0
    args.push_to_hub = False  # Trainer would push its checkpoints; the finished folder is what is published
    trainer = make_trainer(
        model,
        args,
        job.processor,
        PreparedSet(train.images, train.targets),
        PreparedSet(val.images, val.targets),
        TrainingPixels(job.processor, method.augmentation, method.random_erasing),
        mix,
        job.labelled.problem_type,
        job.labelled.class_names,
        sampler=sampler,
        layer_decay=layer_decay,
        target_scale=scale,
    )
    trainer.train(resume_from_checkpoint=checkpoint)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if method.method == "lora" and method.merge:
        model = model.merge_and_unload()
    if scale:
        scale.put_into(trained_head(model))
    return model, trainer.state.log_history


def train_head(job: FinetuneJob, features: dict[str, np.ndarray] | None = None) -> tuple[Any, list[dict[str, Any]]]:
    """Fit the head on features that are computed once; the log is the path of the fit.

    Args:
        features: of the images of `train` and `val`, where they are known already.
    """
    features = features or {
        split: head_inputs(job.model, job.prepared[split].images, job.processor, **job.forward_options)
        for split in ("train", "val")
    }
    train, val = job.prepared["train"].targets, job.prepared["val"].targets
    probe = fit_head(job.model, features["train"], train, features["val"], val, job.args.seed)
    return job.model, [{"strength": strength, "val_score": score} for strength, score in probe.path]
