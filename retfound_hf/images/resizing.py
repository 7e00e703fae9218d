"""The one way in which images are resized for the network."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

STRIP = 64  # rows


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

    It is copied in strips: Pillow hands over a whole photograph through several copies, each of which costs more than
    resizing it.

    Args:
        box: (left, top, right, bottom) in pixels, black where it reaches beyond the image; None for the whole image.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, x1 = max(left, 0), min(right, image.width)
    for y0 in range(max(top, 0), min(bottom, image.height), STRIP):
        y1 = min(y0 + STRIP, bottom, image.height)
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(image.crop((x0, y0, x1, y1)))
    return torch.from_numpy(pixels).permute(2, 0, 1)
