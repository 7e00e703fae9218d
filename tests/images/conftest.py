from collections.abc import Callable

import numpy as np
import pytest

Plant = Callable[..., tuple[np.ndarray, tuple[int, int, int, int]]]


@pytest.fixture(scope="session")
def plant_disc() -> Plant:
    """Draw a textured, vignetted disc and return the image with its exact box (left, top, right, bottom)."""

    def plant(
        height: int = 480,
        width: int = 640,
        centre: tuple[float, float] = (320, 240),
        radius: float = 200,
        background: float = 3,
        noise: float = 2,
        brightness: float = 1.0,
        vignette: float = 0.4,
        seed: int = 0,
    ) -> tuple[np.ndarray, tuple[int, int, int, int]]:
        rng = np.random.default_rng(seed)
        y, x = np.mgrid[:height, :width] + 0.5
        r = np.hypot(x - centre[0], y - centre[1]) / radius
        waves = 1 + 0.1 * np.sin(x / 23) * np.cos(y / 31)
        colour = np.array([190, 95, 50]) * brightness
        image = np.where((r < 1)[..., None], (waves * (1 - vignette * r**2))[..., None] * colour, background)
        image = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
        left, top = max(0, centre[0] - radius), max(0, centre[1] - radius)
        right, bottom = min(width, centre[0] + radius), min(height, centre[1] + radius)
        return image, (round(left), round(top), round(right), round(bottom))

    return plant
