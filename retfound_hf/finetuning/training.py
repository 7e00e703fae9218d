"""The two ways to train: the network through Trainer, or the head alone on features."""

import copy
from typing import Any

import numpy as np

from ..inference.batches import PreparedSet
from ..inference.forward import head_inputs
from .augmentation import Mix, TrainingPixels
from .job import FinetuneJob
from .linear import fit_head
from .lora import add_lora, trained_head
from .targets import balanced_sampler
from .trainer import make_trainer


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
