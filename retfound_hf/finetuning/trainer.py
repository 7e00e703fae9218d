"""Trainer of fine-tuning: layer-wise learning rates, the classifier's loss for every model, metrics per epoch."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback

from ..evaluation.metrics import compute_metrics
from ..inference.predict import Collator, EvaluationPixels, to_scores
from ..models.backbones import parameter_depths
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.modeling_retfound import classification_loss
from .arguments import FinetuneTrainingArguments
from .targets import TargetScale

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


# A loss of some units moves AUROC by less than one pair out of 100,000 would.
TIE_BREAK = 1e-6


class Clock(TrainerCallback):
    """Adds `seconds` since training began to every entry of the log; a resumed run goes on from the last one."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        before = max((entry.get("seconds", 0.0) for entry in state.log_history), default=0.0)
        self.start = time.monotonic() - before

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        state.log_history[-1]["seconds"] = round(time.monotonic() - self.start, 3)


class FinetuneTrainer(Trainer):
    """`Trainer` with separate collators for training and evaluation, and an optional sampler.

    Args:
        evaluation_collator: turns images into batches without augmentation.
        sampler: of the training set; None shuffles.
        layer_decay: learning-rate factor between layers; None leaves Trainer's own optimiser.
        target_scale: of a regression, whose head gives standard deviations while it is trained.
    """

    def __init__(
        self,
        *,
        evaluation_collator: Collator,
        sampler: Sampler | None = None,
        layer_decay: float | None = None,
        target_scale: TargetScale | None = None,
        **kwargs: Any,
    ):
        model, args = kwargs["model"], kwargs["args"]
        if layer_decay is not None:
            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(args, model)
            options["params"] = layer_decay_groups(model, args.learning_rate, args.weight_decay, layer_decay)
            kwargs["optimizer_cls_and_kwargs"] = (optimizer_class, options)
        super().__init__(**kwargs, callbacks=[Clock()])
        self.evaluation_collator = evaluation_collator
        self.sampler = sampler
        self.target_scale = target_scale
        # The loss below is a batch mean, which Trainer divides by the accumulation steps.
        self.model_accepts_loss_kwargs = False

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        return self.sampler or super()._get_train_sampler(train_dataset)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        training_collator, self.data_collator = self.data_collator, self.evaluation_collator
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

    def _load_weights(self, checkpoint: str) -> bool:
        """Load whole weights as `from_pretrained` does; False where Trainer's own way is the right one.

        Trainer matches tensors by name, and would pass over those of stock models, which transformers 5 stores under
        other names than they bear in memory.
        """
        model = self.model
        if not isinstance(model, PreTrainedModel) or self.is_deepspeed_enabled or self.is_fsdp_enabled:
            return False
        stored = type(model).from_pretrained(checkpoint, config=model.config)
        model.load_state_dict(stored.state_dict())
        return True

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The classifier's own loss, for stock models too, whose classes know no weights and no soft labels."""
        labels = inputs["labels"]
        outputs = model(pixel_values=inputs["pixel_values"])
        if self.target_scale:
            outputs.logits = self.target_scale.to_units(outputs.logits)
        loss = classification_loss(outputs.logits, labels, self.accelerator.unwrap_model(model).config)
        return (loss, outputs) if return_outputs else loss


def selection_metrics(prediction: EvalPrediction, problem_type: str, class_names: tuple[str, ...]) -> dict[str, float]:
    """Validation metrics of one epoch, and `selection`, the number by which the best epoch is chosen.

    That is AUROC as in the paper, of equal ones the epoch of the lower loss: a small validation split is soon ranked
    without a fault, long before the probabilities mean anything. Where AUROC is undefined, and for regression, it is
    the negative loss.
    """
    scores = to_scores(np.asarray(prediction.predictions, np.float32), problem_type)
    metrics: dict[str, Any] = compute_metrics(problem_type, prediction.label_ids, scores, class_names)
    auroc, loss = metrics.get("auroc"), metrics["loss"]
    metrics["selection"] = -loss if auroc is None else auroc - TIE_BREAK * loss
    # Trackers refuse None, and per-class numbers would bury the epoch's line.
    return {name: value for name, value in metrics.items() if value is not None and "/" not in name}


def make_trainer(
    model: PreTrainedModel,
    args: FinetuneTrainingArguments,
    processor: RetFoundImageProcessor,
    train: Dataset,
    validation: Dataset,
    to_pixels: Any,
    mix: Any,
    problem_type: str,
    class_names: tuple[str, ...],
    **options: Any,
) -> FinetuneTrainer:
    """Wire a trainer; `options` as in `FinetuneTrainer`."""
    return FinetuneTrainer(
        model=model,
        args=args,
        train_dataset=train,
        eval_dataset=validation,
        data_collator=Collator(to_pixels, mix),
        evaluation_collator=Collator(EvaluationPixels(processor)),
        compute_metrics=partial(selection_metrics, problem_type=problem_type, class_names=class_names),
        preprocess_logits_for_metrics=_logits_only,
        processing_class=processor,
        **options,
    )


def _logits_only(logits: torch.Tensor | tuple[torch.Tensor, ...], labels: torch.Tensor) -> torch.Tensor:
    return logits[0] if isinstance(logits, tuple) else logits
