"""A circle through noisy points of which some belong to something else."""

from dataclasses import dataclass

import numpy as np

ROUNDS = 8


@dataclass(frozen=True)
class Circle:
    """Centre and radius in pixels; `inliers` is the fraction of the points within 2% of the radius of the circle."""

    x: float
    y: float
    radius: float
    inliers: float


def fit_circle(x: np.ndarray, y: np.ndarray) -> Circle | None:
    """Least-squares circle (Kasa 1976), fitted again to the points near it until they no longer change.

    Args:
        x, y: (n,) coordinates of the points.

    Returns:
        None for fewer than 12 points or points that lie on a line.
    """
    keep = np.ones(len(x), dtype=bool)
    centre_x = centre_y = radius = 0.0
    for round_ in range(ROUNDS):
        if keep.sum() < 12:
            return None
        # Centred coordinates keep the normal equations well conditioned.
        mean_x, mean_y = x[keep].mean(), y[keep].mean()
        u, v = x[keep] - mean_x, y[keep] - mean_y
        solution, _, rank, _ = np.linalg.lstsq(
            np.stack([2 * u, 2 * v, np.ones_like(u)], axis=1), u**2 + v**2, rcond=None
        )
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
