"""Images to try the page with: synthetic, drawn when it starts, so that none belongs to a patient."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from ..images.synthetic import CLASSES, draw_patient, render

SEED, SEVERITY, SIZE, THUMBNAIL = 7, 0.8, 384, 96


@dataclass(frozen=True)
class Example:
    name: str
    image: Image.Image

    @cached_property
    def thumbnail(self) -> Image.Image:
        small = self.image.copy()
        small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))  # twice, for screens of high density
        return small


def draw_examples(modality: str | None, size: int = SIZE) -> list[Example]:
    """One image of each synthetic condition of the modality; of both modalities where it is unknown."""
    found = []
    for kind in (modality,) if modality else tuple(CLASSES):
        eye = draw_patient(np.random.default_rng(SEED), kind)[0]
        for condition in CLASSES[kind]:
            image = render(eye, condition, SEVERITY, size, np.random.default_rng(SEED)).image
            found.append(Example(f"synthetic {kind.upper()}, {condition}", Image.fromarray(image)))
    return found
