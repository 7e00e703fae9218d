"""Relevance maps of a set of images, written one by one."""

from typing import Any

import torch
from PIL import Image
from transformers import PreTrainedModel

from ..images.window import Window
from ..inference.forward import DTYPES, to_scores
from .arguments import LABEL, PREDICTED
from .batches import GoodBatches
from .outputs import Outputs
from .pictures import heat_on_image, overlay, with_scale
from .relevance import relevance
from .sources import Opened

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
            if item.source.label is not None:
                row["label"] = item.source.label
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
    return [item.source.label for item in items] if target == LABEL else target


def _seen(picture: Image.Image, window: Window) -> Image.Image:
    """The part of a picture that the network saw."""
    return picture.crop(tuple(round(edge) for edge in (window.left, window.top, window.right, window.bottom)))
