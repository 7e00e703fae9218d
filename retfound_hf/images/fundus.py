"""The field of view of a colour fundus photograph: the lit disc within a dark surround."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..runs.errors import RetFoundError

DETECTION_SIDE = 256
# The crop of a crop must be itself: a box within this fraction of the whole image is the whole image.
WHOLE_TOLERANCE = 0.02


@dataclass(frozen=True)
class FieldOfView:
    """Bounding box of the lit field in pixels, `right` and `bottom` exclusive.

    `found` is false where the image shows no dark surround to cut away (an OCT B-scan, a patch, an image that is
    cropped already); the box is then the whole image.
    """

    left: int
    top: int
    right: int
    bottom: int
    found: bool

    @property
    def side(self) -> int:
        """Side of the square crop in pixels: the longer side of the box."""
        return max(self.right - self.left, self.bottom - self.top)


def find_field_of_view(image: np.ndarray | Image.Image) -> FieldOfView:
    """Find the lit disc of a fundus photograph, to about 1% of its diameter.

    The image is reduced to about 256 pixels, separated from the level of its corners, and a circle is fitted to the
    outline of the largest lit part. Straight cuts (a disc larger than the sensor), notches, captions and specks lie
    off the circle and do not move it; an outline that is no circle means that there is no field to crop.

    Args:
        image: RGB, uint8, as a PIL image or an array (height, width, 3).

    Raises:
        RetFoundError: another shape or type.
    """
    from .lit_disc import box_of_disc  # brings SciPy: not before it is needed

    image = as_rgb_image(image)
    factor = max(1, max(image.size) // DETECTION_SIDE)
    # The brightest channel: the rim of a fundus is dark in green and blue long before it is dark in red.
    small = np.asarray(image.reduce(factor)).max(axis=2)
    box = box_of_disc(small)
    width, height = image.size
    whole = FieldOfView(0, 0, width, height, found=False)
    if box is None:
        return whole
    left, top, right, bottom = (round(edge * factor) for edge in box)
    field = FieldOfView(max(left, 0), max(top, 0), min(right, width), min(bottom, height), found=True)
    cut = square_box(field)
    slack = WHOLE_TOLERANCE * max(image.size)
    same = all(abs(a - b) <= slack for a, b in zip(cut, (0, 0, width, height), strict=True))
    return whole if same else field


def square_box(fov: FieldOfView) -> tuple[int, int, int, int]:
    """The square crop (left, top, right, bottom) in the image's pixels, centred on the field.

    It may reach beyond the image, where the crop is padded with black. Adding `left` and `top` maps a pixel of the
    crop back to the image.
    """
    left = (fov.left + fov.right - fov.side) // 2
    top = (fov.top + fov.bottom - fov.side) // 2
    return left, top, left + fov.side, top + fov.side


def crop_field_of_view(image: Image.Image) -> Image.Image:
    """Cut an RGB image to its field of view, padded with black to a square; unchanged where there is none.

    This is the first preprocessing step of RETFound's fundus model (AutoMorph, Zhou et al. 2022, step 1).
    """
    box = crop_box(image)
    return image if box == (0, 0, *image.size) else image.crop(box)


def crop_box(image: Image.Image) -> tuple[int, int, int, int]:
    """The square crop to the field of view of an RGB image, or the whole image where there is none."""
    field = find_field_of_view(image)
    return square_box(field) if field.found else (0, 0, *image.size)


def as_rgb_image(image: np.ndarray | Image.Image) -> Image.Image:
    """The image as a PIL image in mode RGB; an array must be uint8 of shape (height, width, 3)."""
    if isinstance(image, Image.Image):
        return image if image.mode == "RGB" else image.convert("RGB")
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise RetFoundError(
            f"the image is a {image.dtype} array of shape {image.shape}; give uint8 of shape (height, width, 3)"
        )
    return Image.fromarray(image)
