"""From prepared images to batches of network input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from ..data.decoding import Decoder
from ..images.reading import UnreadableImageError
from ..images.resizing import resize
from ..models.image_processing import RetFoundImageProcessor


class PreparedSet(Dataset):
    """Images decoded once (see `data.prepared`), with their targets when there are any."""

    def __init__(self, images: Any, targets: np.ndarray | None = None):
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets for {len(images)} images")
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"image": self.images[int(index)]["image"]}
        if self.targets is not None:
            item["labels"] = self.targets[index]
        return item


class SourceSet(Dataset):
    """Images read, cropped and resized as they are asked for; what cannot be read comes black, with the reason."""

    def __init__(self, sources: Sequence[str | bytes | Image.Image], processor: RetFoundImageProcessor):
        self.sources = sources
        self.decoder = Decoder(dict(processor.size), bool(processor.do_fundus_crop), exact=True)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"image": self.decoder.decode(self.sources[index]), "reason": ""}
        except UnreadableImageError as error:
            return {"image": resize(Image.new("RGB", (64, 64)), self.decoder.size), "reason": str(error)}


@dataclass
class Collator:
    """Batches for the network: `pixel_values` float32 (batch, 3, size, size) and, where known, `labels`.

    Args:
        to_pixels: turns the batch's images into `pixel_values`; runs in the loader's workers.
        mix: mixes images and labels of a batch (mixup, cutmix), or None.
    """

    to_pixels: Callable[[Sequence[Image.Image]], Tensor]
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"pixel_values": self.to_pixels([item["image"] for item in items])}
        if "reason" in items[0]:
            batch["reason"] = [item["reason"] for item in items]
        if "labels" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([item["labels"] for item in items]))
            if self.mix is not None:
                batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"])
        return batch


@dataclass
class EvaluationPixels:
    """The rest of the image processor for images that are cropped and resized already."""

    processor: RetFoundImageProcessor

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        outputs = self.processor(list(images), do_fundus_crop=False, do_resize=False, return_tensors="pt")
        return outputs["pixel_values"]
