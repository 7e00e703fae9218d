"""The healthy parts of a synthetic fundus: choroid, macula, spots without meaning, optic disc, vessels."""

import math

import numpy as np
from scipy import ndimage

from .anatomy import Eye
from .canvas import Canvas
from .vessels import grow_vessels

BLOND = np.array([238, 150, 92], dtype=np.float32)
DARK = np.array([140, 64, 36], dtype=np.float32)
DRUSEN = np.array([250, 225, 140], dtype=np.float32)
EXUDATE = np.array([250, 232, 140], dtype=np.float32)
RIM = np.array([240, 172, 108], dtype=np.float32)
CUP = np.array([255, 240, 202], dtype=np.float32)
ABSORPTION = np.array([0.35, 0.72, 0.72], dtype=np.float32)
REFLEX = np.array([90, 70, 50], dtype=np.float32)


def blend(image: np.ndarray, alpha: np.ndarray, colour: np.ndarray) -> np.ndarray:
    """`image` (height, width, 3) under `colour` of opacity `alpha` (height, width), all float32; a new array."""
    blended = image.copy()
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if len(rows):
        # Most layers are transparent nearly everywhere.
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        blended[part] += alpha[part][..., None] * (colour - image[part])
    return blended


def background(eye: Eye, canvas: Canvas) -> np.ndarray:
    """Choroid, macula and harmless spots, evenly lit: float32 (height, width, 3) in 0-255."""
    anatomy = np.random.default_rng(eye.seed)
    base = (BLOND + (DARK - BLOND) * eye.pigment) * (1 + eye.hue * np.array([0.05, -0.11, -0.22]))
    shade = 1 + _texture(eye, canvas, anatomy)
    macula = canvas.x**2 + canvas.y**2
    shade -= 0.16 * np.exp(-macula / 0.22**2) + 0.14 * np.exp(-macula / 0.07**2)
    image = shade[..., None] * base.astype(np.float32)

    if anatomy.random() < 0.4:
        count = int(anatomy.integers(2, 9))
        places, sizes = anatomy.normal(0, 0.3, (count, 2)), anatomy.uniform(0.008, 0.02, count)
        image = blend(image, canvas.blobs(places, sizes, np.full(count, 0.3), anatomy), DRUSEN)
    if anatomy.random() < 0.12:
        place, size = anatomy.uniform(-0.6, 0.6, (1, 2)), anatomy.uniform(0.05, 0.1, (1, 2))
        naevus = canvas.blobs(place, size, np.array([0.5]), anatomy, ragged=0.05, softness=0.015)
        image *= 1 - 0.4 * naevus[..., None]
    return image


def with_disc(image: np.ndarray, eye: Eye, canvas: Canvas, cup_ratio: float) -> np.ndarray:
    """Add the optic disc: an orange-pink rim around a pale cup of `cup_ratio` times the disc's diameter."""
    part = canvas.window(eye.disc, 1.8 * eye.disc_radius)
    if part is None:
        return image
    side = math.copysign(1, eye.disc[0])
    dx, dy = (canvas.x[part] - eye.disc[0]) / eye.disc_radius, (canvas.y[part] - eye.disc[1]) / eye.disc_radius
    anatomy = np.random.default_rng(eye.seed + 1)
    rim = RIM + np.float32(anatomy.uniform(-0.1, 0.4)) * (CUP - RIM)
    crescent = anatomy.uniform(0, 0.6) * _inside(np.hypot((dx + side * 0.13) / 0.95, dy / 1.07), 0.06)
    disc = _inside(np.hypot(dx / 0.93, dy / 1.07), 0.05)
    cup = _inside(np.hypot((dx + side * 0.06) / 0.92, dy / 1.06) / cup_ratio, 0.1)
    scene = image.copy()
    scene[part] = blend(blend(blend(image[part], crescent, rim), 0.9 * disc, rim), 0.9 * cup * disc, CUP)
    return scene


def vessel_layers(eye: Eye, canvas: Canvas) -> tuple[np.ndarray, np.ndarray]:
    """Factor and summand, float32 (height, width, 3): what blood absorbs, and the light reflex on top of it."""
    tree = grow_vessels(eye.seed, eye.disc, eye.tortuosity)
    blood = canvas.vessels(tree, artery=120, vein=175)
    shine = canvas.vessels(tree, artery=90, vein=25, width_factor=0.35)
    brightness = np.random.default_rng(eye.seed + 2).uniform(0.2, 0.8)
    return 1 - blood[..., None] * ABSORPTION, (brightness * shine)[..., None] * REFLEX


def _texture(eye: Eye, canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Relative brightness (height, width) of the choroid, fixed to the retina; its vessels show in blond eyes."""
    coarse, fine = (
        ndimage.gaussian_filter(rng.standard_normal((160, 160), dtype=np.float32), width, mode="wrap")
        for width in (6.0, 1.6)
    )
    network = np.abs(fine / fine.std()) - 0.8
    pattern = 0.05 / coarse.std() * coarse + 0.035 * (1 - eye.pigment) * network
    return ndimage.map_coordinates(pattern, np.stack([canvas.y, canvas.x]) * 60 + 80, order=1, mode="nearest")


def _inside(distance: np.ndarray, softness: float) -> np.ndarray:
    """1 where `distance` is below 1, 0 above, with a soft edge."""
    return 0.5 - 0.5 * np.tanh((distance - 1) / (2 * softness))
