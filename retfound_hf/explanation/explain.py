"""Command `explain`: relevance maps of a classifier or reconstructions of an autoencoder for a set of images."""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image
from transformers import PreTrainedModel

from ..files import atomic_folder, refuse_existing
from ..images.drawing import contact_sheet, heat_on_image, overlay, with_scale
from ..images.geometry import ImageRegion
from ..inference.predict import DTYPES, process_state, to_scores
from ..models.loading import load_autoencoder, load_classifier, load_processor
from ..options import parse_arguments
from ..record import write_run_record
from .outputs import (
    LABEL,
    PREDICTED,
    RECONSTRUCTION,
    ExplainArguments,
    ExplainForwardArguments,
    GoodBatches,
    Opened,
    Outputs,
)
from .reconstruction import COLUMNS, paint, sheet_row
from .relevance import relevance

TITLES = ("image", "relevance")


def write_maps(model: PreTrainedModel, batches: GoodBatches, outputs: Outputs) -> None:
    """Explain every image of `batches` and hand its map to `outputs`."""
    arguments = batches.arguments
    names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    kind = model.config.problem_type or "single_label_classification"
    precision = DTYPES[batches.options.options["precision"]]
    device = model.device.type
    for pixels, items in batches:
        with torch.autocast(device, dtype=precision or torch.bfloat16, enabled=precision is not None):
            maps = relevance(model, pixels, _targets(arguments.target, items), arguments.method, arguments.steps)
        scores = to_scores(maps.logits.numpy(), kind)
        for item, patches, target, score in zip(
            items, maps.patches.numpy(), maps.targets.tolist(), scores, strict=True
        ):
            value = float(score[target])
            row: dict[str, Any] = {"class": names[target]}
            row["value" if kind == "regression" else "probability"] = value
            if kind == "single_label_classification":
                row["prediction"] = names[score.argmax()]
            if item.source.facts.get("label") is not None:
                row["label"] = item.source.facts["label"]
            heat = heat_on_image(patches, item.window_on_picture, item.picture.size)
            drawn = overlay(item.picture, heat.values, arguments.opacity)
            number = f"{value:.4g}" if kind == "regression" else f"probability {value:.2f}"
            outputs.add(
                item,
                row,
                with_scale(drawn, f"{names[target]}, {number} ({arguments.method.replace('_', ' ')})", heat.top),
                {"patches": patches, "target": target},
                item.window_on_picture.place(patches, item.picture.size),
                [_seen(picture, item.window_on_picture) for picture in (item.picture, drawn)],
                f"{names[target]} {value:.4g}" if kind == "regression" else f"{names[target]} {value:.2f}",
            )


def _targets(target: str, items: list[Opened]) -> str | list[str | None] | None:
    if target == PREDICTED:
        return None
    return [item.source.facts["label"] for item in items] if target == LABEL else target


def _seen(picture: Image.Image, window: ImageRegion) -> Image.Image:
    """The part of a picture that the network saw."""
    return picture.crop(tuple(round(edge) for edge in (window.left, window.top, window.right, window.bottom)))


def write_reconstructions(model: PreTrainedModel, batches: GoodBatches, outputs: Outputs) -> None:
    """Hide patches of every image of `batches`, let the model paint them, and hand the pictures to `outputs`."""
    ratio, seed = batches.arguments.mask_ratio, batches.options.seed
    for pixels, items in batches:
        found = paint(model, pixels, [item.source.id for item in items], batches.processor, ratio, seed)
        for index, item in enumerate(items):
            row = sheet_row(found, index)
            hidden = found.mask[index]
            loss = float(found.error[index][hidden].mean()) if hidden.any() else 0.0
            error = found.error[index].cpu().numpy()
            outputs.add(
                item,
                {"loss": loss, "hidden": float(hidden.float().mean())},
                contact_sheet([row], titles=COLUMNS),
                {"error": error, "mask": hidden.cpu().numpy()},
                item.window_on_picture.place(error, item.picture.size),
                [_image(picture) for picture in row],
                f"loss {loss:.3f}",
            )


def _image(picture: Tensor) -> Image.Image:
    return to_pil_image(picture.cpu())


def explain(arguments: ExplainArguments, options: ExplainForwardArguments) -> Path:
    """Explain the images and write the folder, whole or not at all.

    Returns:
        The folder: `pictures/`, `arrays/`, `maps.csv`, `maps.npz`, `contact_sheet.png`, `run.json`.

    Raises:
        RetFoundError: a model without classifier or decoder, images that are not there or cannot be read.
    """
    started = time.time()
    folder = Path(options.output_dir)
    refuse_existing(folder, options.overwrite_output_dir)
    name, paints = arguments.model_name_or_path, arguments.method == RECONSTRUCTION
    write, titles = (write_reconstructions, COLUMNS) if paints else (write_maps, TITLES)
    model = load_autoencoder(name) if paints else load_classifier(name)
    model = model.to(process_state().device)
    batches = GoodBatches(arguments, options, model.config, load_processor(name))
    with atomic_folder(folder, options.overwrite_output_dir) as partial:
        outputs = Outputs(partial, arguments.sheet_images, titles)
        write(model, batches, outputs)
        outputs.close()
        write_run_record(
            partial,
            "explain",
            [arguments, options],
            seconds=round(time.time() - started, 1),
            images=len(outputs.rows),
            rejected_images=batches.rejected,
        )
    return folder


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, explain, and say where the results are."""
    arguments, options = parse_arguments(
        ExplainArguments,
        ExplainForwardArguments,
        argv=argv,
        description="Relevance maps of a classifier, or reconstructions of an autoencoder, on the images themselves.",
    )
    folder = explain(arguments, options)
    print(f"Written to {folder}: pictures/, arrays/, maps.csv, maps.npz, contact_sheet.png")
