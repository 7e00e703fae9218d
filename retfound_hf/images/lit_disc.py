"""Where in a small grey image the lit disc of a fundus photograph lies."""

import numpy as np
from scipy import ndimage

from .circles import Circle, fit_circle


def box_of_disc(value: np.ndarray) -> tuple[float, float, float, float] | None:
    """Find the lit disc of a fundus photograph.

    Args:
        value: brightness, uint8 (height, width), some 250 pixels wide.

    Returns:
        (left, top, right, bottom) of the disc's visible part, to a fraction of a pixel; None without a disc.
    """
    if min(value.shape) < 16:
        return None
    value = ndimage.median_filter(value, 3)
    lit = _lit_part(value)
    if lit is None:
        return None
    height, width = value.shape
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    outline = lit & ~ndimage.binary_erosion(lit, border_value=1)
    y, x = np.nonzero(outline)
    # Straight cuts run along the box, whether at the image's edge or within it.
    free = (x >= left + 2) & (x < right - 2) & (y >= top + 2) & (y < bottom - 2)
    x, y = x[free] + 0.5, y[free] + 0.5
    circle = fit_circle(x, y)
    if circle is None or not _is_field(circle, lit):
        return None
    circle = _sharpened(circle, x, y, value)
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


def _lit_part(value: np.ndarray) -> np.ndarray | None:
    """Largest part (height, width) bool that is clearly brighter than the corners, holes filled."""
    height, width = value.shape
    h, w = max(3, height // 32), max(3, width // 32)
    corners = np.stack([value[:h, :w], value[:h, -w:], value[-h:, :w], value[-h:, -w:]]).reshape(4, -1).astype(float)
    # Half of the corners may hold a caption or a bit of the field: the darker two speak for the background.
    darkest = corners[np.argsort(np.median(corners, axis=1))[:2]]
    level = float(np.median(darkest))
    spread = 1.4826 * float(np.median(np.abs(darkest - level)))
    bright = float(np.percentile(value, 90))
    if bright - level < max(12, 4 * spread):
        return None
    threshold = level + min(max(6, 5 * spread, 0.1 * (bright - level)), 0.4 * (bright - level))
    parts, count = ndimage.label(ndimage.binary_opening(value > threshold, iterations=2))
    if count == 0:
        return None
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    lit = ndimage.binary_fill_holes(parts == sizes.argmax())
    return lit if 0.1 < lit.mean() < 0.99 else None


def _sharpened(circle: Circle, x: np.ndarray, y: np.ndarray, value: np.ndarray) -> Circle:
    """The circle through the steepest descent near its outline: a low threshold lies outside a blurred edge."""
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


def _is_field(circle: Circle, lit: np.ndarray) -> bool:
    height, width = lit.shape
    if not 0.2 * min(height, width) < circle.radius < 0.75 * max(height, width):
        return False
    y, x = np.ogrid[:height, :width]
    disc = np.hypot(x + 0.5 - circle.x, y + 0.5 - circle.y) <= circle.radius
    both = (disc & lit).sum()
    return bool(circle.inliers > 0.6 and both > 0.75 * disc.sum() and both > 0.9 * lit.sum())
