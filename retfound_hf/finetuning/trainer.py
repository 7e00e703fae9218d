"""Trainer of fine-tuning: layer-wise learning rates, the classifier's loss, scaled targets, metrics per epoch."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset, Sampler
from torchvision.transforms import v2
from transformers import EvalPrediction, PreTrainedModel, PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..errors import BadArgumentError, RetFoundError, one_line
from ..evaluation.predictions import Predictions
from ..inference.predict import Classifier, Collator, EvaluationPixels, PreparedSet, PreparedSplit, to_scores
from ..models.adapters import errors_of_loading
from ..models.backbones import parameter_depths
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import read_weights
from ..models.modeling_retfound import classification_loss
from ..options import tracker_faults
from ..vocabulary import SINGLE_LABEL

CROP_SCALES = {"recipe": (0.08, 1.0), "light": (0.5, 1.0)}


def rand_augment() -> v2.Transform:
    """`rand-m9-mstd0.5-inc1` of timm: two operations, each applied with probability 1/2, at level 9 +- 0.5 of 10.

    torchvision counts 31 levels, of which level 27 is 9 of 10; the deviation of 0.5 of 10 is 1.5 of 30. Its list of
    operations lacks timm's invert and solarise-add, and its strengths grow with the level as `inc1` asks.
    """
    levels = range(23, 31)
    weights = [math.exp(-(((level - 27) / 1.5) ** 2) / 2) for level in levels]
    fill = [124, 116, 104]  # ImageNet mean in 8 bits, as timm fills
    one = v2.RandomChoice(
        [
            v2.RandAugment(num_ops=1, magnitude=level, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
            for level in levels
        ],
        p=weights,
    )
    return v2.Compose([v2.RandomApply([one], p=0.5), v2.RandomApply([one], p=0.5)])


class TrainingPixels:
    """Images to `pixel_values` (batch, 3, size, size), augmented.

    Args:
        processor: gives size, mean and deviation.
        augmentation: `recipe`, `light` (crop of at least half the area, flip) or `none` (the evaluation transform).
        random_erasing: probability of erasing a box with noise (`recipe`).
    """

    def __init__(self, processor: RetFoundImageProcessor, augmentation: str = "recipe", random_erasing: float = 0.25):
        self.processor = processor
        self.augments = augmentation != "none"
        if not self.augments:
            return
        crop = v2.RandomResizedCrop(
            processor.size.height,
            scale=CROP_SCALES[augmentation],
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        more = [rand_augment()] if augmentation == "recipe" else []
        self.per_image = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), *more])
        self.normalize = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
        )
        erase = augmentation == "recipe" and random_erasing > 0
        self.erase = v2.RandomErasing(random_erasing, value="random") if erase else None

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        if not self.augments:
            return self.processor(list(images), do_fundus_crop=False, return_tensors="pt")["pixel_values"]
        pixels = self.normalize(torch.stack([self.per_image(image) for image in images]))
        if self.erase is not None:
            pixels = torch.stack([self.erase(image) for image in pixels])
        return pixels


@dataclass
class Mix:
    """Mixup or cutmix of a batch (Zhang et al. 2018; Yun et al. 2019); with both, one of them per batch at random.

    Labels become (batch, classes) probabilities.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        choices: list[Callable] = []
        if self.mixup > 0:
            choices.append(v2.MixUp(alpha=self.mixup, num_classes=self.num_classes))
        if self.cutmix > 0:
            choices.append(v2.CutMix(alpha=self.cutmix, num_classes=self.num_classes))
        self.choose = v2.RandomChoice(choices)

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.choose(pixels, labels)


if TYPE_CHECKING:
    from .arguments import FinetuneTrainingArguments

# Not decayed although they are no vectors, as in the official code.
POSITIONS_AND_TOKENS = ("position_embeddings", "cls_token", "mask_token", "register_tokens")


def layer_decay_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups with their learning rates, from the embeddings up.

    The rate of layer i of L + 1 is `learning_rate` x `layer_decay`^(L + 1 - i), where L is the number of blocks;
    vectors (biases, norms, layer scales), positions and tokens have no weight decay.

    Returns:
        One dict per layer and decay, with `params`, `lr`, `weight_decay` and, for reading, `layer`.

    Raises:
        BadModelError: the patterns of the model's row in `BACKBONES` do not find its blocks.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    depths = parameter_depths(model)
    last = max(depths.values())
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        layer = depths[name]
        decays = parameter.ndim > 1 and not any(token in name for token in POSITIONS_AND_TOKENS)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (last - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "layer": layer,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]


UNDEFINED = 1e30  # JSON and trackers know no infinity


class Clock(TrainerCallback):
    """Adds `seconds` since training began to every entry of the log; a resumed run goes on from the last one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.start = time.monotonic() - before

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = round(time.monotonic() - self.start, 3)


@dataclass(frozen=True)
class TargetScale:
    """Mean and scale of the training targets, (targets,) each.

    An optimiser such as AdamW moves every weight by about the learning rate, whatever the loss: a head that had to
    give micrometres would need a hundred times the steps of one that gives millimetres. So the head gives standard
    deviations while it is trained, and the numbers themselves when it is done.
    """

    mean: np.ndarray
    scale: np.ndarray

    @classmethod
    def of(cls, targets: np.ndarray) -> "TargetScale":
        """Of the training targets, (images,) or (images, targets); a constant target keeps its unit."""
        columns = targets.reshape(len(targets), -1).astype(np.float64)
        deviations = columns.std(axis=0)
        return cls(columns.mean(axis=0), np.where(deviations > 0, deviations, 1.0))

    def to_units(self, outputs: Tensor) -> Tensor:
        """Outputs (batch, targets) of a head in training as float32 numbers of the targets' unit."""
        mean, scale = self._rows(torch.float32, outputs.device)
        return outputs.float() * scale + mean

    @torch.no_grad()
    def take_from(self, head: nn.Linear) -> None:
        """Make a head that gives the targets' unit one that gives standard deviations from the mean."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight / scale[:, None])
        head.bias.copy_((head.bias - mean) / scale)

    @torch.no_grad()
    def put_into(self, head: nn.Linear) -> None:
        """Make a trained head give the targets' unit."""
        mean, scale = self._rows(torch.float64, head.weight.device)
        head.weight.copy_(head.weight * scale[:, None])
        head.bias.copy_(head.bias * scale + mean)

    def _rows(self, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        mean, scale = torch.tensor(np.stack([self.mean, self.scale]), dtype=dtype, device=device)
        return mean, scale


class FinetuneTrainer(Trainer):
    """`Trainer` with a collator of its own for evaluation, and an optional sampler.

    Args:
        model: the network, or a `PeftModel` around it.
        args: of Trainer.
        classifier: its image processor, classes and problem type.
        train, validation: decoded images with their targets.
        to_pixels: augmentation, from images to `pixel_values`.
        mix: mixup or cutmix of a batch, or None.
        sampler: of the training set; None shuffles.
        layer_decay: factor of the learning rate from a layer to the one below; None leaves Trainer's own optimiser.
        target_scale: of a regression, whose head gives standard deviations while it is trained.
        loss_options: `class_weights` and `label_smoothing` of the loss in training; in evaluation it is plain.
        quiet: print neither log lines nor a progress bar.
    """

    def __init__(
        self, model: nn.Module, args: "FinetuneTrainingArguments", classifier: Classifier, train: PreparedSplit,
        validation: PreparedSplit, *, to_pixels: Callable[[Sequence[Any]], Tensor], mix: Any = None,
        sampler: Sampler | None = None, layer_decay: float | None = None, target_scale: TargetScale | None = None,
        loss_options: Mapping[str, Any] | None = None, quiet: bool = False,
    ):  # fmt: skip
        self.classifier = classifier
        optimizer = None
        if layer_decay is not None:
            kind, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            options["params"] = layer_decay_groups(model, args.learning_rate, args.weight_decay, layer_decay)
            optimizer = (kind, options)
        super().__init__(
            model=model,
            args=args,
            train_dataset=PreparedSet(train.images, train.targets),
            eval_dataset=PreparedSet(validation.images, validation.targets),
            data_collator=Collator(to_pixels, mix),
            compute_metrics=self._metrics,
            preprocess_logits_for_metrics=lambda logits, labels: logits[0] if isinstance(logits, tuple) else logits,
            processing_class=classifier.processor,
            optimizer_cls_and_kwargs=optimizer,
            callbacks=[Clock()],
        )
        if args.report_to:  # this starts the trackers, and little else
            start = self.callback_handler.on_train_begin
            self.callback_handler.on_train_begin = tracker_faults(args.report_to)(start)
        self.evaluation_collator = Collator(EvaluationPixels(classifier.processor))
        self.sampler = sampler
        self.target_scale = target_scale
        self.loss_options = dict(loss_options or {})
        if target_scale:
            self.loss_options["target_scale"] = target_scale.scale.tolist()
        # The loss below is a batch mean, which Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        if quiet:
            for callback in (PrinterCallback, ProgressCallback):
                self.remove_callback(callback)

    def _metrics(self, found: EvalPrediction) -> dict[str, float]:
        """Metrics of one epoch; one that chooses the best epoch and is undefined counts as worse than any."""
        metrics, chosen = selection_metrics(found, self.classifier), self.args.metric_for_best_model
        worst = -UNDEFINED if self.args.greater_is_better else UNDEFINED
        return {str(chosen).removeprefix("eval_"): worst, **metrics}

    def check(self) -> None:
        """Raise RetFoundError, before the training, for options with which it could not run."""
        try:
            with torch.random.fork_rng(devices=[]):  # a run draws what it would draw without this
                self.get_train_dataloader()
                self.get_eval_dataloader()
            if not self.is_deepspeed_enabled and not self.is_fsdp_enabled:
                self.create_optimizer()  # kept: it takes the parameter groups out of its options
                # A schedule would leave its first rate in the optimiser.
                anything = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
                self.create_scheduler(num_training_steps=max(10, self.args.max_steps), optimizer=anything)
                self.lr_scheduler = None
        except (ImportError, ValueError, TypeError, RuntimeError) as error:
            raise RetFoundError(f"options of the training: {one_line(error)}") from error

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.sampler or super()._get_train_sampler(train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        training_collator = self.data_collator
        self.data_collator: Any = self.evaluation_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = training_collator

    def _load_best_model(self) -> None:
        if not self._load_weights(self.state.best_model_checkpoint):
            super()._load_best_model()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_weights(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with errors_of_loading(checkpoint or ""):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with errors_of_loading(checkpoint or ""):
            super()._load_rng_state(checkpoint)

    def _load_weights(self, checkpoint: str) -> bool:
        """Load whole weights as `from_pretrained` does; False where Trainer's own way is the right one.

        Trainer matches tensors by name, and would skip those of stock models, which transformers 5 stores under other
        names than they have in memory.
        """
        model = self.model
        if not isinstance(model, PreTrainedModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return False
        stored, _, _ = read_weights(type(model), checkpoint, config=model.config)
        model.load_state_dict(stored.state_dict())
        return True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Loss with the options of this training; in evaluation the plain loss, as `evaluate` computes it."""
        outputs = model(pixel_values=inputs["pixel_values"])
        if self.target_scale:
            outputs.logits = self.target_scale.to_units(outputs.logits)
        config, options = self.accelerator.unwrap_model(model).config, self.loss_options if model.training else {}
        loss = classification_loss(outputs.logits, inputs["labels"], config, **options)
        return (loss, outputs) if return_outputs else loss


# A loss of some units moves AUROC by less than one pair out of 100,000 would.
TIE_BREAK = 1e-6


def selection_metrics(prediction: EvalPrediction, classifier: Classifier) -> dict[str, float]:
    """Validation metrics of one epoch, and `selection`, the number by which the best epoch is chosen.

    That is AUROC as in the paper; among epochs of equal AUROC the one of the lowest loss is chosen, since a small
    validation split is soon ranked without a fault, long before the probabilities mean anything. Where AUROC is
    undefined, and for regression, it is the negative loss.
    """
    # Rounded to float32, so that probabilities which differ by the noise of the last bits are ties.
    kind, names, order = classifier.problem_type, classifier.class_names, classifier.class_order
    scores = to_scores(np.asarray(prediction.predictions, np.float32), kind).astype(np.float32)
    found = Predictions(np.arange(len(scores)), scores, prediction.label_ids, names, kind, class_order=order)
    metrics = found.metrics()
    auroc, loss = metrics.get("auroc"), metrics["loss"]
    metrics["selection"] = -loss if auroc is None else auroc - TIE_BREAK * loss
    # Trackers refuse None, and per-class numbers would bury the epoch's line.
    return {name: value for name, value in metrics.items() if value is not None and "/" not in name}


class BalancedSampler(Sampler[int]):
    """Draws with replacement so that every class comes equally often.

    The draws follow from the seed and the epoch alone: every process has the same, and so has a resumed run.

    Args:
        targets: (images,) classes.
        problem_type: of the targets; one class per image is needed.
        seed: of the draws.
    """

    def __init__(self, targets: np.ndarray, problem_type: str, seed: int):
        if problem_type != SINGLE_LABEL:
            raise BadArgumentError(
                f"`sampler=balanced` needs one class per image; the problem type is {problem_type}",
                field="sampler", value="balanced",
            )  # fmt: skip
        shares = 1.0 / np.bincount(targets)[targets]
        self.probabilities = shares / shares.sum()
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Trainer before every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.probabilities)

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng((self.seed, self.epoch))
        yield from generator.choice(len(self), size=len(self), p=self.probabilities).tolist()
