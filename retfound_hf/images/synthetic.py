"""Synthetic retinas for tests, demonstrations and the quickstart: classes, patients, photographs."""

import numpy as np

from ..errors import RetFoundError
from .anatomy import Camera, Eye, Modality, Stage, SyntheticImage, draw_patient
from .synthetic_cfp import CFP_CLASSES, render_cfp
from .synthetic_oct import OCT_CLASSES, render_oct

__all__ = [
    "CAMERA_TYPES",
    "CFP_CLASSES",
    "CLASSES",
    "OCT_CLASSES",
    "STAGES",
    "Camera",
    "Eye",
    "Modality",
    "Stage",
    "SyntheticImage",
    "check_options",
    "draw_patient",
    "render",
]

CLASSES: dict[str, tuple[str, ...]] = {"cfp": CFP_CLASSES, "oct": OCT_CLASSES}
STAGES: dict[str, tuple[Stage, ...]] = {"cfp": ("early", "advanced"), "oct": ("early",)}
CAMERA_TYPES: dict[str, tuple[Camera, ...]] = {"cfp": ("clinic", "handheld"), "oct": ("clinic",)}


def render(
    eye: Eye,
    condition: str,
    severity: float,
    image_size: int,
    rng: np.random.Generator,
    stage: Stage = "early",
    camera: Camera = "clinic",
) -> SyntheticImage:
    """Take one photograph (CFP) or B-scan (OCT) of `eye`.

    Photographs of one eye share its anatomy and differ in light, position, sharpness, noise and lesions. The same
    generator state with another condition gives the same photograph apart from the lesions.

    Args:
        condition: one of `CLASSES[eye.modality]`; the first of them is the healthy one.
        severity: 0 (just detectable) to 1; ignored for the healthy class.
        image_size: height in pixels, at least 64; the width is 4/3 of it.
        stage: "early", or "advanced" with large lesions in groups, which only CFP has.
        camera: "clinic", or "handheld" with the grain of a small sensor, which only CFP has.

    Raises:
        RetFoundError: unknown condition, stage or camera, severity out of range, or an image too small.
    """
    known = CLASSES[eye.modality]
    if condition not in known:
        raise RetFoundError(f"condition {condition!r} is unknown for {eye.modality}; choose one of {', '.join(known)}")
    if not 0 <= severity <= 1:
        raise RetFoundError(f"severity {severity} is out of range; give a number from 0 to 1")
    if image_size < 64:
        raise RetFoundError(f"image_size {image_size} is too small to show a retina; give at least 64")
    check_options(eye.modality, stage, camera)
    if eye.modality == "cfp":
        return render_cfp(eye, condition, severity, image_size, rng, stage, camera)
    return render_oct(eye, condition, severity, image_size, rng)


def check_options(modality: str, stage: str, camera: str) -> None:
    """Raises RetFoundError: a stage or a camera that `modality` does not have."""
    for name, value, known in (("stage", stage, STAGES[modality]), ("camera", camera, CAMERA_TYPES[modality])):
        if value not in known:
            raise RetFoundError(f"{name} {value!r} is not known for {modality}; choose {' or '.join(known)}")
