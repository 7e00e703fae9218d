"""Field of view of a colour fundus photograph: the lit disc on a dark surround, and the square crop around it.

The image is reduced to about 256 pixels and split by a threshold above the level of its corners; a circle is fitted to
the outline of the largest bright part. Straight cuts (a disc larger than the sensor), notches, captions and specks lie
off the circle and do not move it. An outline that is not a circle means that there is no field to crop.

`ImageRegion` is a part of an image in general.
"""

from dataclasses import dataclass

import numpy as np
from PIL import Image
from scipy import ndimage

from ..errors import BadDataError

CROP_VERSION = 1  # of the rule in this module: caches and shards of another version are made anew
SMALLEST_FIELD = 0.4  # smallest accepted diameter of the field, as a share of the image's shorter side
DETECTION_SIDE = 256
# The crop of a crop must be itself: a square within this share of the whole image is the whole image.
WHOLE_TOLERANCE = 0.02
FIT_ROUNDS = 8
FEWEST_POINTS = 12


@dataclass(frozen=True)
class FieldOfView:
    """Bounding box of the lit field in pixels, `right` and `bottom` exclusive.

    `found` is false where the image has no dark surround to cut away (an OCT B-scan, a patch, an image that is cropped
    already); the box is then the whole image.
    """

    left: int
    top: int
    right: int
    bottom: int
    found: bool

    @property
    def side(self) -> int:
        """Side of the square crop in pixels: the longer side of the box."""
        return max(self.right - self.left, self.bottom - self.top)


def side_to_read(side: int) -> int:
    """Shorter side in pixels that an image needs for the smallest accepted field to have `side` pixels."""
    return int(side * (1 / SMALLEST_FIELD))


def find_field_of_view(image: np.ndarray | Image.Image) -> FieldOfView:
    """Find the lit disc of a fundus photograph, to about 1% of its diameter.

    Args:
        image: RGB, uint8, as a PIL image or an array (height, width, 3).

    Raises:
        BadDataError: another shape or type.
    """
    image = as_rgb_image(image)
    factor = max(1, max(image.size) // DETECTION_SIDE)
    # The brightest channel: the rim of a fundus is dark in green and blue long before it is dark in red.
    red, green, blue = (np.asarray(channel) for channel in image.reduce(factor).split())
    box = _box_of_disc(np.maximum(np.maximum(red, green), blue))
    width, height = image.size
    whole = FieldOfView(0, 0, width, height, found=False)
    if box is None:
        return whole
    left, top, right, bottom = (round(edge * factor) for edge in box)
    field = FieldOfView(max(left, 0), max(top, 0), min(right, width), min(bottom, height), found=True)
    slack = WHOLE_TOLERANCE * max(image.size)
    is_whole = all(abs(a - b) <= slack for a, b in zip(square_box(field), (0, 0, width, height), strict=True))
    return whole if is_whole else field


def square_box(field: FieldOfView) -> tuple[int, int, int, int]:
    """Square crop (left, top, right, bottom) in the image's pixels, centred on the field.

    It may reach beyond the image, where the crop is padded with black. Adding `left` and `top` maps a pixel of the
    crop back to the image.
    """
    left = (field.left + field.right - field.side) // 2
    top = (field.top + field.bottom - field.side) // 2
    return left, top, left + field.side, top + field.side


def crop_field_of_view(image: Image.Image) -> Image.Image:
    """Cut an RGB image to its field of view, padded with black to a square; the image itself where there is none.

    This is the first preprocessing step of RETFound's fundus model (AutoMorph, Zhou et al. 2022, step 1).
    """
    box = crop_box(image)
    return image if box == (0, 0, *image.size) else image.crop(box)


def crop_box(image: Image.Image) -> tuple[int, int, int, int]:
    """Square crop to the field of view of an RGB image, or the whole image where there is none."""
    field = find_field_of_view(image)
    return square_box(field) if field.found else (0, 0, *image.size)


def as_rgb_image(image: np.ndarray | Image.Image) -> Image.Image:
    """The image as a PIL image in mode RGB; an array must be uint8 of shape (height, width, 3)."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise BadDataError(f"array of {image.dtype} and shape {image.shape}; give uint8 of shape (height, width, 3)")
    return Image.fromarray(image)


@dataclass(frozen=True)
class Circle:
    """Centre and radius in pixels; `inliers` is the share of the points within 2% of the radius of the circle."""

    x: float
    y: float
    radius: float
    inliers: float


def fit_circle(x: np.ndarray, y: np.ndarray) -> Circle | None:
    """Least-squares circle (Kasa 1976), fitted again to the points near it until they no longer change.

    Args:
        x, y: (n,) coordinates of the points.

    Returns:
        None for fewer than 12 points or points on a line.
    """
    keep = np.ones(len(x), dtype=bool)
    centre_x = centre_y = radius = 0.0
    for round_ in range(FIT_ROUNDS):
        if keep.sum() < FEWEST_POINTS:
            return None
        # Centred coordinates keep the normal equations well conditioned.
        mean_x, mean_y = x[keep].mean(), y[keep].mean()
        u, v = x[keep] - mean_x, y[keep] - mean_y
        equations = np.stack([2 * u, 2 * v, np.ones_like(u)], axis=1)
        solution, _, rank, _ = np.linalg.lstsq(equations, u**2 + v**2, rcond=None)
        if rank < 3:
            return None
        centre_x, centre_y = mean_x + solution[0], mean_y + solution[1]
        radius = float(np.sqrt(max(solution[2] + solution[0] ** 2 + solution[1] ** 2, 0)))
        error = np.abs(np.hypot(x - centre_x, y - centre_y) - radius)
        # The tolerance shrinks, so that a first fit pulled aside by a notch can still recover.
        near = error <= max(1.5, radius * 0.15 * 0.6**round_)
        if round_ >= 4 and (near == keep).all():
            break
        keep = near
    inliers = float((error <= max(1.5, 0.02 * radius)).mean())
    return Circle(float(centre_x), float(centre_y), radius, inliers)


def _box_of_disc(value: np.ndarray) -> tuple[float, float, float, float] | None:
    """Box of the visible part of the disc in brightness uint8 (height, width), to a fraction of a pixel."""
    if min(value.shape) < 16:
        return None
    value = median_of_nine(value)
    lit = _lit_part(value)
    if lit is None:
        return None
    height, width = value.shape
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    y, x = np.nonzero(lit & ~with_neighbours(np.logical_and, lit, beyond=True))
    # Straight cuts run along the box, whether at the image's edge or within it.
    free = (x >= left + 2) & (x < right - 2) & (y >= top + 2) & (y < bottom - 2)
    x, y = x[free] + 0.5, y[free] + 0.5
    circle = fit_circle(x, y)
    if circle is None or not _is_field(circle, lit):
        return None
    circle = _at_steepest_edge(circle, x, y, value)
    r = circle.radius
    # For each side: the outermost lit line, the circle's edge, the outward direction, lit pixels near that line.
    sides = (
        (left, circle.x - r, -1, lit[:, left : left + 2]), (top, circle.y - r, -1, lit[top : top + 2].T),
        (right, circle.x + r, 1, lit[:, right - 2 : right]), (bottom, circle.y + r, 1, lit[bottom - 2 : bottom].T),
    )  # fmt: skip
    edges = []
    for lit_edge, circle_edge, outward, line in sides:
        depth = (circle_edge - lit_edge) * outward
        chord = 2 * np.sqrt(max(depth * (2 * r - depth), 0))
        # A straight cut is lit along its whole chord, a shadow at the rim is not; a lit edge beyond the circle is a
        # notch or a caption that touches.
        is_cut = depth > 0.03 * r and line.any(axis=1).sum() > 0.7 * chord
        edges.append(float(lit_edge if is_cut else circle_edge))
    return max(edges[0], 0), max(edges[1], 0), min(edges[2], width), min(edges[3], height)


def median_of_nine(value: np.ndarray) -> np.ndarray:
    """`ndimage.median_filter(value, 3)` of uint8 (height, width), thirty times faster: a third of an image's time."""
    padded = np.pad(value, 1, mode="edge")
    low, middle, high = _sorted(padded[:-2], padded[1:-1], padded[2:])
    low = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    middle = _sorted(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])[1]
    high = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    return _sorted(low, middle, high)[1]


def _sorted(a: np.ndarray, b: np.ndarray, c: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    return np.minimum(low, c), np.maximum(low, np.minimum(high, c)), np.maximum(high, c)


def with_neighbours(combine: np.ufunc, mask: np.ndarray, beyond: bool = False) -> np.ndarray:
    """Every pixel of a mask (height, width) combined with its four neighbours: its erosion (and) or dilation (or).

    As scipy has them, five times as fast; the pixels outside are `beyond`.
    """
    padded = np.pad(mask, 1, constant_values=beyond)
    across = combine(padded[1:-1, :-2], padded[1:-1, 2:])
    return combine(combine(padded[:-2, 1:-1], padded[2:, 1:-1]), combine(across, mask))


def without_holes(mask: np.ndarray) -> np.ndarray:
    """`ndimage.binary_fill_holes` by one pass: the gaps of a mask (height, width) that no edge touches are filled."""
    gaps, count = ndimage.label(~mask)
    is_open = np.zeros(count + 1, bool)
    for edge in (gaps[0], gaps[-1], gaps[:, 0], gaps[:, -1]):
        is_open[edge] = True
    is_open[0] = False  # the mask itself
    return ~is_open[gaps]


def _lit_part(value: np.ndarray) -> np.ndarray | None:
    """Largest part, bool (height, width), that is clearly brighter than the corners, with its holes filled."""
    height, width = value.shape
    h, w = max(3, height // 32), max(3, width // 32)
    corners = np.stack([value[:h, :w], value[:h, -w:], value[-h:, :w], value[-h:, -w:]]).reshape(4, -1).astype(float)
    # Half of the corners may hold a caption or a bit of the field: the darker two are the background.
    darkest = corners[np.argsort(np.median(corners, axis=1))[:2]]
    level = float(np.median(darkest))
    spread = 1.4826 * float(np.median(np.abs(darkest - level)))  # of a normal distribution: its standard deviation
    bright = float(np.percentile(value, 90))
    if bright - level < max(12, 4 * spread):
        return None
    threshold = level + min(max(6, 5 * spread, 0.1 * (bright - level)), 0.4 * (bright - level))
    bright_part = value > threshold
    for combine in (np.logical_and, np.logical_and, np.logical_or, np.logical_or):  # opened by two pixels
        bright_part = with_neighbours(combine, bright_part)
    parts, count = ndimage.label(bright_part)
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    lit = without_holes(parts == sizes.argmax())
    return lit if 0.1 < lit.mean() < 0.99 else None


def _is_field(circle: Circle, lit: np.ndarray) -> bool:
    """Whether the circle has a plausible size and covers the lit part and little else."""
    height, width = lit.shape
    if not SMALLEST_FIELD / 2 * min(height, width) < circle.radius < 0.75 * max(height, width):
        return False
    y, x = np.ogrid[:height, :width]
    disc = np.hypot(x + 0.5 - circle.x, y + 0.5 - circle.y) <= circle.radius
    both = (disc & lit).sum()
    return bool(circle.inliers > 0.6 and both > 0.75 * disc.sum() and both > 0.9 * lit.sum())


def _at_steepest_edge(circle: Circle, x: np.ndarray, y: np.ndarray, value: np.ndarray) -> Circle:
    """The circle moved to the steepest descent near its outline: a low threshold lies outside a blurred edge."""
    near = np.abs(np.hypot(x - circle.x, y - circle.y) - circle.radius) < 0.05 * circle.radius
    angles = np.arctan2(y[near] - circle.y, x[near] - circle.x)
    reach = max(0.08 * circle.radius, 3)
    radii = np.arange(circle.radius - reach, circle.radius + reach, 0.25)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    smooth = ndimage.gaussian_filter(value.astype(np.float32), 1)
    # Pixel centres lie at half-integers in the box's coordinates, at integers in the array's.
    rays = [circle.y + radii * sin - 0.5, circle.x + radii * cos - 0.5]
    profile = ndimage.map_coordinates(smooth, rays, order=1, mode="nearest")
    steepest = radii[:-4][(profile[:, :-4] - profile[:, 4:]).argmax(axis=1)] + 0.5
    refined = fit_circle(circle.x + steepest * cos[:, 0], circle.y + steepest * sin[:, 0])
    return refined if refined is not None and abs(refined.radius - circle.radius) < reach else circle


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
