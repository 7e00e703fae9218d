"""The card of a fine-tuned folder, filled from the run: no number in it is typed."""

from pathlib import Path
from typing import Any

from ..models.card import base_model_of, describe_preprocessing, license_of, write_card
from .job import FinetuneJob

METHODS = {"full": "all weights", "lora": "a LoRA adapter and the head", "linear": "a linear head on frozen features"}


def write_finetuned_card(folder: Path, job: FinetuneJob, metrics: dict[str, Any]) -> Path:
    """Write the card; `metrics` are the test metrics."""
    base = job.model_args.model_name_or_path
    start = f"`{base}`" if base else f"random weights (preset `{job.model_args.config_name}`)"
    counts = {split: len(part.images) for split, part in job.prepared.items()}
    metadata: dict[str, Any] = {"pipeline_tag": "image-classification"}
    if base:
        metadata |= {"license": license_of(base), "base_model": base_model_of(base)}
    rows = [f"| {name} | {value:.3f} |" for name, value in metrics.items() if isinstance(value, float)]
    undefined = [name for name, value in metrics.items() if value is None]
    evaluation = f"On the test split, {counts['test']} images:\n\n| metric | value |\n|---|---|\n" + "\n".join(rows)
    if undefined:
        evaluation += f"\n\nUndefined on this split: {', '.join(undefined)}."
    known = "by patient" if job.labelled.patients_known else "by image, as no patients were given"
    return write_card(
        folder,
        "finetuned",
        metadata,
        title=f"{folder.name}: RETFound fine-tuned ({job.method_args.method})",
        description=f"Started from {start}; trained: {METHODS[job.method_args.method]}.",
        targets=f"{job.labelled.problem_type.replace('_', ' ').capitalize()}: {', '.join(job.labelled.class_names)}.",
        preprocessing=describe_preprocessing(job.processor),
        evaluation=evaluation,
        provenance=(
            f"Trained on {counts['train']} images; epoch or strength chosen on {counts['val']} others. Splits are "
            f"kept apart {known}. Seed {job.args.seed}. `run.json` beside this card holds every setting and version."
        ),
    )
