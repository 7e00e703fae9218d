"""The card of a pretrained folder, filled from the run."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..models.card import base_model_of, describe_preprocessing, license_of, write_card
from ..models.image_processing import RetFoundImageProcessor
from .arguments import ModelArguments, PretrainingArguments
from .order import Order

MODALITIES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans", None: "retinal images"}


def write_pretrained_card(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    processor: RetFoundImageProcessor,
    model_args: ModelArguments,
    args: PretrainingArguments,
    order: Order,
) -> Path:
    """Write the card into `folder`; `name` is that of the folder it will be."""
    base = model_args.model_name_or_path
    start = f"the weights of `{base}`" if base else f"random weights (preset `{model_args.config_name}`)"
    metadata: dict[str, Any] = {"pipeline_tag": "image-feature-extraction"}
    if base:
        metadata |= {"license": license_of(base), "base_model": base_model_of(base)}
    images = MODALITIES[model.config.modality]
    masked = f"mask ratio {model.config.mask_ratio}, " if model_args.objective == "mae" else ""
    return write_card(
        folder,
        "pretrained",
        metadata,
        folder_name=name,
        title=f"{name}: RETFound pretrained on {images}",
        description=(
            f"Self-supervised pretraining ({model_args.objective}) on {order.num_images:,} {images}, from {start}."
        ),
        preprocessing=describe_preprocessing(processor),
        provenance=(
            f"{order.total_steps:,} steps of {order.global_batch:,} images; {masked}peak learning rate "
            f"{args.peak_learning_rate(order.global_batch):.3g}, weight decay {args.weight_decay}, seed {args.seed}. "
            "`run.json` beside this card holds every setting and version, `metrics.jsonl` the course of the loss."
        ),
    )
