"""Resizing, element-wise arithmetic in chunks of rows, and regions of images."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from ..errors import BadDataError

CHUNK_VALUES = 2**20
RESIZING_ROWS = 64


def apply_in_row_chunks(values: np.ndarray, to_eight_bits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (rows, columns) from an element-wise function, computed in chunks of rows to save memory."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, CHUNK_VALUES // max(values.shape[1], 1))
    for start in range(0, len(values), rows):
        result[start : start + rows] = to_eight_bits(values[start : start + rows])
    return result


def resize(image: Image.Image, size: Mapping[str, int]) -> Image.Image:
    """An 8-bit RGB image resized bicubically and antialiased, to the bit as the image processor does.

    Args:
        size: `{"height": ..., "width": ...}`, or `{"shortest_edge": ...}` to keep the shape.
    """
    target = [size["shortest_edge"]] if size.get("shortest_edge") else [size["height"], size["width"]]
    resized = functional.resize(to_tensor(image), target, InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


def resized_shape(shape: tuple[int, int], size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width that an image of `shape` (height, width) has after `resize`."""
    edge = size.get("shortest_edge")
    if not edge:
        return size["height"], size["width"]
    height, width = (max(edge, int(edge * side / min(shape))) for side in shape)
    return height, width


def to_tensor(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """The part of an RGB image within `box` as uint8 (3, height, width), channels last in memory.

    Copied in chunks of rows: Pillow converts a whole photograph through several copies, each slower than resizing.

    Args:
        box: (left, top, right, bottom) in pixels, black where it reaches beyond the image; None for the whole image.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, x1 = max(left, 0), min(right, image.width)
    for y0 in range(max(top, 0), min(bottom, image.height), RESIZING_ROWS):
        y1 = min(y0 + RESIZING_ROWS, bottom, image.height)
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(image.crop((x0, y0, x1, y1)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class ImageRegion:
    """Rectangle on an image, with fractional edges in pixels; it may reach beyond the image.

    Pixel (i, j) of an image covers x from i to i + 1 and y from j to j + 1.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, x: float, y: float | None = None) -> "ImageRegion":
        """The same part of the image after its pixels are multiplied by `x` (and `y`, or else `x` too)."""
        y = x if y is None else y
        return ImageRegion(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def moved(self, x: float, y: float) -> "ImageRegion":
        """The region shifted by `x` and `y` pixels."""
        return ImageRegion(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def place(self, values: np.ndarray, size: tuple[int, int], outside: float = 0.0) -> np.ndarray:
        """Lay a map that fills the region, of any resolution, onto the image.

        Args:
            values: (rows, columns), each covering an equal part of the region; linear between their centres, constant
                beyond the outermost.
            size: width and height of the image in pixels.
            outside: value of pixels beyond the region.

        Returns:
            float32 (height, width).

        Raises:
            BadDataError: a map that is not two-dimensional.
        """
        if values.ndim != 2:
            raise BadDataError(f"a map has shape {values.shape}; give (rows, columns)")
        rows, columns = values.shape
        across, down = columns / (self.right - self.left), rows / (self.bottom - self.top)
        picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        affine = (across, 0.0, -self.left * across, 0.0, down, -self.top * down)
        placed = picture.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=outside)
        return np.asarray(placed)
