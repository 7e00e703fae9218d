"""The card of a pretrained folder, filled from the run."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from ..models.card import describe_preprocessing, hub_id_of, license_of, write_card
from ..models.card_results import cost_text
from ..models.image_processing import RetFoundImageProcessor
from ..runs.record import hardware
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .order import Order

TITLES = {
    "mae": "masked autoencoding", "simclr": "SimCLR", "swav": "SwAV", "dino": "DINO", "moco_v3": "MoCo v3",
}  # fmt: skip
MODALITIES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans", None: "retinal images"}


def write_pretrained_card(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    processor: RetFoundImageProcessor,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
    order: Order,
    seconds: float,
) -> Path:
    """Write the card into `folder`; `name` is that of the folder it will be."""
    base = model_args.model_name_or_path
    start = (
        f"the weights of `{Path(base).name if Path(base).exists() else base}`"
        if base
        else f"random weights (preset `{model_args.config_name}`)"
    )
    metadata: dict[str, Any] = {"pipeline_tag": "image-feature-extraction"}
    if base:
        metadata |= {"license": license_of(base)}
        metadata |= {"base_model": named, "base_model_relation": "finetune"} if (named := hub_id_of(base)) else {}
    on_hub = [source for source in data_args.train_data if not Path(source).exists()]
    if on_hub:
        metadata["datasets"] = on_hub
    sources = ", ".join(f"`{source if source in on_hub else Path(source).name}`" for source in data_args.train_data)
    images = MODALITIES[model.config.modality]
    masked = f"mask ratio {model.config.mask_ratio}, " if model_args.objective == "mae" else ""
    return write_card(
        folder,
        "pretrained",
        metadata,
        folder_name=name,
        title=f"{name}: RETFound pretrained on {images}",
        description=(
            f"Self-supervised pretraining by {TITLES[model_args.objective]} on {order.num_images:,} {images}, "
            f"from {start}."
        ),
        has_decoder=model_args.objective == "mae",
        training_data=(
            f"{order.num_images:,} {images} of {sources}, without labels. The shards say nothing of the age, sex or "
            "origin of the patients."
        ),
        preprocessing=describe_preprocessing(processor),
        cost=cost_text(seconds, hardware()),
        provenance=(
            f"{order.total_steps:,} steps of {order.global_batch:,} images; {masked}peak learning rate "
            f"{args.peak_learning_rate(order.global_batch):.3g}, weight decay {args.weight_decay}, seed {args.seed}. "
            "`metrics.jsonl` holds the course of the loss; `run.json`, with every setting and version, stays with the "
            "owner when the folder is published."
        ),
    )
