"""Reading of retinal images: any file as 8-bit RGB, resizing, and regions of an image."""

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from ..errors import BadDataError, MissingPackageError, UnreadableImageError, one_line

CHUNK_VALUES = 2**20
RESIZING_ROWS = 64


def apply_in_row_chunks(values: np.ndarray, to_eight_bits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (rows, columns) from an element-wise function, computed in chunks of rows to save memory."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, CHUNK_VALUES // max(values.shape[1], 1))
    for start in range(0, len(values), rows):
        result[start : start + rows] = to_eight_bits(values[start : start + rows])
    return result


def resize(image: Image.Image, size: Mapping[str, int]) -> Image.Image:
    """An 8-bit RGB image resized bicubically and antialiased, to the bit as the image processor does.

    Args:
        size: `{"height": ..., "width": ...}`, or `{"shortest_edge": ...}` to keep the shape.
    """
    target = [size["shortest_edge"]] if size.get("shortest_edge") else [size["height"], size["width"]]
    resized = functional.resize(to_tensor(image), target, InterpolationMode.BICUBIC, antialias=True)
    return Image.fromarray(resized.permute(1, 2, 0).contiguous().numpy())


def resized_shape(shape: tuple[int, int], size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width that an image of `shape` (height, width) has after `resize`."""
    edge = size.get("shortest_edge")
    if not edge:
        return size["height"], size["width"]
    height, width = (max(edge, int(edge * side / min(shape))) for side in shape)
    return height, width


def to_tensor(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> Tensor:
    """The part of an RGB image within `box` as uint8 (3, height, width), channels last in memory.

    Copied in chunks of rows: Pillow converts a whole photograph through several copies, each slower than resizing.

    Args:
        box: (left, top, right, bottom) in pixels, black where it reaches beyond the image; None for the whole image.
    """
    left, top, right, bottom = box or (0, 0, *image.size)
    pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, x1 = max(left, 0), min(right, image.width)
    for y0 in range(max(top, 0), min(bottom, image.height), RESIZING_ROWS):
        y1 = min(y0 + RESIZING_ROWS, bottom, image.height)
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(image.crop((x0, y0, x1, y1)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


@dataclass(frozen=True)
class ImageRegion:
    """Rectangle on an image, with fractional edges in pixels; it may reach beyond the image.

    Pixel (i, j) of an image covers x from i to i + 1 and y from j to j + 1.
    """

    left: float
    top: float
    right: float
    bottom: float

    def scaled(self, x: float, y: float | None = None) -> "ImageRegion":
        """The same part of the image after its pixels are multiplied by `x` (and `y`, or else `x` too)."""
        y = x if y is None else y
        return ImageRegion(self.left * x, self.top * y, self.right * x, self.bottom * y)

    def moved(self, x: float, y: float) -> "ImageRegion":
        """The region shifted by `x` and `y` pixels."""
        return ImageRegion(self.left + x, self.top + y, self.right + x, self.bottom + y)

    def place(self, values: np.ndarray, size: tuple[int, int], outside: float = 0.0) -> np.ndarray:
        """Lay a map that fills the region, of any resolution, onto the image.

        Args:
            values: (rows, columns), each covering an equal part of the region; linear between their centres, constant
                beyond the outermost.
            size: width and height of the image in pixels.
            outside: value of pixels beyond the region.

        Returns:
            float32 (height, width).

        Raises:
            BadDataError: a map that is not two-dimensional.
        """
        if values.ndim != 2:
            raise BadDataError(f"a map has shape {values.shape}; give (rows, columns)")
        rows, columns = values.shape
        across, down = columns / (self.right - self.left), rows / (self.bottom - self.top)
        picture = Image.fromarray(np.ascontiguousarray(values, dtype=np.float32))
        affine = (across, 0.0, -self.left * across, 0.0, down, -self.top * down)
        placed = picture.transform(size, Image.Transform.AFFINE, affine, Image.Resampling.BILINEAR, fillcolor=outside)
        return np.asarray(placed)


DICOM_SUFFIXES = (".dcm", ".dicom")
PREAMBLE, MAGIC = 128, b"DICM"
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm",
    *DICOM_SUFFIXES,
)  # fmt: skip
SENSOR_BITS = (8, 10, 12, 14, 16)


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether a file, or the bytes of one, has the mark of DICOM behind its preamble, whatever its name."""
    if isinstance(source, bytes):
        return source[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC
    with open(source, "rb") as file:
        return is_dicom(file.read(PREAMBLE + len(MAGIC)))


def read_image(
    source: str | Path | bytes | Image.Image, min_side: int | None = None, max_pixels: int | None = None
) -> Image.Image:
    """Read an image as 8-bit RGB with its EXIF orientation applied; for the conversion of modes see `to_rgb`.

    The first frame of a multi-frame file is read, the central one of a DICOM file (which needs the extra `dicom`).
    16-bit RGB files arrive from Pillow with 8 bits (the high bytes).

    Args:
        source: path, the bytes of a file, or an image that is open already.
        min_side: let large JPEGs be decoded at 1/2, 1/4 or 1/8 of their size, as long as both sides keep at least
            this many pixels. Several times faster, and the reduced image is an average, not a sample.
        max_pixels: refuse larger images before they are decoded.

    Raises:
        UnreadableImageError: `.path` (empty for bytes and open images) and `.reason`.
        MissingPackageError: a DICOM file where the extra `dicom` is not installed.
    """
    path = str(source) if isinstance(source, (str, Path)) else ""
    try:
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if is_dicom(source):
            from .dicom import read_dicom  # only where there is one

            return to_rgb(read_dicom(source, max_pixels))
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                size = f"{image.width} x {image.height}"
                raise UnreadableImageError(f"it has {size} pixels, more than the {max_pixels:,} allowed")
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            upright = _upright_rgb(image)
            # An image must not outlive its file.
            return image.copy() if upright is image else upright
    except MissingPackageError:
        raise
    except Exception as error:  # decoders fail on broken files with errors of every type
        reason = error.reason if isinstance(error, UnreadableImageError) else _reason(error, source)
        raise UnreadableImageError(f"cannot read {path or 'the image'}: {reason}", path=path, reason=reason) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB; an RGB image is returned itself.

    - Transparent pixels become black, the surround of retinal images.
    - Integers beyond 8 bits (modes I;16, I) are divided by the largest value of the smallest usual sensor depth
      (8, 10, 12, 14 or 16 bits) that holds the image's maximum: 12-bit data stored in 16 bits keeps its brightness,
      and images of one sensor share one scale unless one of them uses less than a quarter of its range.
    - Floats (mode F) whose maximum is at most 1 span 0-1, others follow the rule for integers; negative and undefined
      values become black.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return _deep_to_rgb(np.asarray(image))
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        black = Image.new("RGBA", rgba.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, rgba).convert("RGB")
    return image.convert("RGB")


def find_images(folder: str | Path) -> list[Path]:
    """All image files under `folder` by suffix, in sorted order, without hidden ones; links to folders are followed.

    Raises:
        BadDataError: `folder` is not a folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        what = "is a file" if folder.is_file() else "does not exist"
        raise BadDataError(f"image folder {folder} {what}; give a folder that holds images", source=folder)
    return [folder / path for path in walk_images(str(folder))]


def walk_images(folder: str) -> Iterator[str]:
    """Paths relative to `folder` of what `find_images` finds, in its order; no more than one folder is in memory."""
    try:
        with os.scandir(folder) as entries:
            # Names alone, since a folder may hold a million of them.
            is_folder = {
                entry.name: entry.is_dir() for entry in entries
                if not entry.name.startswith(".") and (entry.name.lower().endswith(IMAGE_SUFFIXES) or entry.is_dir())
            }  # fmt: skip
    except OSError:
        return
    for name in sorted(is_folder):
        if is_folder[name]:
            yield from (f"{name}/{path}" for path in walk_images(f"{folder}/{name}"))
        else:
            yield name


def _upright_rgb(image: Image.Image) -> Image.Image:
    # Pillow's transpose copies a photograph even where there is nothing to turn.
    is_turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
    return to_rgb(ImageOps.exif_transpose(image) if is_turned else image)


def _deep_to_rgb(values: np.ndarray) -> Image.Image:
    is_unit = values.dtype.kind == "f"
    largest = np.where(np.isfinite(values), values, 0).max(initial=0) if is_unit else values.max(initial=0)
    ranges = [1] * is_unit + [2**bits - 1 for bits in SENSOR_BITS]
    white = float(next((limit for limit in ranges if largest <= limit), largest))

    def scaled(strip: np.ndarray) -> np.ndarray:
        finite = np.nan_to_num(strip.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
        return np.rint(finite.clip(min=0) * (255 / white)).astype(np.uint8)

    return Image.fromarray(apply_in_row_chunks(values, scaled)).convert("RGB")


def _reason(error: Exception, source: object) -> str:
    if isinstance(error, FileNotFoundError):
        return "the file does not exist"
    if isinstance(error, IsADirectoryError):
        return "it is a folder; give an image file"
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, Image.DecompressionBombError):
        return f"it has more than {2 * (Image.MAX_IMAGE_PIXELS or 0):,} pixels; reduce it first"
    if isinstance(error, UnidentifiedImageError):
        empty = len(source) == 0 if isinstance(source, bytes) else Path(str(source)).stat().st_size == 0
        return "the file is empty" if empty else "it is not an image in a format that Pillow knows"
    if "truncated" in str(error):
        return f"the file is truncated ({error})"
    return f"the file is damaged ({one_line(error)})"


# Mean difference between the strongest and the weakest channel, of 255: OCT scans have none, photographs tens.
GRAY = 3.0


def channel_spread(image: Any) -> float:
    """Mean difference between the strongest and the weakest channel of an RGB image, of 255; gray below `GRAY`."""
    return float(np.ptp(np.asarray(image, dtype=np.int16), axis=2).mean())
