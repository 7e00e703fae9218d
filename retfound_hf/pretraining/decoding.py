"""One encoded image of the shards as pixels, by the fastest decoder that gets it right."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

from ..images.reading import UnreadableImageError, read_image
from ..images.resizing import to_tensor

JPEG_START, JPEG_END = b"\xff\xd8", b"\xff\xd9"


def decode(encoded: bytes) -> Tensor:
    """Encoded image -> uint8 (3, height, width), the right way up.

    Raises:
        UnreadableImageError: damaged or cut off.
    """
    # torchvision fills what is missing of a JPEG with gray and says so on the console only; Pillow refuses it.
    is_doubtful = encoded[:2] == JPEG_START and JPEG_END not in encoded[-64:]
    try:
        pixels = None if is_doubtful else _torchvision_decode(encoded)
    except (RuntimeError, ValueError):
        pixels = None
    # Deep images keep their 16 bits in torchvision, and animations their frames.
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim != 3:
        pixels = to_tensor(read_image(encoded))
    return pixels


def encoded_bytes(image: dict[str, Any] | None) -> bytes:
    """The bytes of a cell of the table; a data set of image files holds paths instead.

    Args:
        image: with `bytes` and `path`, as `datasets` stores images.

    Raises:
        UnreadableImageError: an empty cell, or no such file.
    """
    if image is None:
        raise UnreadableImageError("the row holds no image")
    if image["bytes"] is None and image["path"]:
        try:
            return Path(image["path"]).read_bytes()
        except OSError as error:
            raise UnreadableImageError(f"cannot read {image['path']}: {error.strerror}") from error
    return image["bytes"] or b""


def _torchvision_decode(encoded: bytes) -> Tensor:
    data = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    return decode_image(data, ImageReadMode.RGB, apply_exif_orientation=True)
