"""Reading of image files of every common format as upright 8-bit RGB, and finding them in folders."""

import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import BadDataError, MissingPackageError, UnreadableImageError, one_line
from .dicom import DICOM_SUFFIXES, is_dicom, read_dicom
from .geometry import apply_in_row_chunks

IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm",
    *DICOM_SUFFIXES,
)  # fmt: skip
SENSOR_BITS = (8, 10, 12, 14, 16)


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
