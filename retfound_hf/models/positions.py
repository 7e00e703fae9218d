"""Fixed 2-D sin-cos position tables and their interpolation to other image sizes."""

import torch
from torch import Tensor, nn


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


def positions_for_grid(table: Tensor, grid: int) -> Tensor:
    """A position table (1, 1 + n * n, width) bicubically interpolated to `grid` x `grid` patches.

    The class token's row is kept. Interpolation runs in float32, since bicubic weights in half precision shift the
    positions; the result has the table's dtype and shape (1, 1 + grid * grid, width).
    """
    own = round((table.shape[1] - 1) ** 0.5)
    if own == grid:
        return table
    patches = table[:, 1:].float().unflatten(1, (own, own)).permute(0, 3, 1, 2)
    resized = nn.functional.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], resized.permute(0, 2, 3, 1).flatten(1, 2).to(table.dtype)], dim=1)
