"""Model folders for those who use neither this package nor Transformers: timm's state dict, or an ONNX graph."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ..inference.loading import is_adapter, load_classifier, load_encoder, load_processor, read_config, resolve
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from ..runs.files import whole_folder, write_json

TOLERANCE = 1e-4  # of what the export gives, against the model that it was made from


def export(folder: str, output_dir: str | Path, format: str, overwrite: bool = False) -> Path:
    """Write a model in another format, after its outputs were compared with those of the model itself.

    Args:
        folder: model or adapter folder or Hub id; an adapter is merged into its base.
        output_dir: the folder to make: `model.safetensors` and `timm.json`, or `model.onnx`; and
            `preprocessing.json`, what has to be done to an image before.
        format: `timm` or `onnx`.

    Raises:
        RetFoundError: a model that the format cannot express, a missing extra, outputs that differ.
    """
    from .export_onnx import write_onnx
    from .export_timm import write_timm

    model, is_classifier = load_for_export(folder)
    processor = load_processor(resolve(folder))
    with whole_folder(output_dir, overwrite) as partial:
        if format == "timm":
            write_timm(model, is_classifier, partial)
        else:
            write_onnx(model, is_classifier, dict(processor.crop_size)["height"], partial)
        write_json(partial / "preprocessing.json", preprocessing(processor, model.config, is_classifier))
    return Path(output_dir)


def load_for_export(folder: str) -> tuple[PreTrainedModel, bool]:
    """The classifier of a fine-tuned folder or adapter, or else the encoder; and which of the two it is."""
    name = resolve(folder)
    architectures = read_config(name).architectures or []
    is_classifier = is_adapter(name) or any("ForImageClassification" in found for found in architectures)
    return (load_classifier(name) if is_classifier else load_encoder(name)).float().eval(), is_classifier


def output_of(model: PreTrainedModel, is_classifier: bool, pixels: Tensor) -> Tensor:
    """Logits of a classifier (batch, labels), or the feature vector of an encoder (batch, width)."""
    outputs = model(pixels)
    return outputs.logits if is_classifier else outputs.pooler_output


def example(batch: int, size: int) -> Tensor:
    """Seeded noise in place of images (batch, 3, size, size)."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def check_equal(expected: Tensor, found: Tensor, format: str) -> float:
    """The largest difference of two outputs.

    Raises:
        RetFoundError: it is above `TOLERANCE`.
    """
    difference = (expected - found).abs().max().item()
    if not difference <= TOLERANCE:
        raise RetFoundError(
            f"the {format} export differs from the model by {difference:.2g}, above {TOLERANCE}; nothing is written"
        )
    return difference


def preprocessing(processor: RetFoundImageProcessor, config: Any, is_classifier: bool) -> dict[str, Any]:
    """The steps from an image to the network's input, and what its output means, for those who serve it."""
    size, crop = dict(processor.size), dict(processor.crop_size)
    steps: list[dict[str, Any]] = [{"step": "to_rgb", "bits": 8, "exif_orientation": True}]
    if processor.do_fundus_crop:
        steps.append({"step": "crop_to_field_of_view", "pad": "black, to a square", "if_none_found": "unchanged"})
    steps += [
        {"step": "resize", **size, "interpolation": "bicubic", "antialias": True, "dtype": "uint8"},
        {"step": "center_crop", **crop},
        {"step": "scale", "factor": 1 / 255},
        {"step": "normalize", "mean": list(processor.image_mean), "std": list(processor.image_std)},
    ]
    # Of a size, only the sides that are set.
    steps = [{name: value for name, value in step.items() if value is not None} for step in steps]
    found: dict[str, Any] = {
        "input": {"name": "pixel_values", "layout": "batch, channel, row, column"},
        "steps": steps,
    }
    if not is_classifier:
        return found | {"output": {"name": "features", "meaning": "mean of the patch tokens, normalised"}}
    problem = config.problem_type or "single_label_classification"
    activation = {"single_label_classification": "softmax", "multi_label_classification": "sigmoid"}.get(problem)
    labels = [config.id2label[index] for index in range(config.num_labels)]
    return found | {"output": {"name": "logits", "labels": labels, "problem_type": problem, "activation": activation}}
