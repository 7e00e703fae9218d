"""The card of a converted folder."""

from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..card import describe_preprocessing, write_card
from ..image_processing import RetFoundImageProcessor
from ..starting_points import OFFICIAL_LICENSE, OFFICIAL_ORGANISATION
from .other_methods import OtherEncoder
from .reading import OfficialCheckpoint

# The official weights: each repository holds one file, `<name>.pth`.
OFFICIAL_NAMES = (
    "RETFound_mae_natureCFP", "RETFound_mae_natureOCT", "RETFound_mae_meh", "RETFound_mae_shanghai",
    "RETFound_dinov2_meh", "RETFound_dinov2_shanghai",
)  # fmt: skip
FINISHED = {"RETFound_mae_natureCFP": "retfound-cfp", "RETFound_mae_natureOCT": "retfound-oct"}
PAPER_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 16, "image_size": 224}
MODALITY_NAMES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans"}
DESCRIPTIONS = {
    "autoencoder": "masked autoencoder (encoder and decoder)",
    "encoder": "encoder without decoder",
    "classifier": "fine-tuned classifier",
    "dinov2": "DINOv2 encoder",
}


def write_converted_card(
    folder: Path,
    name: str,
    kind: str,
    modality: str,
    source: str | Path,
    checkpoint: OfficialCheckpoint,
    config: PreTrainedConfig,
    processor: RetFoundImageProcessor,
) -> Path:
    """Write the card; `name` is that of the folder it will be.

    The two models of the paper have finished cards, known by the name of the file; of others the file alone tells.
    """
    provenance = (
        f"Source file `{checkpoint.path.name}`, SHA-256 `{checkpoint.sha256}`. The official weights are released "
        "under CC BY-NC 4.0, which holds for this folder and for what is fine-tuned from it."
    )
    finished = FINISHED.get(_official_name(source, checkpoint.path))
    if finished and all(getattr(config, size) == value for size, value in PAPER_SIZES.items()):
        path = write_card(folder, finished, None, folder_name=name)
        text = path.read_text(encoding="utf-8").replace(finished, name)
        path.write_text(f"{text}\n## Provenance\n\n{provenance}\n", encoding="utf-8")
        return path
    pipeline = "image-classification" if kind == "classifier" else "image-feature-extraction"
    metadata: dict[str, Any] = {"license": OFFICIAL_LICENSE, "pipeline_tag": pipeline}
    if base := _official_name(source, checkpoint.path):
        metadata["base_model"] = f"{OFFICIAL_ORGANISATION}/{base}"
    unknown = "What it was trained on is not told by the file"
    facts = {
        "folder_name": name,
        "title": f"{name}: RETFound, {DESCRIPTIONS[kind]}",
        "description": (
            f"Converted from an official RETFound checkpoint: {DESCRIPTIONS[kind]} for {MODALITY_NAMES[modality]}."
        ),
        "training_data": f"{MODALITY_NAMES[modality].capitalize().replace('Oct', 'OCT')}. {unknown}.",
        "preprocessing": describe_preprocessing(processor),
        "cost": "That of training is not told by the file; conversion takes minutes on a CPU.",
        "provenance": provenance,
    }
    if kind == "classifier":
        facts |= {
            "targets": "The classes are those of `config.json`, in the order of the head.",
            "evaluation": "Not evaluated since the conversion, which changes no weight: `retfound evaluate` does it.",
            "calibration": "Not measured.",
            "problem_type": config.problem_type or "single_label_classification",
        }
        return write_card(folder, "finetuned", metadata, **facts)
    return write_card(folder, "pretrained", metadata, has_decoder=kind == "autoencoder", **facts)


def write_other_card(
    folder: Path,
    name: str,
    encoder: OtherEncoder,
    modality: str | None,
    checkpoint: OfficialCheckpoint,
    config: PreTrainedConfig,
    processor: RetFoundImageProcessor,
) -> Path:
    """The card of an encoder that another method trained; `name` is that of the folder it will be."""
    blocks = getattr(config, "num_hidden_layers", None) or sum(config.depths)
    what = f"{'ViT' if encoder.kind == 'vit' else 'ResNet'} of {blocks} blocks"
    method = encoder.method or "a method that the file does not tell"
    images = f"{MODALITY_NAMES[modality].capitalize().replace('Oct', 'OCT')}" if modality else "Natural images"
    if encoder.method:
        license = f"The licence of {encoder.method}'s released weights, {encoder.license}, holds"
    else:
        license = "The file tells no licence: its publisher's holds"
    return write_card(
        folder,
        "starting_weights",
        {"license": encoder.license or "unknown", "pipeline_tag": "image-feature-extraction"},
        folder_name=name,
        title=f"{name}: a {what} to start from",
        description=f"A {what}, trained by {method}, without the heads of that training.",
        training_data=f"{images}, as far as is known: the file does not tell.",
        preprocessing=describe_preprocessing(processor),
        provenance=(
            f"Source file `{checkpoint.path.name}`, SHA-256 `{checkpoint.sha256}`. {license} for this folder "
            "and for what is made from it."
        ),
    )


def _official_name(source: str | Path, path: Path) -> str:
    """The name among the official weights that a source bears, or nothing."""
    names = (path.stem, str(source).split("/")[-1])
    return next((name for name in names if name in OFFICIAL_NAMES), "")
