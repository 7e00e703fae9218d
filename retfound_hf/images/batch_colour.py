"""Colour jitter, grayscale, blur and solarisation of a whole batch on its device, each image with its own numbers.

Every operation equals torchvision's of the same name on the same numbers, but for the rounding of 8-bit images. None
loops over images, and none asks the host what was drawn: what leaves an image as it is, is computed like the rest.
"""

import torch
from torch import Tensor

from .hue import turn_hue

GRAY = (0.2989, 0.587, 0.114)
# The places of the operations in `factors` and `order` of `jitter_colour`.
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def draw_jitter(
    count: int,
    generator: torch.Generator,
    probability: float,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> dict[str, Tensor]:
    """Draw as torchvision's `ColorJitter` does, for a share `probability` of the images; others are left as they are.

    Args:
        count: number of images.
        generator: on the CPU.
        brightness, contrast, saturation: the factor is uniform in 1 -/+ this.
        hue: the turn is uniform in -/+ this, in turns of the colour circle.

    Returns:
        `factors` float32 (count, 3) and `turns` float32 (count,) for `jitter_colour`; `order` int64 (count, 3), a
        permutation of the first three operations.
    """
    jittered = torch.rand(count, generator=generator) < probability
    spread = 2 * torch.rand(count, 4, generator=generator) - 1
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    spread = spread * torch.tensor([brightness, contrast, saturation, hue]) * jittered[:, None]
    return {"factors": 1 + spread[:, :3], "turns": spread[:, 3].clone(), "order": order}


def jitter_colour(pixels: Tensor, factors: Tensor, order: Tensor, turns: Tensor | None = None) -> Tensor:
    """Brightness, contrast and saturation in each image's own order, then hue.

    Each of the three is a blend with a reference (black, the image's mean gray, every pixel's own gray), so that a
    batch with mixed orders needs three blends. Hue comes last for all; torchvision mixes it in, and nearly commutes.

    Args:
        pixels: float (count, 3, height, width) in 0..255.
        factors: (count, 3) for brightness, contrast, saturation; 1 leaves the image as it is.
        order: (count, 3), which of the three comes first, second, third.
        turns: (count,) of the hue, in turns; None for none.
    """
    for place in range(order.shape[1]):
        operation = order[:, place, None, None, None]
        factor = factors.gather(1, order[:, place : place + 1])[..., None, None]
        gray = to_gray(pixels)
        reference = torch.where(operation == CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True), gray)
        reference = reference * (operation != BRIGHTNESS)
        pixels = torch.lerp(reference, pixels, factor).clamp_(0, 255)
    return pixels if turns is None else turn_hue(pixels, turns)


def to_gray(pixels: Tensor) -> Tensor:
    """Luma (ITU-R BT.601, as Pillow and torchvision): (count, 3, height, width) -> (count, 1, height, width)."""
    red, green, blue = pixels.unbind(1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue)[:, None]


def grayscale(pixels: Tensor, chosen: Tensor) -> Tensor:
    """The images of `chosen`, bool (count,), without their colour."""
    return torch.where(chosen[:, None, None, None], to_gray(pixels), pixels)


def solarize(pixels: Tensor, chosen: Tensor, threshold: float = 128.0) -> Tensor:
    """The images of `chosen`, bool (count,), with their bright values inverted: those from `threshold` on."""
    return torch.where(chosen[:, None, None, None] & (pixels >= threshold), 255 - pixels, pixels)


def blur(pixels: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur with reflected edges, each image with its own width.

    It is separable: a matrix for rows and the same for columns, hence two matrix products for the batch.

    Args:
        pixels: float (count, channels, side, side).
        sigmas: (count,) in pixels; 0 leaves the image as it is.
        kernel_size: odd, at most 2 * side - 1; the bell is cut there, as in torchvision.
    """
    weights = _blur_weights(sigmas, pixels.shape[-1], kernel_size)[:, None]
    with torch.autocast(pixels.device.type, enabled=False):
        return weights @ pixels @ weights.transpose(2, 3)


def _blur_weights(sigmas: Tensor, side: int, kernel_size: int) -> Tensor:
    """What each pixel of a line takes from each: (count, side, side), rows sum to 1."""
    place = torch.arange(side, device=sigmas.device)
    to, source = place[:, None], place[None]
    # A pixel gives to others directly, mirrored at the first pixel, and mirrored at the last; those two themselves
    # are not doubled.
    left, right = (to + source).masked_fill(source == 0, side * 4), 2 * (side - 1) - to - source
    distances = torch.stack([(to - source).abs(), left, right.masked_fill(source == side - 1, side * 4)])
    narrow = sigmas.clamp(min=1e-3)[:, None, None, None]
    weights = torch.exp(-0.5 * (distances / narrow) ** 2) * (distances <= kernel_size // 2)
    weights = weights.sum(dim=1)
    return weights / weights.sum(dim=2, keepdim=True)
