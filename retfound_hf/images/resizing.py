"""The one way in which images are resized for the network."""

from collections.abc import Mapping

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional


def resize_square(image: Image.Image, side: int) -> Image.Image:
    """An 8-bit RGB image resized to `side` x `side`: bicubic, antialiased, to the bit as the image processor does."""
    return resize(image, {"height": side, "width": side})


def resize(image: Image.Image, size: Mapping[str, int]) -> Image.Image:
    """`resize_square` for the two kinds of size an image processor has.

    Args:
        size: `{"height": ..., "width": ...}`, or `{"shortest_edge": ...}` to keep the shape.
    """
    target = [size["shortest_edge"]] if size.get("shortest_edge") else [size["height"], size["width"]]
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = functional.resize(pixels, target, InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())
