"""Classifier that a fine-tuning starts from, and its methods: the whole network, LoRA adapters, or a linear head.

A class that is put into `METHODS` under its name is a new method: `finetune`, its card and studies take it.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedModel

from ..errors import BadArgumentError, BadModelError, RetFoundError, one_line, require, require_range
from ..evaluation.calibration import LogitScaling
from ..evaluation.linear_probe import fit_linear_probe
from ..inference.predict import Classifier, PreparedSplit, head_inputs
from ..models.backbones import backbone_of
from ..models.configuration_retfound import UNCALIBRATED, RetFoundConfig, is_adapter
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import load_network, load_processor, network_config, read_config, resolve
from ..models.modeling_retfound import RetFoundForImageClassification
from ..vocabulary import MULTI_LABEL, REGRESSION
from .trainer import BalancedSampler, FinetuneTrainer, Mix, TargetScale, TrainingPixels

if TYPE_CHECKING:
    from .arguments import FinetuneArguments

LAYER_DECAY = 0.65  # of the released recipe, for pretrained weights


def label_options(class_names: tuple[str, ...], problem_type: str) -> dict[str, Any]:
    """The part of the model's configuration that describes a head for these labels."""
    return {
        "num_labels": len(class_names),
        "id2label": dict(enumerate(class_names)),
        "label2id": {name: index for index, name in enumerate(class_names)},
        "problem_type": problem_type,
        **UNCALIBRATED,  # a calibrated head is no longer calibrated once it is trained further
    }


def loss_options(
    targets: np.ndarray, problem_type: str, classes: int, class_weights: str, smoothing: float
) -> dict[str, Any]:
    """`class_weights` and `label_smoothing` of `classification_loss`, as the training targets decide.

    Balanced weights are N / (classes x count) per class, and negatives / positives per label of multi-label targets.

    Args:
        targets, problem_type: of the training split.
        classes: number of them.
        class_weights: "none" or "balanced".
        smoothing: of the labels; numbers have none.
    """
    options = {"class_weights": None, "label_smoothing": 0.0 if problem_type == REGRESSION else smoothing}
    if class_weights == "balanced" and problem_type == MULTI_LABEL:
        positives = targets.sum(axis=0)
        options["class_weights"] = ((len(targets) - positives) / np.maximum(positives, 1)).tolist()
    elif class_weights == "balanced":
        counts = np.bincount(targets, minlength=classes)
        options["class_weights"] = (len(targets) / (classes * np.maximum(counts, 1))).tolist()
    return options


def build_classifier(
    name_or_path: str | None,
    config_name: str | None,
    labels: dict[str, Any],
    drop_path: float = 0.0,
    image_size: int | None = None,
    target_scale: TargetScale | None = None,
) -> PreTrainedModel:
    """Classifier with a head for `labels`, everything else from the folder, or from scratch for a preset.

    Whatever the weights, the head is RETFound's. A head of that kind that was trained on the same class names is kept,
    any other is replaced.

    Args:
        name_or_path: folder, Hub id or starting point; None with `config_name`, a preset.
        labels: as `label_options` gives them.
        drop_path: stochastic depth of the last block.
        image_size: of a preset that is trained from scratch; `fit_input` interpolates trained positions.
        target_scale: of a regression: a fresh head predicts the mean.

    Raises:
        BadModelError: weights of the encoder that are missing, or an adapter in place of a model.
    """
    if config_name is not None:
        size = {} if image_size is None else {"image_size": image_size}
        config = RetFoundConfig.from_preset(config_name, **labels, **size, drop_path_rate=drop_path)
        model, fresh = RetFoundForImageClassification(config), True
    else:
        name_or_path = resolve(name_or_path)
        if is_adapter(name_or_path):
            raise BadModelError(
                f"{name_or_path} is a LoRA adapter; fine-tune from a folder that was written with `merge`",
                model=name_or_path,
            )
        stored = read_config(name_or_path)
        options = {**labels, "drop_path_rate": drop_path}
        keeps_head = stored.id2label == labels["id2label"]
        if hasattr(stored, "head_norm") and not keeps_head:
            options["head_norm"] = "single"  # a fresh head is that of the 2023 code
        model, is_whole = load_network(name_or_path, stored, network_config(stored, **options), classifier=True)
        fresh = not (keeps_head and is_whole)
        if fresh:
            # As the official code does: weights near zero, an identity norm before it.
            nn.init.trunc_normal_(model.classifier.weight, std=2e-5)
            nn.init.zeros_(model.classifier.bias)
            model.fc_norm.reset_parameters()
    if fresh and target_scale is not None:
        target_scale.put_into(model.classifier)
    return model


def build_processor(
    name_or_path: str | None, model: PreTrainedModel, image_size: int | None, crop: str
) -> RetFoundImageProcessor:
    """Image processor of the folder, or of a new model's input size.

    Args:
        name_or_path: as for `build_classifier`.
        model: the classifier.
        image_size: input side in pixels, None for the folder's.
        crop: "yes", "no", or "auto" as the folder says.
    """
    wanted = {"auto": None, "yes": True, "no": False}[crop]
    if name_or_path is None:
        return RetFoundImageProcessor.for_image_size(model.config.image_size, do_fundus_crop=wanted is not False)
    processor = load_processor(name_or_path, image_size, wanted)
    side, patch = processor.size.height, model.config.patch_size
    if side % patch:
        raise BadArgumentError(
            f"`image_size={side}` is not a multiple of the model's patch size {patch}", field="image_size", value=side
        )
    return processor


def trained_head(model: nn.Module) -> nn.Linear:
    """The last linear layer of a network, or the one that an adapter trains."""
    head = model.base_model.model.classifier if hasattr(model, "peft_config") else model.classifier
    return head.modules_to_save[model.active_adapter] if hasattr(head, "modules_to_save") else head


@torch.no_grad()
def fold_scaling(model: nn.Module, scaling: LogitScaling) -> None:
    """Scale and shift the last linear layer, of a network or of the head that an adapter trains.

    Whatever reads the weights, such as `pipeline` or ONNX, then gives calibrated probabilities.
    `config.calibration_slope` and `config.calibration_intercept` record the change.
    """
    config, head = (model.base_model.model if hasattr(model, "peft_config") else model).config, trained_head(model)
    slope, intercept = (torch.tensor(values).to(head.weight) for values in (scaling.slope, scaling.intercept))
    head.weight.mul_(slope[:, None])
    head.bias.mul_(slope).add_(intercept)
    both = scaling.after(LogitScaling.of(config.to_dict(), len(slope)))
    config.calibration_temperature = 1.0
    config.calibration_slope, config.calibration_intercept = list(both.slope), list(both.intercept)


class Trained(NamedTuple):
    """Trained classifier (a `PeftModel` for an adapter), and the log: entries of `history.json`."""

    model: Any
    history: list[dict[str, Any]]


class Method:
    """Way to train a classifier; a row of `METHODS` is a subclass.

    Attributes:
        name: key in `METHODS`.
        title: in running text.
        trains: what is trained, in running text; the title where empty.
        chooses: what the validation split chooses.
        options: dataclass of the options that belong to the method alone, None where it has none.
        base_learning_rate: peak rate per 256 images of the effective batch.
        passes: cost of a training image in one epoch, in forward passes through the network.
        frozen_encoder: only a head on features of unaugmented images is trained; `train` then also takes `features`,
            which studies compute once.
        resumes: a training can go on from a checkpoint.
        needs_weights: there must be trained weights to start from.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    trains: str = ""
    chooses: ClassVar[str] = "epoch"
    options: ClassVar[type | None] = None
    base_learning_rate: ClassVar[float] = 5e-3
    passes: ClassVar[float] = 3.0
    frozen_encoder: ClassVar[bool] = False
    resumes: ClassVar[bool] = False
    needs_weights: ClassVar[bool] = False

    def __init__(self, args: "FinetuneArguments"):
        self.args = args
        if self.needs_weights and args.config_name:
            raise BadArgumentError(
                f"`config_name={args.config_name}` has no trained weights, which `method={self.name}` adapts; pass "
                "`model_name_or_path`",
                field="config_name", value=args.config_name,
            )  # fmt: skip

    @property
    def drop_path(self) -> float:
        """Stochastic depth of the classifier."""
        return 0.0

    def loss_options(self, classifier: Classifier, train: PreparedSplit) -> dict[str, Any]:
        """Options of the loss in training, as the training targets and the arguments decide."""
        names, args = classifier.class_names, self.args
        return loss_options(
            train.targets, classifier.problem_type, len(names), args.class_weights, args.label_smoothing_factor
        )

    def train(
        self, classifier: Classifier, train: PreparedSplit, validation: PreparedSplit,
        target_scale: TargetScale | None = None, checkpoint: str | None = None,
    ) -> Trained:  # fmt: skip
        """Train `classifier.model`, in place or in a wrapper.

        Args:
            classifier: the untrained classifier, with its image processor.
            train, validation: decoded images with their targets.
            target_scale: of a regression.
            checkpoint: folder of a checkpoint to resume from.
        """
        raise NotImplementedError

    def save(self, model: Any, processor: RetFoundImageProcessor, folder: str | Path) -> None:
        """Write the trained model with its preprocessing."""
        model.save_pretrained(folder)
        processor.save_pretrained(folder)


@dataclass
class FullOptions:
    layer_decay: float | None = field(
        default=None,
        metadata={
            "help": f"full: rate of a block per that of the one above; default: {LAYER_DECAY}, for random weights 1"
        },
    )
    drop_path: float = field(default=0.2, metadata={"help": "full: stochastic depth of the last block"})

    def __post_init__(self) -> None:
        require_range("drop_path", self.drop_path, 0, 0.99)
        if self.layer_decay is not None:
            require_range("layer_decay", self.layer_decay, 0, 1, open_low=True)


class Full(Method):
    """All weights, with a learning rate that falls from the head to the embeddings (Zhou et al. 2023, Methods).

    A subclass may train a part: `adapt` freezes or wraps the network before training, `finish` undoes it afterwards.
    """

    name, title, trains, resumes = "full", "full", "all weights", True
    options: ClassVar[type | None] = FullOptions

    @property
    def drop_path(self) -> float:
        return self.args.drop_path

    @property
    def layer_decay(self) -> float | None:
        """Factor of the learning rate from a layer to the one below; None leaves Trainer's own optimiser."""
        return self.args.layer_decay

    def adapt(self, model: PreTrainedModel) -> nn.Module:
        """The model to train."""
        return model

    def finish(self, model: nn.Module) -> nn.Module:
        """The model to keep, from the trained one."""
        return model

    def trainer(
        self, classifier: Classifier, train: PreparedSplit, validation: PreparedSplit, target_scale: TargetScale | None
    ) -> FinetuneTrainer:
        """The `Trainer` of `adapt(classifier.model)`."""
        args = self.args
        sampler = mix = None
        if args.sampler == "balanced":
            sampler = BalancedSampler(train.targets, classifier.problem_type, args.seed)
        if args.mixup > 0 or args.cutmix > 0:
            mix = Mix(len(classifier.class_names), args.mixup, args.cutmix)
        training = copy.copy(args.training)
        step = training.train_batch_size * training.world_size
        if training.dataloader_drop_last and len(train.images) < step:
            raise BadArgumentError(
                f"`dataloader_drop_last` leaves no batch: {len(train.images)} training images are fewer than the "
                f"{step} of one batch on every device; lower `per_device_train_batch_size`",
                field="dataloader_drop_last", value=True,
            )  # fmt: skip
        training.label_smoothing_factor = 0.0  # our loss smooths: Trainer's own knows integer labels only
        training.push_to_hub = False  # Trainer would push its checkpoints; the finished folder is what is published
        return FinetuneTrainer(
            self.adapt(classifier.model), training, classifier, train, validation,
            to_pixels=TrainingPixels(classifier.processor, args.augmentation, args.random_erasing), mix=mix,
            sampler=sampler, layer_decay=self.layer_decay, target_scale=target_scale,
            loss_options=self.loss_options(classifier, train), quiet=args.quiet,
        )  # fmt: skip

    def train(
        self, classifier: Classifier, train: PreparedSplit, validation: PreparedSplit,
        target_scale: TargetScale | None = None, checkpoint: str | None = None,
    ) -> Trained:  # fmt: skip
        """Train with `Trainer`; the best epoch is kept, and the history is Trainer's log."""
        if target_scale:
            target_scale.take_from(classifier.model.classifier)
        try:
            trainer = self.trainer(classifier, train, validation, target_scale)
        except (ImportError, RuntimeError) as error:  # a package that an option of Trainer needs
            raise RetFoundError(f"options of the training: {one_line(error)}") from error
        trainer.check()
        trainer.train(resume_from_checkpoint=checkpoint)
        model = self.finish(trainer.accelerator.unwrap_model(trainer.model))
        if target_scale:
            target_scale.put_into(trained_head(model))
        return Trained(model, trainer.state.log_history)


@dataclass
class LoraOptions:
    lora_rank: int = field(default=16, metadata={"help": "lora: rank"})
    lora_alpha: int = field(default=16, metadata={"help": "lora: scale of the update is alpha / rank"})
    lora_dropout: float = field(default=0.0, metadata={"help": "lora: dropout before the adapter"})
    lora_targets: list[str] = field(
        default_factory=lambda: ["query", "value"], metadata={"help": "lora: linear layers to adapt, by name"}
    )
    merge: bool = field(default=False, metadata={"help": "lora: write a plain model folder instead of the adapter"})

    def __post_init__(self) -> None:
        require_range("lora_dropout", self.lora_dropout, 0, 0.99)
        require_range("lora_rank", self.lora_rank, 1)


class Lora(Full):
    """LoRA adapters in the attention and a fresh head (Hu et al. 2022); few parameters take a larger rate."""

    name, title, trains = "lora", "LoRA", "a LoRA adapter and the head"
    base_learning_rate, passes, needs_weights = 2e-2, 2.2, True
    options = LoraOptions
    drop_path, layer_decay = 0.0, None

    def __init__(self, args: "FinetuneArguments"):
        super().__init__(args)
        if args.merge:
            self.trains += ", then merged into the weights: it loads without peft"

    def adapt(self, model: PreTrainedModel) -> nn.Module:
        args = self.args
        return add_lora(model, args.lora_rank, args.lora_alpha, args.lora_dropout, args.lora_targets)

    def finish(self, model: nn.Module) -> nn.Module:
        return model.merge_and_unload() if self.args.merge else model

    def save(self, model: Any, processor: RetFoundImageProcessor, folder: str | Path) -> None:
        if not self.args.merge:
            config = model.peft_config[model.active_adapter]
            if Path(config.base_model_name_or_path).is_dir():
                # The adapter finds its base from wherever it is loaded.
                config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
            model.base_model.model.config.save_pretrained(folder)
        super().save(model, processor, folder)


def add_lora(
    model: PreTrainedModel, rank: int = 16, alpha: int = 16, dropout: float = 0.0, targets: Sequence[str] = ()
) -> nn.Module:
    """Wrap `model` so that only the adapters and the head are trained, and saved together.

    Args:
        model: a classifier of ours.
        rank, alpha, dropout: of the adapters.
        targets: names of linear layers.

    Raises:
        BadArgumentError: no linear layer has one of the names in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    own = backbone_of(model.config).projections
    chosen = [own.get(target, target) for target in targets]
    for target in chosen:
        require("lora_targets", target, sorted(linear))
    return get_peft_model(
        model,
        LoraConfig(
            r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=chosen,
            modules_to_save=["fc_norm", "classifier"],
        ),
    )  # fmt: skip


class Linear(Method):
    """Penalised linear head on features of the untouched encoder; validation chooses the strength of the penalty."""

    name, title, trains = "linear", "linear", "a linear head on frozen features"
    chooses = "strength of the regularisation"
    base_learning_rate, passes, frozen_encoder = 0.0, 1.0, True

    def train(
        self, classifier: Classifier, train: PreparedSplit, validation: PreparedSplit,
        target_scale: TargetScale | None = None, checkpoint: str | None = None,
        features: Mapping[str, np.ndarray] | None = None,
    ) -> Trained:  # fmt: skip
        """Fit the head on features that are computed once; the history is the path of the fit.

        Args:
            classifier, train, validation: as in `Method.train`.
            features: of "train" and "val", where they are known already; see `head_inputs`.
        """
        model, options = classifier.model, self.args.forward_options
        features = features or {
            name: head_inputs(model, split.images, classifier.processor, **options)
            for name, split in (("train", train), ("val", validation))
        }
        probe = fit_linear_probe(
            features["train"], train.targets, features["val"], validation.targets, classifier.problem_type,
            class_weights=self.loss_options(classifier, train)["class_weights"], seed=self.args.seed,
            class_names=classifier.class_names,
        )  # fmt: skip
        with torch.no_grad():
            model.classifier.weight.copy_(torch.from_numpy(probe.weight))
            model.classifier.bias.copy_(torch.from_numpy(probe.bias))
        return Trained(model, [{"strength": strength, "val_score": score} for strength, score in probe.path])


METHODS: dict[str, type[Method]] = {method.name: method for method in (Full, Lora, Linear)}
