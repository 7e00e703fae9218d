"""Synthetic retinas for tests, demonstrations and the quickstart: patients, their images, lesion masks.

An `Eye` holds what stays the same between photographs; `render` takes one of them. Photographs of the fundus show
diabetic retinopathy (haemorrhages, exudates, cotton-wool spots), glaucoma (a wide cup of the optic disc) or neither;
OCT B-scans show AMD (drusen), diabetic macular oedema (swelling and cysts) or neither.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.random import Generator, default_rng
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from ..errors import require, require_range

Array: TypeAlias = np.ndarray
Modality = Literal["cfp", "oct"]
Stage = Literal["early", "advanced"]
Camera = Literal["clinic", "handheld"]
CFP_CLASSES, OCT_CLASSES = ("normal", "retinopathy", "glaucoma"), ("normal", "amd", "dme")
CLASSES: dict[Modality, tuple[str, ...]] = {"cfp": CFP_CLASSES, "oct": OCT_CLASSES}
STAGES: dict[str, tuple[Stage, ...]] = {"cfp": ("early", "advanced"), "oct": ("early",)}
CAMERA_TYPES: dict[str, tuple[Camera, ...]] = {"cfp": ("clinic", "handheld"), "oct": ("clinic",)}


@dataclass(frozen=True)
class Eye:
    """One synthetic eye. Lengths are in units of the photograph's field radius (CFP) or of the scan's height (OCT).

    Attributes:
        modality, laterality: "cfp" or "oct", and "R" or "L"; the optic disc of a right eye lies to the viewer's right.
        seed: of vessels, choroidal texture and layer undulation, which every photograph of this eye shares.
        pigment, hue: 0 (blond fundus) to 1 (dark), -1 (yellower) to 1 (redder); a patient's two eyes share them, as
            they do `tortuosity` (how much vessels wind) and `camera`.
        disc: centre (x, y) of the optic disc, x to the right, y down, the macula being near (0, 0).
        disc_radius, cup_ratio: semi-axis of the optic disc, and its physiological cup-to-disc ratio.
        thickness: retinal thickness away from the fovea, as a fraction of a B-scan's height.
        pit: depth of the foveal pit as a fraction of `thickness`.
        curvature: sag of the eye's wall over half a B-scan's width, as a fraction of its height.
        camera: 0 to 1, the device that took the photographs: frame and background level.
    """

    modality: Modality
    laterality: Literal["R", "L"]
    seed: int
    pigment: float
    hue: float
    tortuosity: float
    disc: tuple[float, float]
    disc_radius: float
    cup_ratio: float
    thickness: float
    pit: float
    curvature: float
    camera: float


@dataclass(frozen=True)
class SyntheticImage:
    """A rendered image with its ground truth.

    Attributes:
        image: uint8 (height, width, 3), RGB.
        lesion_mask: bool (height, width), the pixels that the disease changed; all false in a normal eye.
    """

    image: np.ndarray
    lesion_mask: np.ndarray


def draw_patient(rng: Generator, modality: Modality) -> tuple[Eye, Eye]:
    """Draw a patient's right and left eye: mirrored in plan, alike in pigment, vessel style and camera.

    Raises:
        BadArgumentError: an unknown modality.
    """
    require("modality", modality, CLASSES)
    pigment, hue = float(rng.beta(2, 2)), float(rng.uniform(-1, 1))
    tortuosity, camera = float(rng.uniform(0.4, 1.2)), float(rng.uniform(0, 1))
    disc_radius, cup_ratio = rng.uniform(0.13, 0.19), rng.uniform(0.22, 0.6)
    thickness, pit, curvature = rng.uniform(0.2, 0.26), rng.uniform(0.35, 0.6), rng.uniform(0.0, 0.1)

    def eye(laterality: Literal["R", "L"], side: int) -> Eye:
        return Eye(
            modality, laterality, int(rng.integers(2**31)), pigment, hue, tortuosity, camera=camera,
            disc=(side * float(rng.uniform(0.58, 0.68)), float(rng.uniform(-0.09, 0.01))),
            disc_radius=float(disc_radius * rng.uniform(0.96, 1.04)),
            cup_ratio=float(cup_ratio + rng.uniform(-0.05, 0.05)),
            thickness=float(thickness * rng.uniform(0.97, 1.03)), pit=float(pit * rng.uniform(0.95, 1.05)),
            curvature=float(curvature + rng.uniform(-0.01, 0.01)),
        )  # fmt: skip

    return eye("R", 1), eye("L", -1)


def render(
    eye: Eye, condition: str, severity: float, image_size: int, rng: Generator, stage: Stage = "early",
    camera: Camera = "clinic",
) -> SyntheticImage:  # fmt: skip
    """Take one photograph (CFP) or B-scan (OCT) of `eye`.

    Photographs of one eye share its anatomy and differ in light, position, sharpness, noise and lesions. The same
    generator state with another condition gives the same photograph apart from the lesions.

    Args:
        eye: from `draw_patient`.
        condition: one of `CLASSES[eye.modality]`; the first of them is the healthy one.
        severity: 0 (just detectable) to 1; ignored for the healthy class.
        image_size: height in pixels, at least 64; the width is 4/3 of it.
        rng: of the photograph and its lesions.
        stage: "early", or "advanced" with large lesions in groups, which only CFP has.
        camera: "clinic", or "handheld" with the grain of a small sensor, which only CFP has.

    Raises:
        BadArgumentError: unknown condition, stage or camera, severity out of range, or an image too small.
    """
    require("condition", condition, CLASSES[eye.modality])
    require_range("severity", severity, 0, 1)
    require_range("image_size", image_size, 64)
    check_options(eye.modality, stage, camera)
    photo, lesions = (default_rng(int(seed)) for seed in rng.integers(2**63, size=2))
    if eye.modality == "oct":
        image, mask = _scan(eye, condition, severity, image_size, photo, lesions)
    else:
        image, mask = _photograph(_View(eye, image_size, photo), condition, severity, stage, camera, photo, lesions)
    return SyntheticImage(np.clip(np.rint(image), 0, 255).astype(np.uint8), mask)


def check_options(modality: str, stage: str, camera: str) -> None:
    """Raise BadArgumentError for a stage or a camera that `modality` does not have."""
    require("stage", stage, STAGES[modality])
    require("camera", camera, CAMERA_TYPES[modality])


# Colour fundus photographs. Positions are on the retina, in field radii from the macula.

BLOND, DARK = np.array([[238, 150, 92], [140, 64, 36]], dtype=np.float32)
RIM, CUP = np.array([[240, 172, 108], [255, 240, 202]], dtype=np.float32)
BLOOD, EXUDATE, COTTON_WOOL, DRUSEN, HAZE = np.array(
    [[95, 14, 12], [250, 232, 140], [235, 220, 190], [250, 225, 140], [170, 140, 150]], dtype=np.float32
)
ABSORPTION = np.array([0.35, 0.72, 0.72], dtype=np.float32)
# Right eye: control points, from the disc outwards, and relative calibre of the four trunks (cubic Bezier curves).
TRUNKS = (
    (((0.50, -0.50), (0.00, -0.80), (-0.95, -0.45)), 1.0), (((0.50, 0.45), (0.00, 0.78), (-0.95, 0.45)), 1.0),
    (((0.72, -0.38), (0.90, -0.60), (1.15, -0.80)), 0.65), (((0.72, 0.32), (0.90, 0.55), (1.15, 0.75)), 0.65),
)  # fmt: skip
FOVEAL_AVASCULAR_RADIUS = 0.14
# Of a handheld camera: standard deviation in grey levels at a brightness of 100, and width in heights of the image.
GRAIN, GRAIN_WIDTH = (6.0, 24.0), 1 / 256


class _View:
    """The aim of one photograph: `x` and `y` of each pixel on the retina, and its distance from the field's centre."""

    def __init__(self, eye: Eye, height: int, rng: Generator) -> None:
        self.eye, self.size = eye, (round(height * 4 / 3), height)
        is_cut = eye.camera > 0.7  # a sensor lower than the lit disc
        radius = height * (rng.uniform(0.52, 0.55) if is_cut else rng.uniform(0.44, 0.48))
        centre = np.array(self.size) / 2 + rng.uniform([-0.03, -0.01], [0.03, 0.01]) * height
        self.scale = radius * rng.uniform(0.95, 1.05)
        self.origin = centre + rng.normal(0, 0.04, 2) * self.scale
        self.turn = _rotation(rng.normal(0, 0.05))
        self.blur = height / 256 * rng.uniform(0.3, 0.8)
        x, y = np.meshgrid(*(np.arange(side, dtype=np.float32) + 0.5 for side in self.size))
        self.from_centre = np.hypot(x - float(centre[0]), y - float(centre[1])) / np.float32(radius)
        offsets = np.stack([x - float(self.origin[0]), y - float(self.origin[1])], axis=-1)
        self.x, self.y = np.moveaxis(offsets @ (self.turn / self.scale).astype(np.float32), -1, 0)

    def draw(self, shapes: list[tuple[Array, float, float]], softness: float = 0.0) -> Array:
        """Opacity float32 (height, width) of `shapes`: points (n, 2), line width (0 for a filled polygon), opacity."""
        sheet = Image.new("L", (2 * self.size[0], 2 * self.size[1]))
        draw = ImageDraw.Draw(sheet)
        for points, width, opacity in shapes:
            xy, fill = (2 * (self.origin + points @ self.turn.T * self.scale)).ravel().tolist(), round(255 * opacity)
            if width:
                pixels = max(1, round(2 * width * self.scale))
                draw.line(xy, fill=fill, width=pixels, joint="curve" if pixels > 3 else None)
            else:
                draw.polygon(xy, fill=fill)
        # `softness` is the standard deviation of a blur on the retina, besides the camera's own.
        blur = ImageFilter.GaussianBlur(float(np.hypot(self.blur, softness * self.scale)))
        return np.asarray(sheet.reduce(2).filter(blur), dtype=np.float32) / 255

    def spots(self, centres: Array, radii: Array, opacity: Any, rng: Generator, soft: float = 0) -> Array:
        """Opacity of irregular spots at `centres` (n, 2) with semi-axes `radii`, (n,) or (n, 2)."""
        if len(centres) == 0:
            return np.zeros(self.x.shape, dtype=np.float32)
        angles = np.linspace(0, 2 * np.pi, 16, endpoint=False)
        ragged = 1 + 0.1 * rng.normal(size=(len(centres), 16, 1))
        outlines = ragged * np.stack([np.cos(angles), np.sin(angles)], axis=1) * radii.reshape(len(centres), 1, -1)
        turned = np.einsum("nki,ijn->nkj", outlines, _rotation(rng.uniform(0, np.pi, len(centres))))
        alphas = np.broadcast_to(opacity, len(centres))
        return self.draw([(c + spot, 0, a) for c, spot, a in zip(centres, turned, alphas, strict=True)], soft)


def _photograph(
    view: _View, condition: str, severity: float, stage: Stage, camera: Camera, photo: Generator, lesions: Generator
) -> tuple[Array, Array]:
    """Photograph (height, width, 3) and lesion mask: a lit disc on a dark, slightly noisy background."""
    eye, choroid = view.eye, _choroid(view)
    absorbed = 1 - view.draw(_vessels(eye.seed, eye.disc, eye.tortuosity))[..., None] * ABSORPTION
    scene = diseased = _with_disc(choroid, view, eye.cup_ratio) * absorbed
    if condition == "glaucoma":
        # From a quarter to nine tenths of the rim is lost.
        cup_ratio = eye.cup_ratio + (0.95 - eye.cup_ratio) * (0.25 + 0.65 * severity)
        diseased = _with_disc(choroid, view, cup_ratio) * absorbed
        if stage == "advanced":
            diseased = _with_nerve_fibre_defects(diseased, view, severity, lesions)
    elif condition == "retinopathy":
        diseased = _with_retinopathy(scene, view, severity, stage, lesions)
    mask = (np.abs(diseased - scene) > 2).any(axis=2) & (view.from_centre < 1)
    scene[mask] = diseased[mask]
    return _expose(scene, view, camera, photo), mask


def _choroid(view: _View) -> Array:
    """Choroid, macula and harmless drusen, evenly lit: float32 (height, width, 3) in 0-255."""
    eye, rng = view.eye, default_rng(view.eye.seed)
    white = rng.standard_normal((2, 160, 160), dtype=np.float32)
    coarse, fine = (ndimage.gaussian_filter(noise, width) for noise, width in zip(white, (6.0, 1.6), strict=True))
    # Choroidal vessels show in blond eyes.
    pattern = 0.05 / coarse.std() * coarse + 0.035 * (1 - eye.pigment) * (np.abs(fine / fine.std()) - 0.8)
    shade = 1 + ndimage.map_coordinates(pattern, np.stack([view.y, view.x]) * 60 + 80, order=1, mode="nearest")
    macula = view.x**2 + view.y**2
    shade -= 0.16 * np.exp(-macula / 0.22**2) + 0.14 * np.exp(-macula / 0.07**2)
    base = (BLOND + (DARK - BLOND) * eye.pigment) * (1 + eye.hue * np.array([0.05, -0.11, -0.22]))
    count = int(rng.integers(2, 9)) if rng.random() < 0.4 else 0
    drusen = view.spots(rng.normal(0, 0.3, (count, 2)), rng.uniform(0.008, 0.02, count), 0.3, rng)
    return _blend(shade[..., None] * base.astype(np.float32), drusen, DRUSEN)


def _with_disc(image: Array, view: _View, cup_ratio: float) -> Array:
    """The image with the optic disc: an orange-pink rim around a pale cup of `cup_ratio` times the disc's diameter."""
    eye, rng = view.eye, default_rng(view.eye.seed + 1)
    dx, dy = (view.x - eye.disc[0]) / eye.disc_radius, (view.y - eye.disc[1]) / eye.disc_radius
    rim = RIM + rng.uniform(-0.1, 0.4) * (CUP - RIM)
    disc = _soft_step(1 - np.hypot(dx / 0.93, dy / 1.07), 0.2)
    cup = _soft_step(1 - np.hypot(dx / 0.92 + 0.06 * float(np.sign(eye.disc[0])), dy / 1.06) / cup_ratio, 0.4)
    return _blend(_blend(image, 0.9 * disc, rim), 0.9 * cup * disc, CUP)


@lru_cache(maxsize=8)  # the photographs of one eye are mostly taken in a row
def _vessels(seed: int, disc: tuple[float, float], tortuosity: float) -> list[tuple[Array, float, float]]:
    """Lines of an eye's vessels for `_View.draw`, arteries before the veins over them: points, width, opacity."""
    rng, side = default_rng(seed), np.array([np.sign(disc[0]), 1.0])
    lines = []

    def grow(points: Array, width: float, opacity: float, generations: int) -> None:
        inside = np.linalg.norm(points, axis=1) < FOVEAL_AVASCULAR_RADIUS
        points = points[: inside.argmax()] if inside.any() else points
        for first in range(0, len(points) - 1, 8):
            lines.append((points[first : first + 9] * side, width * (1 - 0.55 * first / len(points)), opacity))
        if generations == 0 or len(points) < 4:
            return
        turn = 1
        for place in rng.uniform(0.15, 0.9, rng.integers(3, 7) if generations == 2 else rng.integers(1, 3)):
            start, turn = int(place * (len(points) - 2)), -turn  # branches leave on alternating sides
            heading = np.arctan2(*(points[start + 1] - points[start])[::-1]) + turn * rng.uniform(0.4, 1.0)
            count = int(rng.uniform(6, 15) * generations)
            angles = heading - turn * np.linspace(0, rng.uniform(0, 1.2), count)
            angles += 0.12 * tortuosity * np.cumsum(rng.normal(size=count))
            steps = 0.025 * np.stack([np.cos(angles), np.sin(angles)], axis=1)
            branch = points[start] + np.cumsum(np.vstack([[0, 0], steps]), axis=0)
            grow(branch, width * rng.uniform(0.4, 0.65), opacity, generations - 1)

    t = np.linspace(0, 1, 48)[:, None]
    bezier = np.hstack([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3])
    # An artery and its vein run together: the pair differs by the jitter of the control points.
    for opacity, thinnest, widest in ((0.47, 0.019, 0.025), (0.69, 0.028, 0.035)):
        for controls, calibre in TRUNKS:
            jitter = rng.normal(0, [[0.015], [0.07], [0.07], [0.07]], (4, 2))
            winding = ndimage.gaussian_filter1d(rng.normal(0, 0.05 * tortuosity, (48, 2)), 4, axis=0)
            trunk = bezier @ (np.vstack([np.array(disc) * side, controls]) + jitter) + t * winding
            grow(trunk, calibre * rng.uniform(thinnest, widest), opacity, 2)
    return lines


def _with_retinopathy(image: Array, view: _View, severity: float, stage: Stage, rng: Generator) -> Array:
    """The image with haemorrhages, hard exudates and cotton-wool spots, at the advanced stage large ones in groups."""

    def places(count: int, reach: float = 0.9) -> Array:
        """Points (count, 2), even over a disc around the macula, but not on the optic disc."""
        radius, angle = reach * np.sqrt(rng.uniform(0.02, 1, count)), rng.uniform(0, 2 * np.pi, count)
        found = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        found[np.linalg.norm(found - np.array(view.eye.disc), axis=1) < 1.4 * view.eye.disc_radius, 0] *= -1
        return found

    def groups(centres: Array, spread: float, fewest: int, most: int) -> Array:
        around = [centre + rng.normal(0, spread, (int(rng.integers(fewest, most)), 2)) for centre in centres]
        return np.concatenate([*around, np.empty((0, 2))])

    def red(centres: Array, low: float, high: float, flattest: float) -> Array:
        axes = rng.uniform(low, high, (len(centres), 1)) * rng.uniform([1, flattest], 1, (len(centres), 2))
        return view.spots(centres, axes, rng.uniform(0.55, 0.9, len(centres)), rng)

    def pale(scene: Array, exudates: Array, largest: float, wool: Array, widest: float) -> Array:
        sizes = rng.uniform(0.5 * largest, largest, len(exudates)), rng.uniform(0.6 * widest, widest, len(wool))
        scene = _blend(scene, view.spots(exudates, sizes[0], 0.9, rng), EXUDATE)
        return _blend(scene, view.spots(wool, sizes[1], 0.7, rng, soft=0.01), COTTON_WOOL)

    dots = red(places(2 + rng.poisson(3 + 18 * severity)), 0.010, 0.017, 0.8)
    blots = red(places(1 + rng.poisson(1 + 9 * severity)), 0.02, 0.03 + 0.03 * severity, 0.5)
    flames = red(places(rng.poisson(4 * severity)), 0.04, 0.08, 0.25)
    image = _blend(image, np.maximum(np.maximum(dots, blots), flames), BLOOD)
    exudates = groups(places(rng.poisson(0.5 + 2.5 * severity), 0.55), 0.06, 5, 16)
    image = pale(image, exudates, 0.024, places(rng.poisson(1.5 * severity), 0.7), 0.055)
    if stage == "early":
        return image
    blots = groups(places(3 + rng.poisson(3 * severity), 0.8), 0.1, 4, 10)
    image = _blend(image, red(blots, 0.03, 0.05 + 0.02 * severity, 0.6), BLOOD)
    exudates = groups(places(1 + rng.poisson(1 + severity), 0.45), 0.08, 16, 32)
    return pale(image, exudates, 0.03, places(1 + rng.poisson(1 + 3 * severity), 0.7), 0.08)


def _with_nerve_fibre_defects(image: Array, view: _View, severity: float, rng: Generator) -> Array:
    """The image darkened along arcuate bundles of nerve fibres, above or below the macula or both."""
    # Bundles are taken for halves of ellipses around the fovea through the disc; `height` names one of them.
    disc_x, disc_y = view.eye.disc
    along = np.clip(view.x / disc_x, -1, 1)
    height = (view.y - disc_y * along) / np.sqrt(np.maximum(1 - along**2, 1e-3))
    lost = np.zeros_like(height)
    for half in (-1, 1) if rng.random() < severity else (int(rng.choice([-1, 1])),):
        first, width, reach = rng.uniform(0.25, 0.4), rng.uniform(0.1, 0.16 + 0.2 * severity), rng.uniform(0.4, 0.95)
        inside = np.minimum.reduce([half * height - first, first + width - half * height, (along + reach) / 2])
        lost = np.maximum(lost, _soft_step(inside, 0.04) * (np.abs(view.x) < abs(disc_x)))
    return image * (1 - (0.16 + 0.18 * severity) * lost[..., None] * np.array([0.8, 1, 1], dtype=np.float32))


def _expose(scene: Array, view: _View, camera: Camera, rng: Generator) -> Array:
    """Light, dust, haze at one edge, colour cast, the dark surround and sensor noise; (height, width, 3)."""
    directions = _rotation(rng.uniform(0, 2 * np.pi, 2))[0].T.tolist()
    toward_light, toward_haze = (a * view.x + b * view.y for a, b in directions)
    light = 1.02 - rng.uniform(0.1, 0.35) * view.from_centre**2 + rng.uniform(0, 0.3) * toward_light
    count = int(rng.integers(0, 5))
    dust = view.spots(rng.uniform(-0.8, 0.8, (count, 2)), rng.uniform(0.015, 0.04, count), 1, rng, soft=0.015)
    light = np.clip(light * rng.uniform(0.65, 1.15), 0.08, None) * (1 + float(rng.choice([-0.3, 0.25])) * dust)
    haze = rng.uniform(0, 0.8) * np.clip((toward_haze - 0.55) / 0.6, 0, 1) ** 2
    image = _blend(scene * light[..., None], haze, HAZE) * (1 + rng.normal(0, [0.05, 0.06, 0.1])).astype(np.float32)
    surround = (2 + 12 * view.eye.camera) * np.array([1, 0.85, 0.8])
    image = _blend(image, _soft_step((view.from_centre - 1) * float(view.scale), 1), surround)
    # Most of the noise is common to the three channels, as in photographs that have been sharpened.
    noise = 0.6 * rng.standard_normal(image.shape, dtype=np.float32)
    noise += 0.8 * rng.standard_normal((*image.shape[:2], 1), dtype=np.float32)
    image += np.float32(rng.uniform(1.0, 3.5)) * noise
    if camera == "clinic":
        return image
    # Shot noise: it grows with the root of the light, and is wide enough to survive the shrinking of the photograph.
    width = GRAIN_WIDTH * len(image)
    white = rng.standard_normal(image.shape, dtype=np.float32) + rng.standard_normal((*image.shape[:2], 1))
    grain = ndimage.gaussian_filter(white, (width, width, 0))
    root = np.sqrt(np.clip(image, 0, 255).mean(axis=2, keepdims=True) / 100)
    return image + rng.uniform(*GRAIN) / grain.std() * root * grain


def _blend(image: Array, alpha: Array, colour: Array) -> Array:
    """A copy of `image` (height, width, 3) under `colour` with opacity `alpha` (height, width)."""
    blended = image.copy()
    rows, columns = np.flatnonzero(alpha.any(axis=1)), np.flatnonzero(alpha.any(axis=0))
    if len(rows):  # most layers are transparent nearly everywhere
        part = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        blended[part] += alpha[part][..., None] * (colour.astype(np.float32) - image[part])
    return blended


def _soft_step(distance: Array, width: float) -> Array:
    """0 below `-width / 2`, 1 above `width / 2`, linear between."""
    return np.clip(distance / width + 0.5, 0, 1)


def _rotation(angle: float | Array) -> Array:
    cos, sin = np.cos(angle), np.sin(angle)
    return np.array([[cos, -sin], [sin, cos]])


# OCT B-scans through the fovea. x runs from -1 to 1 along the scan; depths are fractions of the image's height.

# Reflectivity over relative retinal depth (0 = inner limiting membrane, 1 = outer edge of the pigment epithelium):
# nerve fibres, ganglion cells, inner plexiform, inner nuclear, outer plexiform, outer nuclear, ellipsoid, epithelium.
DEPTH = (0, 0.02, 0.10, 0.14, 0.27, 0.31, 0.41, 0.45, 0.51, 0.55, 0.77, 0.79, 0.81, 0.84, 0.86, 0.90, 0.92, 1)
LAYERS = (0.5, 0.72, 0.68, 0.44, 0.46, 0.56, 0.54, 0.28, 0.28, 0.5, 0.2, 0.2, 0.36, 0.22, 0.8, 0.78, 0.36, 0.92)
VITREOUS = 0.06


def _scan(
    eye: Eye, condition: str, severity: float, height: int, photo: Generator, lesions: Generator
) -> tuple[Array, Array]:
    """Grey B-scan as (height, width, 3) in 0-255, and its lesion mask."""
    x = np.linspace(-1, 1, round(height * 4 / 3), dtype=np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    anatomy, fovea = default_rng(eye.seed), photo.normal(0, 0.06)
    waves = anatomy.normal(0, 0.003, (2, 3)) @ np.sin(np.outer([3, 5, 7], x) + anatomy.uniform(0, 7, (3, 1)))
    floor = 0.62 + photo.normal(0, 0.04) + photo.normal(0, 0.03) * x - eye.curvature * (0.3 - x**2) + waves[0]
    beside = np.abs(x - fovea)
    rim = 0.12 * np.exp(-(((beside - 0.34) / 0.2) ** 2)) - 0.06 * beside
    retina = eye.thickness * (0.95 - eye.pit * np.exp(-((beside / 0.16) ** 2)) + rim) + 0.3 * waves[1]
    noise = ndimage.gaussian_filter(anatomy.normal(0, 1, (64, 86)), (1.0, 1.6))
    grid = np.meshgrid(np.linspace(0, 63, height), np.linspace(0, 85, len(x)), indexing="ij")
    choroid = ndimage.map_coordinates(noise / noise.std(), grid, order=1).astype(np.float32)
    small = _bumps(x, anatomy.normal(0, 0.4, 2), anatomy.uniform(0, 0.007, 2), np.full(2, 0.02))
    healthy = diseased = _reflectivity(y, floor, retina, small, choroid)
    if condition == "amd":
        count = 2 + lesions.poisson(1 + 7 * severity)
        heights = (0.02 + 0.07 * severity) * lesions.uniform(0.4, 1, count)
        widths = lesions.uniform(0.025, 0.05 + 0.07 * severity, count)
        drusen = small + _bumps(x, fovea + lesions.normal(0, 0.35, count), heights, widths)
        diseased = _reflectivity(y, floor, retina, drusen, choroid)
    elif condition == "dme":
        retina = retina + (0.01 + 0.11 * severity) * np.exp(-((beside / lesions.uniform(0.3, 0.5)) ** 2))
        diseased = _reflectivity(y, floor, retina, small, choroid)
        for _ in range(2 + lesions.poisson(1 + 8 * severity)):  # cysts in the inner and outer nuclear layers
            centre, half_width = fovea + lesions.normal(0, 0.28), lesions.uniform(0.02, 0.035 + 0.06 * severity)
            column = int(np.abs(x - centre).argmin())
            middle = floor[column] - retina[column] * lesions.choice([0.53, 0.34])
            half_height = min(lesions.uniform(0.35, 0.7) * half_width, 0.2 * float(retina[column]))
            distance = np.hypot((x - centre) / half_width, (y - middle) / half_height)
            diseased = np.minimum(diseased, 0.08 + np.clip((distance - 0.85) / 0.25, 0, 1))
    mask = np.abs(diseased - healthy) > 0.02
    image = _acquire(np.where(mask, diseased, healthy), x, photo)
    return np.repeat(255 * image[..., None], 3, axis=2), mask


def _reflectivity(y: Array, floor: Array, thickness: Array, drusen: Array, choroid: Array) -> Array:
    """Noise-free reflectivity 0-1 (height, width) of the layers above and below `floor`, Bruch's membrane."""
    # Drusen lift the epithelium off the membrane and squeeze the layers above it.
    depth = (y - floor + thickness) / (thickness - np.minimum(drusen, 0.4 * thickness))
    below = y - floor
    deep = (0.5 + 0.16 * choroid) * np.exp(-np.clip(below, 0, None) / 0.13)
    outer = np.where(below < -0.004, 0.46, deep)  # the filling of drusen, then the choroid
    layers = np.interp(depth, DEPTH, LAYERS).astype(np.float32)
    return ndimage.gaussian_filter(np.where(depth < 0, VITREOUS, np.where(depth <= 1, layers, outer)), 0.7)


def _bumps(x: Array, centres: Array, heights: Array, widths: Array) -> Array:
    return (heights[:, None] * np.exp(-(((x - centres[:, None]) / widths[:, None]) ** 2))).max(axis=0)


def _acquire(scene: Array, x: Array, rng: Generator) -> Array:
    """The scene 0-1 (height, width) with signal loss at one side, shadows of vessels, speckle and detector noise."""
    strength = rng.uniform(0.75, 1.05) * (1 - rng.uniform(0, 0.35) * (x * rng.choice([-1, 1]) > 0) * x**2)
    count = int(rng.integers(1, 5))
    shadows = rng.uniform(0.1, 0.35, count), rng.uniform(0.01, 0.03, count)
    strength *= 1 - _bumps(x, rng.uniform(-1, 1, count), *shadows)
    # Speckle is multiplicative with correlation along the scan line; the floor is the detector's own noise.
    speckle = ndimage.gaussian_filter(rng.gamma(4, 0.25, scene.shape).astype(np.float32), (0.5, 0.8))
    detector = np.abs(rng.normal(0, rng.uniform(0.02, 0.07), scene.shape))
    return (scene * strength * (1 + rng.uniform(0.5, 1.0) * (speckle - 1)) + detector) * rng.uniform(0.85, 1.05)
