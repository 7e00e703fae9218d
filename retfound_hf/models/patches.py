"""Patches of an image: accepted image sizes, the pixels of patches, and the table of their positions."""

import math

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import BadDataError
from .configuration_retfound import RetFoundConfig


def sincos_positions(width: int, grid: int, device: torch.device | None = None) -> Tensor:
    """Sin-cos position table of a square grid of patches (He et al. 2022, released code `util/pos_embed.py`).

    The first half of the channels encodes the column, the second half the row; each half holds the sines, then the
    cosines, of position / 10000^(i / (width/4)). The class token, row 0, is all zeros.

    Returns:
        float32 tensor of shape (1, 1 + grid * grid, width), patches in raster order.
    """
    frequencies = 10000.0 ** -(torch.arange(width // 4, dtype=torch.float64, device=device) / (width // 4))
    angles = torch.arange(grid, dtype=torch.float64, device=device)[:, None] * frequencies  # (grid, width / 4)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)  # (grid, width / 2)
    columns = axis.repeat(grid, 1)
    rows = axis.repeat_interleave(grid, dim=0)
    patches = torch.cat([columns, rows], dim=1)
    return torch.cat([patches.new_zeros(1, width), patches]).float()[None]


def positions_for_grid(table: Tensor, grid: int | tuple[int, int]) -> Tensor:
    """Position table (1, 1 + n * n, width) bicubically interpolated to `grid` rows and columns of patches.

    The class token's row is kept. Interpolation runs in float32, since bicubic weights in half precision shift the
    positions; the result has the table's dtype and shape (1, 1 + rows * columns, width). Under `torch.jit.trace`
    it always interpolates, as stock models do, so that the traced model takes other sizes too.
    """
    own, grid = math.isqrt(table.shape[1] - 1), grid if isinstance(grid, tuple) else (grid, grid)
    if (own, own) == grid and not torch.jit.is_tracing():
        return table
    patches = table[:, 1:].float().unflatten(1, (own, own)).permute(0, 3, 1, 2)
    resized = interpolate(patches, size=grid, mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)


def is_sincos(table: Tensor) -> bool:
    """Whether a position table (1, 1 + n * n, width) is the formula's, up to the digits of its precision."""
    formula = sincos_positions(table.shape[2], math.isqrt(table.shape[1] - 1), table.device)
    return torch.allclose(table.float(), formula, rtol=0, atol=max(torch.finfo(table.dtype).eps, 1e-5))


def select_patches(images: Tensor, places: Tensor, size: int) -> Tensor:
    """Pixels of some patches.

    Args:
        images: (batch, channels, height, width).
        places: (batch, some), numbers of patches in raster order.
        size: of a patch in pixels.

    Returns:
        (batch, some, channels, size, size).
    """
    columns = images.shape[-1] // size
    patches = images.unflatten(3, (columns, size)).unflatten(2, (-1, size)).permute(0, 2, 4, 1, 3, 5)
    return patches[torch.arange(len(images), device=images.device)[:, None], places // columns, places % columns]


def check_image(
    pixel_values: Tensor, config: RetFoundConfig, interpolate_pos_encoding: bool | None
) -> tuple[int, int]:
    """Rows and columns of patches; unless positions are interpolated, the size must be the configuration's.

    Raises:
        BadDataError: images of a shape that the model does not take.
    """
    if pixel_values.ndim != 4 or pixel_values.shape[1] != config.num_channels:
        shape, channels = tuple(pixel_values.shape), config.num_channels
        raise BadDataError(f"pixel_values has shape {shape}; accepted: (batch, {channels}, height, width)")
    (height, width), own, patch = pixel_values.shape[2:], config.image_size, config.patch_size
    if height % patch or width % patch:
        raise BadDataError(
            f"image size {height} x {width} is not accepted: both sides must be multiples of the patch size {patch}, "
            f"as {own} x {own} is"
        )
    if not interpolate_pos_encoding and (height != own or width != own):
        instead = f", or load the model with image_size={height}" if height == width else ""
        raise BadDataError(
            f"image size {height} x {width} differs from the model's {own} x {own}; pass "
            f"interpolate_pos_encoding=True{instead}"
        )
    return height // patch, width // patch
