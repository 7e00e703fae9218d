"""Reading of retinal images: any file as 8-bit RGB, resizing, and regions of an image."""

import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from io import BytesIO
from mimetypes import MimeTypes
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ..errors import BadDataError, MissingPackageError, UnreadableImageError, one_line
from ..vocabulary import MODALITIES
from .bounds import (
    MAX_FRAMES,
    MAX_PIXELS,
    BoundedReader,
    check_blocks,
    check_decoder,
    check_frames,
    check_pixels,
    check_scans,
    raw_mode,
    whole,
)

if TYPE_CHECKING:
    from torch import Tensor

CHUNK_VALUES, RESIZING_ROWS = 2**20, 64


def apply_in_row_chunks(values: np.ndarray, to_eight_bits: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """uint8 (rows, columns) from an element-wise function, computed in chunks of rows to save memory."""
    result = np.empty(values.shape, np.uint8)
    rows = max(1, CHUNK_VALUES // max(values.shape[1], 1))
    for start in range(0, len(values), rows):
        result[start : start + rows] = to_eight_bits(values[start : start + rows])
    return result


def resize(image: Image.Image, size: Mapping[str, int]) -> Image.Image:
    """An 8-bit RGB image resized bicubically and antialiased, to the bit as the image processor does.

    `size` is `{"height": ..., "width": ...}`, or `{"shortest_edge": ...}` to keep the shape.
    """
    from torch.nn import functional  # that torchvision calls: to import the latter takes as long as 100 photographs

    shortest, own = size.get("shortest_edge"), image.size
    width, height = [int(shortest * side / min(own)) for side in own] if shortest else (size["width"], size["height"])
    if (width, height) == own:
        return image
    pixels = to_tensor(image).permute(1, 2, 0)[None].permute(0, 3, 1, 2)  # channels last to torch, too
    resized = functional.interpolate(pixels, (height, width), mode="bicubic", antialias=True)
    return Image.fromarray(resized[0].permute(1, 2, 0).contiguous().numpy())


def to_tensor(image: Image.Image, box: tuple[int, int, int, int] | None = None) -> "Tensor":
    """The part of an RGB image within `box` as uint8 (3, height, width), channels last in memory.

    Copied in chunks of rows: Pillow converts a whole photograph through several copies, each slower than resizing.

    Args:
        box: (left, top, right, bottom) in pixels, black where it reaches beyond the image; None for the whole image.
    """
    import torch  # not before an image is resized

    left, top, right, bottom = box or (0, 0, *image.size)
    pixels = np.zeros((bottom - top, right - left, 3), np.uint8)
    x0, x1 = max(left, 0), min(right, image.width)
    for y0 in range(max(top, 0), min(bottom, image.height), RESIZING_ROWS):
        y1 = min(y0 + RESIZING_ROWS, bottom, image.height)
        pixels[y0 - top : y1 - top, x0 - left : x1 - left] = np.asarray(image.crop((x0, y0, x1, y1)))
    return torch.from_numpy(pixels).permute(2, 0, 1)


DICOM_SUFFIXES = (".dcm", ".dicom")
PREAMBLE, MAGIC = 128, b"DICM"
IMAGE_SUFFIXES: tuple[str, ...] = (
    ".jpg", ".jpeg", ".jpe", ".jfif", ".jp2", ".png", ".tif", ".tiff", ".bmp", ".webp", ".gif", ".ppm", ".pgm",
    *DICOM_SUFFIXES,
)  # fmt: skip
# First element of DICOM without preamble: its group, then a representation of two letters or a short length.
BARE_DICOM = re.compile(rb"[\x02\x08]\0.\0(?:AE|CS|DA|DT|LO|OB|PN|SH|TM|UI|UL|US|..\0\0)|\0\x08\0.[A-Z]{2}", re.S)
KNOWN_TYPES = MimeTypes()  # by suffix, as Python lists them; the machine's own list differs from place to place
# Pillow's readers of the suffixes above, and no others: some hand a file to another program (PostScript).
FORMATS = ("JPEG", "PNG", "TIFF", "BMP", "WEBP", "GIF", "PPM", "JPEG2000")
SENSOR_LIMITS = [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
OVERSHOOT = 1.5  # largest value of floats that are meant to end at 1
LEAST_SCALE = 16  # floats that end below it, but beyond OVERSHOOT, have no known scale
LEAST_SHOWN = 0.02  # share of an image: transparency that leaves less than this is none
BLANK = 8  # of 255
PNG, PNG_TEXTS = b"\x89PNG\r\n\x1a\n", (b"tEXt", b"zTXt", b"iTXt")
SUBFILE_TYPE, BITS, PHOTOMETRIC, PLANAR = 254, 258, 262, 284  # tags of TIFF
APART = "its colours of 16 bits lie in planes of their own; save it with the colours of a pixel side by side"
REDUCED_OR_MASK = 0b101  # bits of SUBFILE_TYPE


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether a file, or the bytes of one, is DICOM by its content: with its mark, or as older devices write it."""
    if isinstance(source, bytes):
        marked = source[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC
        return marked or BARE_DICOM.match(source) is not None
    with open(source, "rb") as file:
        return is_dicom(file.read(PREAMBLE + len(MAGIC)))


def is_image(name: str, opened: Callable[[], Any]) -> bool:
    """Whether a file is an image by its name, or else DICOM by its content: hospital media leave the suffix out.

    Args:
        name: of the file, with or without folders.
        opened: gives the open file; called where the name does not decide.
    """
    if name.lower().endswith(IMAGE_SUFFIXES):
        return True
    base = os.path.basename(name)
    # DICOMDIR is a table of contents.
    if base.upper() == "DICOMDIR" or KNOWN_TYPES.guess_type(base)[0] not in (None, "application/octet-stream"):
        return False
    with suppress(Exception), opened() as file:
        return is_dicom(file.read(PREAMBLE + len(MAGIC)))
    return False


def is_image_file(path: str | Path) -> bool:
    """`is_image` of a path; what is no regular file, such as a pipe, is none, however it is called."""
    return os.path.isfile(path) and is_image(str(path), partial(open, path, "rb"))


def read_image(source: Any, min_side: int | None = None, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read an image as 8-bit RGB with its EXIF orientation applied; for the conversion of modes see `to_rgb`.

    The central frame of a stack (TIFF, GIF, DICOM...) is read, as RETFound takes the central B-scan of an OCT volume;
    smaller pages of a TIFF file (previews, masks) do not count. DICOM needs the extra `dicom`. 16-bit colours keep
    their high bytes, unless they use less than a quarter of the range: then the rule of `to_rgb` for integers holds.

    Args:
        source: path, bytes of a file, image that is open at the frame that is wanted, or a function that gives one.
        min_side: let large JPEGs be decoded at 1/2, 1/4 or 1/8 of their size, as long as both sides keep at least
            this many pixels. Several times faster, and the reduced image is an average, not a sample.
        max_pixels: refuse larger images before they are decoded.

    Raises:
        UnreadableImageError: `.path` (empty for bytes and open images) and `.reason`.
        MissingPackageError: a DICOM file where the extra `dicom` is not installed.
    """
    path = ""
    try:
        source = source() if callable(source) else source
        path = str(source) if isinstance(source, (str, Path)) else ""
        if isinstance(source, Image.Image):
            return _upright_rgb(source)
        if path and os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path):
            raise UnreadableImageError("it is no regular file")  # a pipe would never end
        if is_dicom(source):
            from .dicom import read_dicom  # only where there is one

            return to_rgb(read_dicom(source, max_pixels))
        with open_image(source) as image:
            _seek_central(image)
            check_pixels(image.width, image.height, max_pixels)
            check_decoder(image, source)
            if min_side is not None:
                image.draft(None, (min_side, min_side))
            upright = _upright_rgb(image)
            # An image must not outlive its file; `copy` would hold all pixels twice.
            image.load()
            return image._new(image.im) if upright is image else upright
    except MissingPackageError:
        raise
    except Exception as error:  # decoders fail on broken files with errors of every type
        reason = error.reason if isinstance(error, UnreadableImageError) else _reason(error, source)
        raise UnreadableImageError(f"cannot read {path or 'the image'}: {reason}", path=path, reason=reason) from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image of any Pillow mode to 8-bit RGB; an RGB image is returned itself.

    - Transparent pixels become black, the surround of retinal images, measured by the most opaque pixel;
      transparency that hides (nearly) the whole image is passed over.
    - Integers beyond 8 bits (modes I;16, I) are divided by the largest value of the smallest usual sensor depth
      (8, 10, 12, 14 or 16 bits) that holds the image's maximum: 12-bit data stored in 16 bits keeps its brightness,
      and images of one sensor share one scale unless one of them uses less than a quarter of its range. Marks of
      65535 far above all other values become white. Negative values become black, unless they reach far below
      zero: then the least is black.
    - Floats (mode F) whose maximum is about 1 span 0-1, others follow the rule for integers; negative and undefined
      values become black.

    Raises:
        UnreadableImageError: floats of no known scale, such as standardised ones.
    """
    if image.mode == "RGB" and "transparency" not in image.info:
        return image
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(scale_deep(np.asarray(image))).convert("RGB")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = image if image.mode == "RGBA" else image.convert("RGBA")
        least, most = rgba.getextrema()[3]
        if least == 255:
            return rgba.convert("RGB")
        alpha = rgba.getchannel("A").point(lambda value: value * 255 // max(most, 1))  # in 0 and 1, say, or uniform
        shown = Image.new("RGB", rgba.size)
        for top in range(0, rgba.height, RESIZING_ROWS):  # few at a time: the whole takes several copies
            rows = (0, top, rgba.width, min(top + RESIZING_ROWS, rgba.height))
            (part := rgba.crop(rows)).putalpha(alpha.crop(rows))
            shown.paste(Image.alpha_composite(Image.new("RGBA", part.size, (0, 0, 0, 255)), part).convert("RGB"), rows)
        brightest, clear = max(high for _, high in shown.getextrema()), np.asarray(alpha).mean()
        return rgba.convert("RGB") if clear < 255 * LEAST_SHOWN or brightest < BLANK else shown
    return image.convert("RGB")


def scale_deep(values: np.ndarray) -> np.ndarray:
    """uint8 of the shape of `values`, numbers or integers beyond 8 bits, by the rules of `to_rgb`."""
    is_float, black = values.dtype.kind == "f", 0
    largest = values.max(initial=0, where=np.isfinite(values)) if is_float else int(values.max(initial=0))
    limits: Sequence[float] = SENSOR_LIMITS
    if is_float:
        if OVERSHOOT < largest < LEAST_SCALE:
            raise UnreadableImageError(
                f"its values are floats from {np.nanmin(values):.3g} to {largest:.3g}, of no known scale; save it "
                "with values from 0 to 1, or as integers"
            )
        if largest <= OVERSHOOT:
            limits, largest = [*(limit / SENSOR_LIMITS[-1] for limit in SENSOR_LIMITS[:3]), 1], min(largest, 1)
    elif largest == SENSOR_LIMITS[-1]:
        below = int(values[values < largest].max(initial=0))
        largest = below if 0 < below <= SENSOR_LIMITS[-2] else largest
    elif (least := int(values.min(initial=0))) < -largest / 8:
        black, largest = least, largest - least
    white = float(next((limit for limit in limits if largest <= limit), largest))

    def scaled(strip: np.ndarray) -> np.ndarray:
        finite = np.nan_to_num(strip.astype(np.float64) - black, nan=0.0, posinf=0.0, neginf=0.0)
        return np.rint(finite.clip(0, white) * (255 / white)).astype(np.uint8)

    return apply_in_row_chunks(values, scaled)


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


def walk_images(folder: str, passed_over: list[str] | None = None) -> Iterator[str]:
    """Paths relative to `folder` of what `find_images` finds, in its order; no more than one folder is in memory.

    Links are followed, but not to what is met in `folder` anyway, nor to what holds it; no folder is entered twice.

    Args:
        folder: where to begin.
        passed_over: takes the paths of the other visible files.
    """
    root, seen, pending = os.path.realpath(folder), set(), [("", True)]
    while pending:
        name, is_folder = pending.pop()
        path = f"{folder}/{name}" if name else folder
        if not is_folder:
            if is_image(name, partial(open, path, "rb")):
                yield name
            elif passed_over is not None:
                passed_over.append(name)
            continue
        with suppress(OSError):
            facts = os.stat(path)
            if (facts.st_dev, facts.st_ino) in seen:
                continue
            seen.add((facts.st_dev, facts.st_ino))
            with os.scandir(path) as entries:
                # Names alone, since a folder may hold a million of them; pipes and devices are neither kind.
                found = [
                    (f"{name}/{entry.name}".removeprefix("/"), entry.is_dir())
                    for entry in entries
                    if entry.name[0] != "." and (entry.is_dir() or entry.is_file())
                    and not (entry.is_symlink() and _is_met(entry.path, root))
                ]  # fmt: skip
            pending += sorted(found, reverse=True)


def _is_met(link: str, root: str) -> bool:
    """Whether a link leads to a folder that holds `root`, or to an image or a folder that a walk of `root` meets."""
    target = os.path.realpath(link)
    if root == target or root.startswith(target.rstrip("/") + "/"):
        return True
    within = target.startswith(root.rstrip("/") + "/") and "/." not in target[len(root) :]
    return within and (os.path.isdir(target) or is_image_file(target))


@contextmanager
def open_image(source: str | Path | bytes) -> Iterator[Image.Image]:
    """The image of a file, not decoded; texts of a PNG file that are longer than Pillow takes are left out.

    Raises:
        UnreadableImageError: its header, or the scans of a JPEG, ask for too much.
    """
    with BoundedReader(source) as file:
        check_blocks(source, file.length)
        try:
            image = Image.open(file, formats=FORMATS)
        except UnreadableImageError:
            raise
        except ValueError:  # an unknown format is an OSError
            content = whole(source)
            kept, position = [content[: len(PNG)]], len(PNG)
            while content.startswith(PNG) and position + 8 <= len(content):
                end = position + 12 + int.from_bytes(content[position : position + 4], "big")
                kept += [] if content[position + 4 : position + 8] in PNG_TEXTS else [content[position:end]]
                position = end
            if len(kept) == 1:
                raise
            image = Image.open(BoundedReader(b"".join(kept)), formats=FORMATS)
        if image.format in ("JPEG", "MPO"):
            check_scans(source, image.width * image.height)
        yield image


def _seek_central(image: Image.Image) -> None:
    """Go to the central frame of a file, among those of the size and mode of the largest.

    Raises:
        UnreadableImageError: more than `MAX_FRAMES`, or too many pixels to decode on the way to the central one.
    """
    if image.format == "MPO":  # one photograph and its previews
        return
    if image.format == "TIFF":
        kinds: list[tuple[bool, int, str]] = []
        with suppress(EOFError):  # at the end of the list, which may also have none
            while len(kinds) <= MAX_FRAMES:
                image.seek(len(kinds))
                is_own = not image.tag_v2.get(SUBFILE_TYPE, 0) & REDUCED_OR_MASK
                kinds.append((is_own, image.width * image.height, image.mode))
        largest = max(kinds, key=lambda kind: kind[:2])  # the first of them
        count, passed = len(kinds), 0
        places: Sequence[int] = [place for place, kind in enumerate(kinds) if kind == largest]
    else:
        count = getattr(image, "n_frames", 1)
        passed, places = count // 2 * image.width * image.height, range(count)
    check_frames(count, passed, image.width, image.height)
    if count > 1:
        image.seek(places[len(places) // 2])


def _upright_rgb(image: Image.Image) -> Image.Image:
    whole = _with_all_bytes(image)
    orientation = image.getexif().get(ExifTags.Base.Orientation, 1)
    if orientation != 1:  # Pillow's transpose copies a photograph even where there is nothing to turn
        whole.getexif()[ExifTags.Base.Orientation] = orientation
        whole = ImageOps.exif_transpose(whole)
    rgb = to_rgb(whole)
    # Pillow turns a TIFF file in which white is zero over in 8 bits alone.
    is_negative = image.mode[0] in "IF" and image.format == "TIFF" and image.tag_v2.get(PHOTOMETRIC) == 0
    return ImageOps.invert(rgb) if is_negative else rgb


def _with_all_bytes(image: Image.Image) -> Image.Image:
    """The image, or one of all 16 bits where Pillow keeps the high bytes of colours and these are nearly empty.

    Pillow can unpack either byte, in two passes. So it can leave colours as they are that it would divide by an alpha
    of 0 (premultiplied alpha of TIFF).
    """
    raw = {raw_mode(tile) for tile in getattr(image, "tile", ())}
    is_planar = image.format == "TIFF" and image.tag_v2.get(PLANAR) == 2
    if is_planar and image.tag_v2.get(BITS, (8,))[0] == 16 and "R" in raw:
        raise UnreadableImageError(APART)
    is_deep = image.mode in ("RGB", "RGBA") and any(";16" in mode for mode in raw)
    is_premultiplied = any(mode.startswith("RGBa") for mode in raw)
    if not is_deep and not is_premultiplied:
        return image
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)

    def again(change: Callable[[str], str]) -> np.ndarray:
        file = Image.open(BytesIO(content), formats=FORMATS)
        file.seek(image.tell())
        for number, tile in enumerate(file.tile):
            mode = change(raw_mode(tile))
            args = mode if isinstance(tile.args, str) else type(tile.args)((mode, *tile.args[1:]))
            file.tile[number] = tile._replace(args=args)
        return np.asarray(file)

    def plain(mode: str) -> str:
        return mode.replace("RGBa", "RGBA") if hides_all else mode

    def low_byte(mode: str) -> str:
        return re.sub("16(.)", lambda match: "16" + other[match[1]], plain(mode))

    hides_all = is_premultiplied and np.asarray(image)[..., 3].max() == 0
    high = again(plain) if hides_all else np.asarray(image)
    if not is_deep or high[..., :3].max() > SENSOR_LIMITS[-2] >> 8:
        return Image.fromarray(high) if hides_all else image
    if is_planar:
        raise UnreadableImageError(APART)
    other = {"L": "B", "B": "L", "N": "B" if sys.byteorder == "little" else "L"}
    try:
        low = again(low_byte)
    except ValueError as error:  # of gray and alpha together
        raise UnreadableImageError("it uses few of its 16 bits; save it without transparency") from error
    values = high.astype(np.uint16) << 8 | low
    bands = [scale_deep(part) for part in (values[..., :3], values[..., 3:]) if part.size]
    return Image.fromarray(np.concatenate(bands, axis=2))


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


def modality_mismatch(images: Iterable[Any], modality: str | None) -> str | None:
    """Words for how RGB images look, if as another modality than `modality`; else None."""
    spreads = [np.ptp(np.asarray(image, dtype=np.int16), axis=2).mean() for image in images]
    if not spreads or modality not in MODALITIES or (np.median(spreads) < GRAY) == MODALITIES[modality].gray:
        return None
    look = "coloured, as fundus photographs" if MODALITIES[modality].gray else "gray, as OCT scans"
    return f"the images look {look} are"
