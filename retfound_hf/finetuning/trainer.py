"""The Trainer of fine-tuning: layer-wise learning rates, the classifier's loss for every model, metrics per epoch."""

import time
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, Sampler
from transformers import EvalPrediction, PreTrainedModel, Trainer, TrainerCallback

from ..evaluation.hf_metric import load_metric
from ..inference.batches import Collator, EvaluationPixels
from ..inference.forward import to_scores
from ..models.image_processing import RetFoundImageProcessor
from ..models.losses import classification_loss
from .arguments import FinetuneTrainingArguments
from .optimization import layer_decay_groups
from .target_scale import TargetScale

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
    metric = load_metric(problem_type, class_names)
    metrics = metric.compute(predictions=scores, references=prediction.label_ids)
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
