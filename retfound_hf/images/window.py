"""A rectangle of an image that a network looked at, and the way back from it."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..runs.errors import RetFoundError


@dataclass(frozen=True)
class Window:
    """A rectangle in pixels of an image, edges at fractions of them; it may reach beyond the image.

    Pixel (i, j) of an image covers x from i to i + 1 and y from j to j + 1.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, x: float, y: float | None = None) -> "Window":
        """The same part of the image after its pixels are multiplied by `x` (and `y`, or else `x` too)."""
        y = x if y is None else y
        return Window(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def moved(self, x: float, y: float) -> "Window":
        return Window(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def place(self, values: np.ndarray, size: tuple[int, int], outside: float = 0.0) -> np.ndarray:
        """Lay a map that fills the window, of any resolution, onto the image.

        Args:
            values: (rows, columns), of which each covers an equal part of the window. Between their centres the map
                is linear, towards the window's edge flat.
            size: width and height of the image in pixels.
            outside: value of pixels that the window does not reach.

        Returns:
            float32 (height, width).

        Raises:
            RetFoundError: a map that is not two-dimensional.
        """
        if values.ndim != 2:
            raise RetFoundError(f"a map has shape {values.shape}; give (rows, columns)")
        rows, columns = values.shape
        across, down = columns / (self.right - self.left), rows / (self.bottom - self.top)
        picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        affine = (across, 0.0, -self.left * across, 0.0, down, -self.top * down)
        placed = picture.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=outside)
        return np.asarray(placed)
