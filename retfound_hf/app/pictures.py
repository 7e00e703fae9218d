"""Pictures inside the page itself: no file is written, no address is asked for."""

import base64
from dataclasses import dataclass
from io import BytesIO

from PIL import Image

LONGEST_SIDE = 1024


@dataclass(frozen=True)
class Photo:
    """An image as the page shows it: an address that holds it, width and height in pixels."""

    uri: str
    size: tuple[int, int]


def photo_of(image: Image.Image) -> Photo:
    """The image reduced to at most 1,024 pixels."""
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=3)
    return Photo(data_uri(small), small.size)


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """The image as an address that holds it, `JPEG` for photographs or `PNG` for layers with transparency."""
    file = BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 3}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
