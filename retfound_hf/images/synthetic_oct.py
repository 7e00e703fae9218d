"""Synthetic OCT B-scans through the fovea: normal, age-related macular degeneration, diabetic macular oedema."""

import numpy as np
from scipy import ndimage

from .anatomy import Eye, SyntheticImage

OCT_CLASSES = ("normal", "amd", "dme")

# Reflectivity over relative retinal depth (0 = inner limiting membrane, 1 = outer edge of the pigment epithelium):
# nerve fibres, ganglion cells, inner plexiform, inner nuclear, outer plexiform, outer nuclear, ellipsoid, epithelium.
DEPTH = np.array(
    [0, 0.02, 0.10, 0.14, 0.27, 0.31, 0.41, 0.45, 0.51, 0.55, 0.77, 0.79, 0.81, 0.84, 0.86, 0.90, 0.92, 1]
)
LAYERS = np.array(
    [0.5, 0.72, 0.68, 0.44, 0.46, 0.56, 0.54, 0.28, 0.28, 0.5, 0.2, 0.2, 0.36, 0.22, 0.8, 0.78, 0.36, 0.92]
)
SQUEEZED_TOP, ELLIPSOID_TOP = 0.31, 0.77


def render_oct(eye: Eye, condition: str, severity: float, image_size: int, rng: np.random.Generator) -> SyntheticImage:
    """Scan an eye: a grey B-scan of 4:3, `image_size` pixels high, as RGB.

    Position, tilt, signal strength, shadows and speckle come from `rng` and do not depend on the condition. AMD
    raises the pigment epithelium into drusen; DME swells the retina and opens dark cysts in its nuclear layers.
    """
    scan_seed, lesion_seed = (int(seed) for seed in rng.integers(2**63, size=2))
    scan, lesions = np.random.default_rng(scan_seed), np.random.default_rng(lesion_seed)
    height, width = image_size, round(image_size * 4 / 3)
    x = np.linspace(-1, 1, width, dtype=np.float32)
    y = ((np.arange(height, dtype=np.float32) + 0.5) / height)[:, None]
    anatomy = np.random.default_rng(eye.seed)
    fovea = scan.normal(0, 0.06)
    floor = 0.62 + scan.normal(0, 0.04) + scan.normal(0, 0.03) * x - eye.curvature * (0.3 - x**2) + _waves(x, anatomy)
    retina = _profile(eye, x - fovea, anatomy)
    small_drusen = _bumps(x, anatomy.normal(0, 0.4, 2), anatomy.uniform(0, 0.007, 2), np.full(2, 0.02))

    none = np.zeros_like(x)
    choroid = _texture(anatomy, height, width)
    healthy = _reflectivity(y, floor, retina, none, small_drusen, choroid)
    diseased = healthy
    if condition == "amd":
        drusen = small_drusen + _drusen(x, fovea, severity, lesions)
        diseased = _reflectivity(y, floor, retina, none, drusen, choroid)
    elif condition == "dme":
        swelling = (0.01 + 0.11 * severity) * np.exp(-(((x - fovea) / lesions.uniform(0.3, 0.5)) ** 2))
        diseased = _reflectivity(y, floor, retina, swelling, small_drusen, choroid)
        diseased *= 1 - _cysts(x, y, floor, retina + swelling, fovea, severity, lesions)
    lesion_mask = np.abs(diseased - healthy) > 0.02
    scene = np.where(lesion_mask, diseased, healthy)
    image = _acquire(scene, x, scan)
    return SyntheticImage(np.repeat(image[..., None], 3, axis=2), lesion_mask, condition, float(severity))


def _profile(eye: Eye, from_fovea: np.ndarray, anatomy: np.random.Generator) -> np.ndarray:
    """Retinal thickness (width,) as a fraction of the height: a pit with a raised rim, thinner outwards."""
    pit = np.exp(-((from_fovea / 0.16) ** 2)) * eye.pit
    rim = 0.12 * np.exp(-(((np.abs(from_fovea) - 0.34) / 0.2) ** 2))
    return eye.thickness * (0.95 - pit + rim - 0.06 * np.abs(from_fovea)) + 0.3 * _waves(from_fovea, anatomy)


def _reflectivity(
    y: np.ndarray,
    floor: np.ndarray,
    retina: np.ndarray,
    swelling: np.ndarray,
    drusen: np.ndarray,
    choroid: np.ndarray,
) -> np.ndarray:
    """Noise-free reflectivity 0-1 (height, width) of the layers above and below `floor`, Bruch's membrane."""
    thickness = retina + swelling
    surface = floor - thickness
    depth = (y - surface) / thickness
    # Drusen lift the ellipsoid and the epithelium as they are and squeeze the layers above them.
    lift = np.minimum(drusen / thickness, 0.85 * (ELLIPSOID_TOP - SQUEEZED_TOP))
    room = ELLIPSOID_TOP - SQUEEZED_TOP
    squeezed = SQUEEZED_TOP + (depth - SQUEEZED_TOP) * room / (room - lift)
    lifted = np.where(depth > ELLIPSOID_TOP - lift, depth + lift, squeezed)
    depth = np.where(depth > SQUEEZED_TOP, lifted, depth)
    layers = np.interp(depth, DEPTH, LAYERS).astype(np.float32)
    below = y - floor
    deep = (0.5 + 0.16 * choroid) * np.exp(-np.clip(below, 0, None) / 0.13)
    material = np.where(below < -0.004, 0.46, deep)  # the filling of drusen, then the choroid
    vitreous = np.float32(0.06)
    image = np.where(depth < 0, vitreous, np.where(depth <= 1, layers, material))
    return ndimage.gaussian_filter(image, 0.7)


def _drusen(x: np.ndarray, fovea: float, severity: float, rng: np.random.Generator) -> np.ndarray:
    count = 2 + rng.poisson(1 + 7 * severity)
    heights = (0.02 + 0.07 * severity) * rng.uniform(0.4, 1, count)
    widths = rng.uniform(0.025, 0.05 + 0.07 * severity, count)
    return _bumps(x, fovea + rng.normal(0, 0.35, count), heights, widths)


def _bumps(x: np.ndarray, centres: np.ndarray, heights: np.ndarray, widths: np.ndarray) -> np.ndarray:
    bumps = heights[:, None] * np.exp(-(((x - centres[:, None]) / widths[:, None]) ** 2))
    return bumps.max(axis=0)


def _cysts(
    x: np.ndarray,
    y: np.ndarray,
    floor: np.ndarray,
    retina: np.ndarray,
    fovea: float,
    severity: float,
    rng: np.random.Generator,
) -> np.ndarray:
    """Opacity 0-1 (height, width) of fluid: ellipses in the inner and outer nuclear layers near the fovea."""
    count = 2 + rng.poisson(1 + 8 * severity)
    alpha = np.zeros((len(y), len(x)), dtype=np.float32)
    for _ in range(count):
        centre = fovea + rng.normal(0, 0.28)
        level = rng.choice([0.47, 0.66])
        half_width = rng.uniform(0.02, 0.035 + 0.06 * severity)
        column = int(np.clip((centre + 1) / 2 * (len(x) - 1), 0, len(x) - 1))
        middle = floor[column] - retina[column] * (1 - level)
        half_height = min(rng.uniform(0.35, 0.7) * half_width, 0.2 * float(retina[column]))
        distance = np.hypot((x - centre) / half_width, (y - middle) / half_height)
        alpha = np.maximum(alpha, 0.85 * np.clip((1.1 - distance) / 0.25, 0, 1))
    return alpha


def _acquire(scene: np.ndarray, x: np.ndarray, scan: np.random.Generator) -> np.ndarray:
    """Signal strength, shadows of vessels, speckle, contrast; uint8 (height, width)."""
    shadows = np.ones_like(x)
    for _ in range(int(scan.integers(1, 5))):
        where, strength = scan.uniform(-1, 1), scan.uniform(0.1, 0.35)
        shadows *= 1 - strength * np.exp(-(((x - where) / scan.uniform(0.01, 0.03)) ** 2))
    strength = scan.uniform(0.75, 1.05) * (1 - scan.uniform(0, 0.35) * (x * scan.choice([-1, 1]) > 0) * x**2)
    # Speckle is multiplicative with correlation along the scan line; the floor is the detector's own noise.
    speckle = ndimage.gaussian_filter(scan.gamma(4, 0.25, scene.shape).astype(np.float32), (0.5, 0.8))
    contrast = scan.uniform(0.5, 1.0)
    detector = np.abs(scan.normal(0, scan.uniform(0.02, 0.07), scene.shape))
    image = scene * strength * shadows * (1 + contrast * (speckle - 1)) + detector
    return np.clip(np.rint(255 * image * scan.uniform(0.85, 1.05)), 0, 255).astype(np.uint8)


def _waves(x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A slow undulation (width,) of some thousandths of the height."""
    phases, sizes = rng.uniform(0, 2 * np.pi, (3, 1)), rng.normal(0, 0.003, 3)
    return sizes @ np.sin(np.array([[3], [5], [7]]) * x + phases)


def _texture(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Dark choroidal vessels: smooth noise (height, width) of unit variance, drawn on a fixed grid and enlarged."""
    noise = ndimage.gaussian_filter(rng.normal(0, 1, (64, 86)), (1.0, 1.6), mode="wrap")
    y, x = np.meshgrid(np.linspace(0, 63, height), np.linspace(0, 85, width), indexing="ij")
    return (ndimage.map_coordinates(noise, [y, x], order=1) / noise.std()).astype(np.float32)
