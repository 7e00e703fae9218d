"""Anti-aliased masks drawn in retinal units, as one photograph sees them."""

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from .vessels import Vessel

SUPERSAMPLING = 2


class Canvas:
    """One photograph's view of the retina.

    Args:
        height, width: size of the photograph in pixels.
        centre: pixel (x, y) of the field's centre.
        radius: of the field, in pixels; the unit of retinal coordinates times `zoom`.
        shift, rotation, zoom: the camera's aim: retinal offset (x, y), angle in radians, magnification.
        blur: standard deviation of the camera's point spread in pixels.
    """

    def __init__(
        self,
        height: int,
        width: int,
        centre: tuple[float, float],
        radius: float,
        shift: np.ndarray,
        rotation: float,
        zoom: float,
        blur: float,
    ) -> None:
        self.height, self.width, self.blur = height, width, blur
        self.scale = radius * zoom
        self.origin = np.asarray(centre) + shift * self.scale
        cos, sin = np.cos(rotation), np.sin(rotation)
        self.turn = np.array([[cos, -sin], [sin, cos]])
        x = np.arange(width, dtype=np.float32) + 0.5
        y = np.arange(height, dtype=np.float32)[:, None] + 0.5
        self.field_radius = np.hypot((x - centre[0]) / radius, (y - centre[1]) / radius).astype(np.float32)
        dx, dy = (x - self.origin[0]) / self.scale, (y - self.origin[1]) / self.scale
        self.x = (cos * dx + sin * dy).astype(np.float32)
        self.y = (cos * dy - sin * dx).astype(np.float32)

    def window(self, centre: tuple[float, float], radius: float) -> tuple[slice, slice] | None:
        """Rows and columns that hold a circle given in retinal units; None where it lies outside the image."""
        x, y = self._to_sheet(np.array(centre)) / SUPERSAMPLING
        reach = radius * self.scale
        rows = slice(max(0, int(y - reach)), min(self.height, int(y + reach) + 1))
        columns = slice(max(0, int(x - reach)), min(self.width, int(x + reach) + 1))
        return (rows, columns) if rows.start < rows.stop and columns.start < columns.stop else None

    def vessels(self, vessels: tuple[Vessel, ...], artery: int, vein: int, width_factor: float = 1.0) -> np.ndarray:
        """Opacity (height, width) float32 of the vessel tree, `artery` and `vein` being opacities of 255."""
        image, draw = self._sheet()
        for vessel in vessels:
            points = self._to_sheet(vessel.points)
            widths = vessel.widths * self.scale * SUPERSAMPLING * width_factor
            fill = vein if vessel.is_vein else artery
            for first in range(0, len(points) - 1, 8):
                width = max(1, round(widths[first]))
                # Joints are drawn in Python, and thin lines show none.
                joint = "curve" if width > 3 else None
                draw.line(points[first : first + 9].ravel().tolist(), fill=fill, width=width, joint=joint)
        return self._alpha(image)

    def blobs(
        self,
        centres: np.ndarray,
        radii: np.ndarray,
        opacity: np.ndarray,
        rng: np.random.Generator,
        ragged: float = 0.09,
        softness: float = 0.0,
    ) -> np.ndarray:
        """Opacity (height, width) float32 of irregular spots.

        Args:
            centres: (n, 2) in retinal units.
            radii: (n, 2) semi-axes in retinal units, or (n,) for round spots.
            opacity: (n,) from 0 to 1.
            ragged: relative irregularity of the outline.
            softness: standard deviation of the outline's blur in retinal units, besides the camera's.
        """
        if len(centres) == 0:
            return np.zeros((self.height, self.width), dtype=np.float32)
        image, draw = self._sheet()
        radii = np.broadcast_to(radii[:, None] if radii.ndim == 1 else radii, (len(centres), 2))
        angles = np.linspace(0, 2 * np.pi, 20, endpoint=False)
        waves = np.arange(2, 6)[:, None] * angles
        for centre, (long, short), alpha in zip(centres, radii, opacity, strict=True):
            r = 1 + ragged * rng.normal(0, 1, 4) @ np.cos(waves + rng.uniform(0, 2 * np.pi, (4, 1)))
            outline = np.stack([long * r * np.cos(angles), short * r * np.sin(angles)], axis=1)
            spin = rng.uniform(0, np.pi)
            outline = outline @ np.array([[np.cos(spin), np.sin(spin)], [-np.sin(spin), np.cos(spin)]])
            draw.polygon(self._to_sheet(centre + outline).ravel().tolist(), fill=round(255 * float(alpha)))
        return self._alpha(image, softness)

    def _sheet(self) -> tuple[Image.Image, ImageDraw.ImageDraw]:
        image = Image.new("L", (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING))
        return image, ImageDraw.Draw(image)

    def _to_sheet(self, points: np.ndarray) -> np.ndarray:
        return (self.origin + (points @ self.turn.T) * self.scale) * SUPERSAMPLING

    def _alpha(self, sheet: Image.Image, softness: float = 0.0) -> np.ndarray:
        blur = ImageFilter.GaussianBlur(float(np.hypot(self.blur, softness * self.scale)))
        return np.asarray(sheet.reduce(SUPERSAMPLING).filter(blur), dtype=np.float32) / 255
