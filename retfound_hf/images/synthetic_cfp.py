"""Synthetic colour fundus photographs: normal, diabetic retinopathy, glaucoma."""

import math

import numpy as np
from scipy import ndimage

from .anatomy import Camera, Eye, Stage, SyntheticImage
from .canvas import Canvas
from .cfp_advanced import with_advanced_retinopathy, with_nerve_fibre_defects
from .cfp_retina import EXUDATE, background, blend, vessel_layers, with_disc

CFP_CLASSES = ("normal", "retinopathy", "glaucoma")

BLOOD = np.array([95, 14, 12], dtype=np.float32)
COTTON_WOOL = np.array([235, 220, 190], dtype=np.float32)
HAZE = np.array([170, 140, 150], dtype=np.float32)

# Of a handheld camera: standard deviation in grey levels at a brightness of 100, and width in heights of the image.
GRAIN, GRAIN_WIDTH = (6.0, 24.0), 1 / 256


def render_cfp(
    eye: Eye,
    condition: str,
    severity: float,
    image_size: int,
    rng: np.random.Generator,
    stage: Stage = "early",
    camera: Camera = "clinic",
) -> SyntheticImage:
    """Photograph an eye: a lit disc on a dark, slightly noisy background, 4:3, `image_size` pixels high.

    Light, aim, sharpness, dust, colour cast and noise come from `rng` and do not depend on the condition. Retinopathy
    adds microaneurysms, haemorrhages, hard exudates and cotton-wool spots; glaucoma widens the cup of the disc. At the
    advanced stage the lesions of `cfp_advanced` come on top.
    """
    photo_seed, lesion_seed = (int(seed) for seed in rng.integers(2**63, size=2))
    photo, lesions = np.random.default_rng(photo_seed), np.random.default_rng(lesion_seed)
    canvas = _aim(eye, image_size, photo)
    choroid = background(eye, canvas)
    absorbed, reflected = vessel_layers(eye, canvas)

    def retina(cup_ratio: float) -> np.ndarray:
        return with_disc(choroid, eye, canvas, cup_ratio) * absorbed + reflected

    healthy = diseased = retina(eye.cup_ratio)
    if condition == "glaucoma":
        diseased = retina(glaucomatous_cup(eye.cup_ratio, severity))
        if stage == "advanced":
            diseased = with_nerve_fibre_defects(diseased, eye, canvas, severity, lesions)
    elif condition == "retinopathy":
        diseased = _with_retinopathy(healthy, eye, canvas, severity, lesions)
        if stage == "advanced":
            diseased = with_advanced_retinopathy(diseased, eye, canvas, severity, lesions)
    lesion_mask = (np.abs(diseased - healthy) > 2).any(axis=2) & (canvas.field_radius < 1)
    healthy[lesion_mask] = diseased[lesion_mask]
    exposed = _expose(healthy, eye, canvas, photo)
    if camera == "handheld":
        exposed = _with_shot_noise(exposed, photo)
    image = np.clip(np.rint(exposed), 0, 255).astype(np.uint8)
    return SyntheticImage(image, lesion_mask, condition, float(severity))


def glaucomatous_cup(cup_ratio: float, severity: float) -> float:
    """Cup-to-disc ratio of a glaucomatous disc: from a quarter (severity 0) to nine tenths (1) of its rim is lost."""
    return cup_ratio + (0.95 - cup_ratio) * (0.25 + 0.65 * severity)


def _aim(eye: Eye, height: int, photo: np.random.Generator) -> Canvas:
    width = round(height * 4 / 3)
    cut = eye.camera > 0.7  # a sensor that is lower than the lit disc
    radius = height * (photo.uniform(0.52, 0.55) if cut else photo.uniform(0.44, 0.48))
    centre = (width / 2 + photo.uniform(-0.03, 0.03) * height, height / 2 + photo.uniform(-0.01, 0.01) * height)
    return Canvas(
        height,
        width,
        centre,
        radius,
        shift=photo.normal(0, 0.04, 2),
        rotation=photo.normal(0, 0.05),
        zoom=photo.uniform(0.95, 1.05),
        blur=height / 256 * photo.uniform(0.3, 0.8),
    )


def _with_retinopathy(
    image: np.ndarray, eye: Eye, canvas: Canvas, severity: float, rng: np.random.Generator
) -> np.ndarray:
    def places(count: int) -> np.ndarray:
        r, angle = 0.9 * np.sqrt(rng.uniform(0.02, 1, count)), rng.uniform(0, 2 * np.pi, count)
        xy = np.stack([r * np.cos(angle), r * np.sin(angle)], axis=1)
        near = np.linalg.norm(xy - np.array(eye.disc), axis=1) < 1.4 * eye.disc_radius
        xy[near, 0] *= -1
        return xy

    def red(count: int, low: float, high: float, flat: float) -> np.ndarray:
        long = rng.uniform(low, high, count)
        axes = np.stack([long, long * rng.uniform(flat, 1, count)], axis=1)
        return canvas.blobs(places(count), axes, rng.uniform(0.5, 0.85, count), rng)

    dots = red(2 + rng.poisson(3 + 18 * severity), 0.010, 0.017, 0.8)
    blots = red(1 + rng.poisson(1 + 9 * severity), 0.02, 0.03 + 0.03 * severity, 0.5)
    flames = red(rng.poisson(4 * severity), 0.04, 0.08, 0.25)
    image = blend(image, np.maximum(np.maximum(dots, blots), flames), BLOOD)

    clusters = places(rng.poisson(0.5 + 2.5 * severity)) * 0.6
    spots = [centre + rng.normal(0, 0.06, (int(rng.integers(5, 16)), 2)) for centre in clusters]
    exudates = np.concatenate([*spots, np.empty((0, 2))])
    size = rng.uniform(0.008, 0.022, len(exudates))
    image = blend(image, canvas.blobs(exudates, size, np.full(len(exudates), 0.9), rng), EXUDATE)
    count = rng.poisson(1.5 * severity)
    wool = canvas.blobs(places(count) * 0.8, rng.uniform(0.03, 0.055, count), np.full(count, 0.7), rng, softness=0.01)
    return blend(image, wool, COTTON_WOOL)


def _expose(scene: np.ndarray, eye: Eye, canvas: Canvas, photo: np.random.Generator) -> np.ndarray:
    """Light, haze at one edge, dust, colour cast, the field's edge and sensor noise; float32 (height, width, 3)."""
    angle = photo.uniform(0, 2 * np.pi)
    slope = photo.uniform(0, 0.3) * (math.cos(angle) * canvas.x + math.sin(angle) * canvas.y)
    light = 1.02 - photo.uniform(0.1, 0.35) * canvas.field_radius**2 + slope
    # Scalars stay Python floats: NumPy's own would widen every layer to 64 bits.
    light = np.clip(light * photo.uniform(0.65, 1.15), 0.08, None)
    count = int(photo.integers(0, 5))
    places, sizes = photo.uniform(-0.8, 0.8, (count, 2)), photo.uniform(0.015, 0.04, count)
    light *= 1 + float(photo.choice([-0.3, 0.25])) * canvas.blobs(places, sizes, np.ones(count), photo, softness=0.015)
    edge = photo.uniform(0, 2 * np.pi)
    toward = math.cos(edge) * canvas.x + math.sin(edge) * canvas.y
    haze = photo.uniform(0, 0.8) * np.clip((toward - 0.55) / 0.6, 0, 1) ** 2
    cast = 1 + photo.normal(0, [0.05, 0.06, 0.1])
    image = blend(scene * light[..., None], haze, HAZE) * cast.astype(np.float32)

    surround = (2 + 12 * eye.camera) * np.array([1, 0.85, 0.8], dtype=np.float32)
    outside = np.clip((canvas.field_radius - 1) * canvas.scale + 0.5, 0, 1)
    image = blend(image, outside, surround)
    # Most of the grain is common to the three channels, as in photographs that have been sharpened.
    shape = (canvas.height, canvas.width)
    grain = 0.6 * photo.standard_normal((*shape, 3), dtype=np.float32)
    grain += 0.8 * photo.standard_normal((*shape, 1), dtype=np.float32)
    image += np.float32(photo.uniform(1.0, 3.5)) * grain
    return image


def _with_shot_noise(image: np.ndarray, photo: np.random.Generator) -> np.ndarray:
    """What little light leaves on a small sensor: grain that grows with the root of the brightness.

    It is as wide as `GRAIN_WIDTH` of the image's height, as after demosaicing and the camera's own smoothing, so that
    shrinking the photograph does not average it away.
    """
    white = photo.standard_normal(image.shape, dtype=np.float32)
    white += photo.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    width = GRAIN_WIDTH * len(image)
    grain = ndimage.gaussian_filter(white, (width, width, 0))
    light = np.sqrt(np.clip(image, 0, 255).mean(axis=2, keepdims=True) / 100)
    return image + np.float32(photo.uniform(*GRAIN) / grain.std()) * light * grain
