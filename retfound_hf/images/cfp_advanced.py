"""Lesions of advanced disease on a synthetic fundus: large, in groups, where the anatomy puts them.

Diabetic retinopathy: blot haemorrhages in clusters, rings of hard exudates around leaking vessels, cotton-wool spots,
and the scars of laser treatment. Glaucoma: dark wedges where bundles of nerve fibres are lost. Most are wider than a
patch of 16 pixels, so that a part of them tells what the rest must look like.
"""

import numpy as np

from .anatomy import Eye
from .canvas import Canvas
from .cfp_retina import EXUDATE, blend

BLOOD = np.array([88, 12, 12], dtype=np.float32)
COTTON_WOOL = np.array([236, 222, 194], dtype=np.float32)
SCAR = np.array([232, 206, 150], dtype=np.float32)
PIGMENT = np.array([52, 30, 24], dtype=np.float32)
LASER_SPACING = 0.12


def with_advanced_retinopathy(
    image: np.ndarray, eye: Eye, canvas: Canvas, severity: float, rng: np.random.Generator
) -> np.ndarray:
    """`image` (height, width, 3), float32 in 0-255, with the lesions; a new array."""
    if rng.random() < 0.3 + 0.5 * severity:
        image = _with_laser_scars(image, eye, canvas, severity, rng)
    blots = _clusters(2 + rng.poisson(2 * severity), 0.8, 0.1, (4, 10), rng)
    long = rng.uniform(0.03, 0.05 + 0.02 * severity, len(blots))
    axes = np.stack([long, long * rng.uniform(0.6, 1, len(blots))], axis=1)
    image = blend(image, canvas.blobs(blots, axes, rng.uniform(0.6, 0.9, len(blots)), rng, ragged=0.14), BLOOD)
    rings = [_ring(rng) for _ in range(1 + rng.poisson(1 + severity))]
    exudates = np.concatenate(rings)
    sizes = rng.uniform(0.014, 0.03, len(exudates))
    image = blend(image, canvas.blobs(exudates, sizes, np.full(len(exudates), 0.9), rng), EXUDATE)
    count = 1 + rng.poisson(1 + 3 * severity)
    wool, sizes = _disc(count, 0.7, rng), rng.uniform(0.05, 0.08, count)
    return blend(image, canvas.blobs(wool, sizes, np.full(count, 0.75), rng, softness=0.012), COTTON_WOOL)


def with_nerve_fibre_defects(
    image: np.ndarray, eye: Eye, canvas: Canvas, severity: float, rng: np.random.Generator
) -> np.ndarray:
    """`image` darkened along arcuate bundles of nerve fibres, above or below the macula or both; a new array."""
    # Bundles are taken for halves of ellipses around the fovea through the disc; `height` names one of them.
    along = np.clip(canvas.x / eye.disc[0], -1, 1)
    height = (canvas.y - eye.disc[1] * along) / np.sqrt(np.maximum(1 - along**2, 1e-3))
    lost, temporal = np.zeros_like(height), _step(1 - np.abs(canvas.x / eye.disc[0]))
    halves = (-1, 1) if rng.random() < severity else (int(rng.choice([-1, 1])),)
    for half in halves:
        width = rng.uniform(0.1, 0.16 + 0.2 * severity)
        first = rng.uniform(0.25, 0.4)
        band = _step(half * height - first) * _step(first + width - half * height)
        lost = np.maximum(lost, band * temporal * _step((along + rng.uniform(0.4, 0.95)) / 2))
    return image * (1 - (0.16 + 0.18 * severity) * lost[..., None] * np.array([0.8, 1, 1], dtype=np.float32))


def _with_laser_scars(
    image: np.ndarray, eye: Eye, canvas: Canvas, severity: float, rng: np.random.Generator
) -> np.ndarray:
    """Panretinal photocoagulation: a lattice of pale spots outside the vascular arcades, in some quadrants."""
    steps = np.arange(-9, 10) * LASER_SPACING
    rows, columns = np.meshgrid(steps, steps, indexing="ij")
    columns = columns + np.where(np.arange(19) % 2, LASER_SPACING / 2, 0)[:, None]
    spots = np.stack([columns.ravel(), rows.ravel()], axis=1) + rng.normal(0, 0.012, (19 * 19, 2))
    away = np.linalg.norm(spots - np.array(eye.disc), axis=1) > 2 * eye.disc_radius
    quadrant = (spots[:, 0] > 0) * 2 + (spots[:, 1] > 0)
    treated = rng.permutation(4)[: 1 + rng.binomial(3, severity)]
    spots = spots[away & (np.linalg.norm(spots, axis=1) > 0.5) & np.isin(quadrant, treated)]
    sizes = rng.uniform(0.028, 0.042, len(spots))
    image = blend(image, canvas.blobs(spots, sizes, rng.uniform(0.4, 0.7, len(spots)), rng), SCAR)
    pigmented = rng.random(len(spots)) < 0.4
    centres, inner = spots[pigmented], 0.5 * sizes[pigmented]
    return blend(image, canvas.blobs(centres, inner, np.full(len(centres), 0.8), rng), PIGMENT)


def _clusters(
    count: int, reach: float, spread: float, members: tuple[int, int], rng: np.random.Generator
) -> np.ndarray:
    """Places (n, 2) of spots around `count` centres that lie up to `reach` from the fovea."""
    parts = [centre + rng.normal(0, spread, (int(rng.integers(*members)), 2)) for centre in _disc(count, reach, rng)]
    return np.concatenate(parts)


def _ring(rng: np.random.Generator) -> np.ndarray:
    """Places (n, 2) of exudates on most of a circle near the macula."""
    (centre,) = _disc(1, 0.45, rng)
    radius, start = rng.uniform(0.1, 0.2), rng.uniform(0, 2 * np.pi)
    angles = start + rng.uniform(0, rng.uniform(1.2, 2) * np.pi, int(rng.integers(16, 32)))
    far = radius + rng.normal(0, 0.015, len(angles))
    return centre + far[:, None] * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def _disc(count: int, reach: float, rng: np.random.Generator) -> np.ndarray:
    """Points (count, 2), even over a disc around the fovea."""
    r, angle = reach * np.sqrt(rng.uniform(0, 1, count)), rng.uniform(0, 2 * np.pi, count)
    return np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)


def _step(distance: np.ndarray) -> np.ndarray:
    """0 below 0, 1 above, over about a fiftieth of the field's radius."""
    return 0.5 + 0.5 * np.tanh(distance / 0.02)
