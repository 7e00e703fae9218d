"""One image on its way into the cache: read, cropped, resized, encoded as PNG."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch
from PIL import Image

from ..images.fundus import crop_field_of_view
from ..images.reading import UnreadableImageError, read_image
from ..images.resizing import resize


@dataclass(frozen=True)
class Decoder:
    """Prepares the images of a `datasets.Dataset.map`; an object, so that it can be sent to worker processes.

    Attributes:
        size, crop, exact: see `prepared.prepare_images`.
        is_worker: runs in a process of its own.
    """

    size: dict[str, int]
    crop: bool
    exact: bool
    is_worker: bool = False

    def __call__(self, source: dict[str, Any]) -> dict[str, Any]:
        """Columns `image` and `reason` for the columns `path` and `bytes`, one of which is None.

        The reason is empty, or says why there is no image.
        """
        if self.is_worker:
            torch.set_num_threads(1)  # threads of a forked process can hang, and the processes share the cores
        try:
            image = self.decode(source["path"] or source["bytes"])
        except UnreadableImageError as error:
            name = source["path"] or "the image"
            return {"image": None, "reason": str(error).removeprefix(f"cannot read {name}: ")}
        png = BytesIO()
        image.save(png, "PNG", compress_level=1)
        return {"image": {"bytes": png.getvalue(), "path": None}, "reason": ""}

    def can_decode(self, source: str | bytes) -> bool:
        try:
            self.decode(source)
        except UnreadableImageError:
            return False
        return True

    def decode(self, source: str | bytes | Image.Image) -> Image.Image:
        """The prepared image, 8-bit RGB."""
        side = min(self.size.values())
        # The smallest field that the crop accepts is 0.4 of its photograph's shorter side: it keeps `side` pixels.
        image = read_image(source, min_side=None if self.exact else 5 * side // 2)
        if self.crop:
            image = crop_field_of_view(image)
        if self.exact:
            return resize(image, self.size)
        scale = side / min(image.size)
        if scale >= 1:
            return image
        shape = tuple(max(1, round(length * scale)) for length in image.size)
        return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)
