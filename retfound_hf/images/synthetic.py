"""Synthetic retinas for tests, demonstrations and the quickstart: classes, patients, photographs."""

import numpy as np

from ..runs.errors import RetFoundError
from .anatomy import Eye, Modality, SyntheticImage, draw_patient
from .synthetic_cfp import CFP_CLASSES, render_cfp
from .synthetic_oct import OCT_CLASSES, render_oct

__all__ = ["CFP_CLASSES", "CLASSES", "OCT_CLASSES", "Eye", "Modality", "SyntheticImage", "draw_patient", "render"]

CLASSES: dict[str, tuple[str, ...]] = {"cfp": CFP_CLASSES, "oct": OCT_CLASSES}


def render(eye: Eye, condition: str, severity: float, image_size: int, rng: np.random.Generator) -> SyntheticImage:
    """Take one photograph (CFP) or B-scan (OCT) of `eye`.

    Photographs of one eye share its anatomy and differ in light, position, sharpness, noise and lesions. The same
    generator state with another condition gives the same photograph apart from the lesions.

    Args:
        condition: one of `CLASSES[eye.modality]`; the first of them is the healthy one.
        severity: 0 (just detectable) to 1; ignored for the healthy class.
        image_size: height in pixels, at least 64; the width is 4/3 of it.

    Raises:
        RetFoundError: unknown condition, severity out of range, or an image too small.
    """
    known = CLASSES[eye.modality]
    if condition not in known:
        raise RetFoundError(f"condition {condition!r} is unknown for {eye.modality}; choose one of {', '.join(known)}")
    if not 0 <= severity <= 1:
        raise RetFoundError(f"severity {severity} is out of range; give a number from 0 to 1")
    if image_size < 64:
        raise RetFoundError(f"image_size {image_size} is too small to show a retina; give at least 64")
    draw = render_cfp if eye.modality == "cfp" else render_oct
    return draw(eye, condition, severity, image_size, rng)
