"""The synthetic retina's vessel tree: temporal arcades around the macula, nasal vessels, branches."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

# Right eye, macula at (0, 0): control points, from the disc outwards, of the four trunks (cubic Bezier curves).
TRUNKS = (
    ((0.50, -0.50), (0.00, -0.80), (-0.95, -0.45)),
    ((0.50, 0.45), (0.00, 0.78), (-0.95, 0.45)),
    ((0.72, -0.38), (0.90, -0.60), (1.15, -0.80)),
    ((0.72, 0.32), (0.90, 0.55), (1.15, 0.75)),
)
CALIBRES = (1.0, 1.0, 0.65, 0.65)
FOVEAL_AVASCULAR_RADIUS = 0.14


@dataclass(frozen=True)
class Vessel:
    """A polyline of `points` (n, 2) with `widths` (n,), both in units of the field radius."""

    points: np.ndarray
    widths: np.ndarray
    is_vein: bool


@lru_cache(maxsize=8)  # the photographs of one eye are mostly taken in a row
def grow_vessels(seed: int, disc: tuple[float, float], tortuosity: float) -> tuple[Vessel, ...]:
    """Grow the tree of one eye, arteries before the veins that lie over them; the same seed gives the same tree."""
    rng = np.random.default_rng(seed)
    side = np.array([np.sign(disc[0]), 1.0])
    origin = np.array(disc) * side
    vessels: list[Vessel] = []
    for is_vein in (False, True):
        for trunk, calibre in zip(TRUNKS, CALIBRES, strict=True):
            # An artery and its vein run together: the pair differs by the jitter of the control points.
            controls = np.vstack([origin, np.array(trunk) + rng.normal(0, 0.07, (3, 2))])
            controls[0] += rng.normal(0, 0.015, 2)
            points = _wind(_bezier(controls, 48), rng, 0.012 * tortuosity)
            width = calibre * (rng.uniform(0.028, 0.035) if is_vein else rng.uniform(0.019, 0.025))
            vessels += _with_branches(points, width, is_vein, rng, tortuosity, generations=3)
    return tuple(Vessel(vessel.points * side, vessel.widths, vessel.is_vein) for vessel in vessels)


def _bezier(controls: np.ndarray, count: int) -> np.ndarray:
    t = np.linspace(0, 1, count)[:, None]
    weights = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    return weights @ controls


def _wind(points: np.ndarray, rng: np.random.Generator, amount: float) -> np.ndarray:
    """Displace a curve sideways by a smooth wave that starts at zero."""
    t = np.linspace(0, 1, len(points))
    wave = sum(rng.normal(0, 1 / k) * np.sin(2 * np.pi * k * t) for k in range(2, 6))
    tangent = np.gradient(points, axis=0)
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1)
    normal /= np.linalg.norm(normal, axis=1, keepdims=True) + 1e-9
    return points + amount * 2 * wave[:, None] * normal


def _with_branches(
    points: np.ndarray, width: float, is_vein: bool, rng: np.random.Generator, tortuosity: float, generations: int
) -> list[Vessel]:
    distance = np.linalg.norm(points, axis=1)
    inside = np.flatnonzero(distance < FOVEAL_AVASCULAR_RADIUS)
    if len(inside):
        points = points[: inside[0]]
    if len(points) < 4:
        return []
    widths = width * np.linspace(1, 0.45, len(points))
    family = [Vessel(points, widths, is_vein)]
    if generations == 1:
        return family
    count = int(rng.integers(3, 7)) if generations == 3 else int(rng.integers(1, 3))
    side = rng.choice([-1, 1])
    for position in np.sort(rng.uniform(0.15, 0.9, count)):
        start = int(position * (len(points) - 2))
        step = points[start + 1] - points[start]
        side = -side  # branches leave a vessel on alternating sides
        heading = np.arctan2(step[1], step[0]) + side * rng.uniform(0.4, 1.0)
        length = rng.uniform(0.3, 0.75) * (1 if generations == 3 else 0.5)
        child = _walk(points[start], heading, length, -side * rng.uniform(0, 1.2), rng, tortuosity)
        child_width = widths[start] * rng.uniform(0.45, 0.7)
        family += _with_branches(child, child_width, is_vein, rng, tortuosity, generations - 1)
    return family


def _walk(
    start: np.ndarray, heading: float, length: float, turn: float, rng: np.random.Generator, tortuosity: float
) -> np.ndarray:
    count = max(6, int(length / 0.025))
    noise = np.convolve(rng.normal(0, 0.35 * tortuosity, count), np.ones(3) / 3, mode="same")
    angles = heading + turn * np.linspace(0, 1, count) + np.cumsum(noise) * 0.6
    steps = np.stack([np.cos(angles), np.sin(angles)], axis=1) * (length / count)
    return np.vstack([start, start + np.cumsum(steps, axis=0)])
