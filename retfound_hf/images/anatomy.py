"""The synthetic patient: everything about an eye that stays the same from one photograph to the next."""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from ..errors import RetFoundError

Modality = Literal["cfp", "oct"]
Stage = Literal["early", "advanced"]
Camera = Literal["clinic", "handheld"]


@dataclass(frozen=True)
class Eye:
    """One synthetic eye. Lengths are in units of the photograph's field radius (CFP) or of the scan's height (OCT).

    Attributes:
        laterality: "R" or "L"; the optic disc lies to the viewer's right of the macula in a right eye.
        seed: draws what is too fine to list here (vessel tree, choroidal texture, layer undulation) anew and
            identically for every photograph of this eye.
        pigment: 0 (blond fundus) to 1 (dark); shared by a patient's two eyes.
        hue: -1 (yellower) to 1 (redder); shared by a patient's two eyes.
        tortuosity: how much vessels wind; shared by a patient's two eyes.
        disc: centre (x, y) of the optic disc, x to the right, y down, the macula being near (0, 0).
        disc_radius: semi-axis of the optic disc.
        cup_ratio: physiological cup-to-disc ratio.
        thickness: retinal thickness away from the fovea, as a fraction of a B-scan's height.
        pit: depth of the foveal pit as a fraction of `thickness`.
        curvature: sag of the eye's wall over half a B-scan's width, as a fraction of its height.
        camera: 0 to 1, the device that took the photographs: frame, background level, colour response.
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
        condition: one of the modality's classes.
        severity: 0 (just detectable) to 1.
    """

    image: np.ndarray
    lesion_mask: np.ndarray
    condition: str
    severity: float


def draw_patient(rng: np.random.Generator, modality: Modality) -> tuple[Eye, Eye]:
    """Draw a patient's right and left eye: mirrored in plan, alike in pigment, vessel style and camera.

    Raises:
        RetFoundError: `modality` is neither "cfp" nor "oct".
    """
    if modality not in get_args(Modality):
        raise RetFoundError(f"modality {modality!r} is unknown; choose {' or '.join(get_args(Modality))}")
    shared = {
        "modality": modality,
        "pigment": float(rng.beta(2, 2)),
        "hue": float(rng.uniform(-1, 1)),
        "tortuosity": float(rng.uniform(0.4, 1.2)),
        "camera": float(rng.uniform(0, 1)),
    }
    disc_radius = rng.uniform(0.13, 0.19)
    cup_ratio = rng.uniform(0.22, 0.6)
    thickness = rng.uniform(0.2, 0.26)
    pit = rng.uniform(0.35, 0.6)
    curvature = rng.uniform(0.0, 0.1)

    def eye(laterality: Literal["R", "L"]) -> Eye:
        side = 1 if laterality == "R" else -1
        return Eye(
            laterality=laterality,
            seed=int(rng.integers(2**31)),
            disc=(side * float(rng.uniform(0.58, 0.68)), float(rng.uniform(-0.09, 0.01))),
            disc_radius=float(disc_radius * rng.uniform(0.96, 1.04)),
            cup_ratio=float(cup_ratio + rng.uniform(-0.05, 0.05)),
            thickness=float(thickness * rng.uniform(0.97, 1.03)),
            pit=float(pit * rng.uniform(0.95, 1.05)),
            curvature=float(curvature + rng.uniform(-0.01, 0.01)),
            **shared,
        )

    return eye("R"), eye("L")
