"""Bounds on what an image may cost, whatever its file claims, checked before it is decoded."""

import os
from io import SEEK_END, BufferedReader, BytesIO, FileIO
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import UnreadableImageError

# Pixels of a frame (1.3 GB of memory at the worst), frames of a file, pixels of all passes over a JPEG (some 10 s) or
# of all frames up to the one that is read, pixels that Pillow decodes in Python, or from colours of 16 bits, and how
# often a file is read, in pieces and (beyond SPARE_BYTES) as a whole.
MAX_PIXELS = 100_000_000
MAX_FRAMES = 10_000
MAX_PASSED_PIXELS = 5_000_000_000
MAX_ANIMATED_PIXELS = 300_000_000
MAX_PLAIN_PIXELS, MAX_DEEP_PIXELS = 8_000_000, 40_000_000
MAX_READS = 1_000_000
MAX_READINGS, SPARE_BYTES = 4, 2**29
IN_PYTHON = {"bmp_rle", "ppm_plain"}  # decoders of Pillow
MAX_COMMENTS, LONGEST_STEP = 1000, 255  # of `ppm_plain`; rows that `bmp_rle` may leave out at once
EXIF, EXIF_BYTES, MAX_EXIF = b"Exif\0\0", 2**16, 100  # mark of a block, its greatest length, blocks of a file
START_OF_SCAN, SHORTEST_SCAN = b"\xff\xda", 10  # bytes of a JPEG
TILE = (322, 323)  # tags of TIFF


def check_pixels(width: int, height: int, allowed: int = MAX_PIXELS) -> None:
    """Raise `UnreadableImageError` for an image of more than `allowed` pixels."""
    if width * height > allowed:
        raise UnreadableImageError(f"it has {width} x {height} pixels, more than the {allowed:,} allowed")


def check_frames(count: int, passed: int, width: int, height: int) -> None:
    """Raise `UnreadableImageError` for too many frames, or too many pixels `passed` on the way to the central one."""
    if count > MAX_FRAMES or passed > MAX_ANIMATED_PIXELS:
        raise UnreadableImageError(f"it has {count:,} frames of {width} x {height} pixels")


def check_blocks(source: str | Path | bytes, length: int) -> None:
    """Raise `UnreadableImageError` for a file with too many EXIF blocks: for each, Pillow copies all earlier ones."""
    if length > MAX_EXIF * EXIF_BYTES and whole(source).count(EXIF) > MAX_EXIF:
        raise UnreadableImageError("it holds too many blocks of EXIF; save it anew")


def check_scans(jpeg: str | Path | bytes, pixels: int) -> None:
    """Raise `UnreadableImageError` for a JPEG whose scans, each a pass over its `pixels`, take too long together."""
    length = len(jpeg) if isinstance(jpeg, bytes) else os.path.getsize(jpeg)
    if length // SHORTEST_SCAN * pixels > MAX_PASSED_PIXELS:
        scans = whole(jpeg).count(START_OF_SCAN)
        if scans * pixels > MAX_PASSED_PIXELS:
            raise UnreadableImageError(f"its JPEG has {scans:,} scans over {pixels:,} pixels; save it anew")


class BoundedReader(BufferedReader):
    """File that refuses to be read in more pieces than `most_reads`, or many times over.

    A header of a few bytes can ask for millions of small readings, or a table of contents for the whole file again
    and again.

    Args:
        source: path, or the bytes of a file.
        most_reads: `MAX_READS` by default.
    """

    name = ""  # pydicom asks for a name, which bytes have none of

    def __init__(self, source: str | Path | bytes, most_reads: int | None = None):
        super().__init__(BytesIO(source) if isinstance(source, bytes) else FileIO(source))  # type: ignore[arg-type]
        self.reads_left = most_reads or MAX_READS
        self.length = self.seek(0, SEEK_END)
        self.bytes_left = MAX_READINGS * self.length + SPARE_BYTES
        self.seek(0)

    def read(self, size: int | None = -1) -> bytes:
        content = super().read(size)
        self.reads_left -= 1
        self.bytes_left -= len(content)
        if min(self.reads_left, self.bytes_left) < 0:
            raise UnreadableImageError("its header asks for too many readings of the file; save it anew")
        return content


def whole(source: str | Path | bytes) -> bytes:
    """Content of a file, given by its path or as bytes."""
    return source if isinstance(source, bytes) else Path(source).read_bytes()


def check_decoder(image: Image.Image, source: str | Path | bytes) -> None:
    """Raise `UnreadableImageError` where the decoder of an image would take more than its pixels do."""
    if image.format == "TIFF":
        check_pixels(*(image.tag_v2.get(side, 0) for side in TILE))
    tiles = getattr(image, "tile", ())
    if image.mode in ("RGB", "RGBA") and any(";16" in raw_mode(tile) for tile in tiles):
        check_pixels(image.width, image.height, MAX_DEEP_PIXELS)
    if not {tile.codec_name for tile in tiles} & IN_PYTHON:
        return
    slow = image.width * max(image.height, LONGEST_STEP) > MAX_PLAIN_PIXELS
    if slow or (image.format == "PPM" and whole(source).count(b"#") > MAX_COMMENTS):
        raise UnreadableImageError(
            f"its {image.width} x {image.height} pixels are stored as text or runs, too many to read; save it anew"
        )


def raw_mode(tile: Any) -> str:
    """Mode in which Pillow finds the pixels of a part of an image."""
    found = tile.args if isinstance(tile.args, str) else tile.args[0] if tile.args else ""
    return str(found)
