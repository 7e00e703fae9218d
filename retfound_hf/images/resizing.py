"""The one way in which images are resized for the network."""

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import InterpolationMode, functional


def resize_square(image: Image.Image, side: int) -> Image.Image:
    """An 8-bit RGB image resized to `side` x `side`: bicubic, antialiased, to the bit as the image processor does."""
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    resized = functional.resize(pixels, [side, side], InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())
