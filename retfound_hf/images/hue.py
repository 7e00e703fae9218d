"""The hue of a batch of images, turned by each image's own angle."""

import torch
from torch import Tensor


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by `turns` of the colour circle and keep saturation and value (Smith 1978), as torchvision does.

    Args:
        pixels: float (count, 3, height, width) in 0..255.
        turns: (count,); 0 leaves an image as it is, but for rounding.
    """
    hue, chroma, value = _hue_chroma_value(pixels)
    hue = (hue + turns[:, None, None]) % 1.0
    # Each channel falls from `value` by the chroma, as far as the hue lies from the channel's own (Smith's hexcone).
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = (offset + 6 * hue) % 6.0
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _hue_chroma_value(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, height, width) each: hue in 0..1, largest minus smallest channel, largest channel."""
    red, green, blue = pixels.unbind(1)
    value, smallest = pixels.amax(dim=1), pixels.amin(dim=1)
    chroma = value - smallest
    scale = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    return sixth / 6 % 1.0, chroma, value
