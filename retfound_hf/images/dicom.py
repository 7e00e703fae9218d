"""DICOM images as 8-bit RGB; no name, number or date of a patient is read or kept."""

from functools import partial
from io import SEEK_CUR, BytesIO
from pathlib import Path
from struct import error as StructError
from struct import unpack, unpack_from
from typing import Any, BinaryIO

import numpy as np
from PIL import Image

from ..errors import MissingPackageError, UnreadableImageError, one_line
from .bounds import MAX_PIXELS, BoundedReader, check_pixels, check_scans
from .reading import MAGIC, PREAMBLE, apply_in_row_chunks, scale_deep

PIXEL_DATA = b"\xe0\x7f\x10\x00"
OFFSETS = ("ExtendedOffsetTable", "ExtendedOffsetTableLengths")
# Elements that turn stored values into a picture, beside those that pydicom reads by itself.
DISPLAY_TAGS = (
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
)  # fmt: skip
JP2_BOXES = b"\x00\x00\x00\x0cjP  "
ALONE = {0x01, *range(0xD0, 0xD8)}  # markers of JPEG without a length
# Frame headers of JPEG and JPEG-LS (SOF 0-15 but DHT, JPG and DAC; DHP of hierarchical JPEG; SOF 55).
FRAMES = {*range(0xC0, 0xD0), 0xDE, 0xF7} - {0xC4, 0xC8, 0xCC}
# A window that leaves FEW_LEVELS of gray, or makes most pixels white, is passed over where stored values show more.
FEW_LEVELS, MANY_LEVELS, MOST_WHITE = 32, 128, 0.75
PADDING = 2  # a segment of run lengths may hold this many times its pixels, since some writers pad
MAX_READS = 500_000  # two for each element of a header: some seconds


def read_dicom(source: str | Path | bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Read one image; of several frames the central one, as RETFound takes the central B-scan of an OCT volume.

    Rescaling, the window or lookup table, and palettes are applied as the file says; MONOCHROME1 is inverted and YBR
    becomes RGB. Text burned into the pixels stays.

    Args:
        source: path, or the bytes of a file.
        max_pixels: refuse larger images before anything is decoded.

    Returns:
        Mode L or RGB where 8 bits are stored or the file says how to show them; otherwise a deep mode, for
        `reading.to_rgb`.

    Raises:
        MissingPackageError: pydicom is not installed.
        UnreadableImageError: no image in the file, or one that is compressed in an unknown way or too large.
    """
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise MissingPackageError("pydicom", "dicom") from error

    source = _with_preamble(source)

    file = partial(BoundedReader, source, MAX_READS)
    with file() as opened:
        _check_syntax(opened)
        frame = _check_size(opened, max_pixels)
    header = pydicom.Dataset()
    tags = [pydicom.tag.Tag(name) for name in DISPLAY_TAGS]
    try:
        with file() as opened:
            values = pixel_array(opened, ds_out=header, specific_tags=tags, index=frame)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise UnreadableImageError(f"its image cannot be decoded: {one_line(error)}") from error
    return _picture(values, header)


def _with_preamble(source: str | Path | bytes) -> str | Path | bytes:
    """A file that lacks the preamble (and the transfer syntax, told by its first element) as bytes that have both."""
    from pydicom.dataset import FileMetaDataset
    from pydicom.filewriter import write_file_meta_info
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if isinstance(source, bytes):
        start = source
    else:
        with open(source, "rb") as file:
            start = file.read(PREAMBLE + len(MAGIC))
    if start[PREAMBLE:].startswith(MAGIC):
        return source
    content = source if isinstance(source, bytes) else Path(source).read_bytes()
    made = BytesIO()
    made.write(bytes(PREAMBLE) + MAGIC)
    if content[0] != 2:
        meta = FileMetaDataset()
        explicit = ExplicitVRLittleEndian if content[0] else ExplicitVRBigEndian
        meta.TransferSyntaxUID = explicit if content[4:6].isalpha() else ImplicitVRLittleEndian
        write_file_meta_info(made, meta, enforce_standard=False)
    return made.getvalue() + content


def _check_syntax(file: BinaryIO) -> None:
    """Refuse a file that is deflated as a whole: reading its first element would unpack all of it."""
    from pydicom.filereader import read_dataset, read_preamble
    from pydicom.uid import DeflatedExplicitVRLittleEndian

    read_preamble(file, force=False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") == DeflatedExplicitVRLittleEndian:
        raise UnreadableImageError(
            "it is deflated as a whole (transfer syntax 1.2.840.10008.1.2.1.99); store it unpacked"
        )
    file.seek(0)


def _check_size(file: BinaryIO, max_pixels: int) -> int:
    """Index of the central frame, checked to be as large as the header says and no larger than allowed."""
    import pydicom

    names = ["Rows", "Columns", "NumberOfFrames", "SamplesPerPixel", *OFFSETS]
    header = pydicom.dcmread(file, stop_before_pixels=True, specific_tags=names)
    if "Rows" not in header or "Columns" not in header:
        raise UnreadableImageError("this DICOM file holds no image (a report or a document, perhaps)")
    check_pixels(header.Columns, header.Rows, max_pixels)
    frames = int(header.get("NumberOfFrames") or 1)
    syntax = header.file_meta.get("TransferSyntaxUID")
    if syntax is not None and not syntax.is_private and syntax.is_encapsulated and file.read(4) == PIXEL_DATA:
        file.seek(8, SEEK_CUR)  # its representation and length
        offsets = tuple(header[name].value for name in OFFSETS) if all(name in header for name in OFFSETS) else None
        encoded = pydicom.encaps.get_frame(file, frames // 2, number_of_frames=frames, extended_offsets=offsets)
        _check_frame(encoded, syntax, header)
    return frames // 2


def _check_frame(encoded: bytes, syntax: Any, header: Any) -> None:
    """Refuse a frame that unpacks to another size than the header's: the decoder would follow the frame."""
    from pydicom import uid

    if syntax == uid.RLELossless:
        check_run_lengths(encoded, header.Rows * header.Columns)
        return
    if syntax in uid.JPEG2000TransferSyntaxes:
        found = jpeg2000_size(encoded)
    elif syntax in uid.JPEGTransferSyntaxes or syntax in uid.JPEGLSTransferSyntaxes:
        found = jpeg_size(encoded)
        check_scans(encoded, found[0] * found[1])
    else:
        return  # pydicom has no decoder for it
    expected = (header.Columns, header.Rows, header.get("SamplesPerPixel", 1))
    if found != expected:
        sizes = [f"{width} x {height} pixels of {samples}" for width, height, samples in (found, expected)]
        raise UnreadableImageError(f"its compressed image has {sizes[0]} samples, though the header says {sizes[1]}")


def _picture(values: np.ndarray, header: Any) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, header)
        return Image.fromarray(_eight_bits(values, 8 * values.itemsize))
    if values.ndim == 3:
        return Image.fromarray(_eight_bits(values, header.BitsStored))
    if not kind.startswith("MONOCHROME"):
        raise UnreadableImageError(f"photometric interpretation {kind} is none of MONOCHROME, RGB, YBR, PALETTE")
    return _monochrome(values, header, inverted=kind == "MONOCHROME1")


def _monochrome(stored: np.ndarray, header: Any, inverted: bool) -> Image.Image:
    from pydicom.pixels import apply_voi_lut

    if header.get("VOILUTSequence"):
        low, high = 0, 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif header.get("WindowWidth") is not None and header.get("WindowCenter") is not None:
        # The darkest and the brightest value that the window can give.
        low, high = apply_voi_lut(np.array([-1e12, 1e12]), header)
    elif stored.dtype == np.uint8 and header.BitsStored == 8:
        return Image.fromarray(255 - stored if inverted else stored)
    else:
        # Nothing says how bright to show it: the rule for deep images of any format decides.
        values = stored.astype(np.int32)
        values -= min(int(values.min()), 0)
        if inverted and values.max() < 2 ** (int(header.BitsStored) - 2):  # fewer bits are used than the file says
            return Image.fromarray(255 - scale_deep(values))
        return Image.fromarray(
            np.subtract(2 ** int(header.BitsStored) - 1, values, out=values) if inverted else values
        )
    shown = apply_in_row_chunks(stored, lambda strip: _windowed(strip, header, low, high, inverted))
    if np.ptp(shown) < FEW_LEVELS or np.mean(shown == 255) > MOST_WHITE:  # perhaps the window of another depth
        plain = scale_deep(stored)
        plain = 255 - plain if inverted else plain
        shown = plain if np.ptp(plain) > MANY_LEVELS and np.mean(plain == 255) <= MOST_WHITE else shown
    return Image.fromarray(shown)


def _windowed(stored: np.ndarray, header: Any, low: float, high: float, inverted: bool) -> np.ndarray:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    values = apply_voi_lut(apply_modality_lut(stored, header), header)
    shares = ((values.astype(np.float64) - low) / max(high - low, 1e-12)).clip(0, 1)
    return np.rint(255 * (1 - shares if inverted else shares)).astype(np.uint8)


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    if bits > 8 and values.max() < 2 ** (bits - 2):  # fewer bits are used than the file says
        return scale_deep(values)
    return values.astype(np.uint8) if bits <= 8 else np.right_shift(values, bits - 8).astype(np.uint8)


def jpeg_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components in the first frame header of a JPEG or JPEG-LS codestream."""
    try:
        if frame[:2] != b"\xff\xd8":
            raise UnreadableImageError("its frame does not begin as a JPEG does")
        position = 2
        while frame[position] == 0xFF:
            kind = frame[position + 1]
            if kind in FRAMES:
                height, width, components = unpack_from(">HHB", frame, position + 5)
                return width, height, components
            if kind == 0xFF:
                position += 1
            elif kind in ALONE:
                position += 2
            elif kind >= 0xC0 and kind not in (0xD9, 0xDA):
                position += 2 + unpack_from(">H", frame, position + 2)[0]
            else:
                break
    except (IndexError, StructError):
        pass
    raise UnreadableImageError("its JPEG frame has no header that tells its size")


def jpeg2000_size(frame: bytes) -> tuple[int, int, int]:
    """Width, height and components in the header (SIZ) of a JPEG 2000 codestream, bare or in the boxes of a JP2."""
    try:
        position = _codestream(frame) if frame.startswith(JP2_BOXES) else 0
        if frame[position : position + 4] == b"\xff\x4f\xff\x51":
            right, bottom, left, top = unpack_from(">4I", frame, position + 8)
            return right - left, bottom - top, unpack_from(">H", frame, position + 40)[0]
    except StructError:
        pass
    raise UnreadableImageError("its JPEG 2000 frame has no header that tells its size")


def check_run_lengths(frame: bytes, pixels: int) -> None:
    """Refuse RLE of which a segment unpacks to more than `PADDING` times its pixels."""
    if len(frame) < 64:
        raise UnreadableImageError("its RLE frame has no header")
    count, *offsets = unpack("<16I", frame[:64])
    ends = [*offsets[1 : min(count, 15)], len(frame)]
    for start, end in zip(offsets, ends, strict=False):
        segment, most = memoryview(frame)[start:end], PADDING * pixels
        # Some codes give no pixel, and would be counted without an end.
        if len(segment) > 2 * most + 64 or _unpacked(segment, most) > most:
            raise UnreadableImageError(
                f"its RLE frame unpacks to more than the {pixels:,} pixels that its header says"
            )


def _codestream(frame: bytes) -> int:
    """Position of the codestream in the boxes of a JP2 file."""
    position = 0
    while True:
        length, kind = unpack_from(">I4s", frame, position)
        start = position + (16 if length == 1 else 8)
        if kind == b"jp2c":
            return start
        length = unpack_from(">Q", frame, position + 8)[0] if length == 1 else length
        if length < start - position:
            raise UnreadableImageError("its JPEG 2000 frame holds a box without an end")
        position += length


def _unpacked(segment: memoryview, limit: int) -> int:
    """Bytes that a segment of run lengths unpacks to; counting stops beyond `limit`."""
    total = position = 0
    while position < len(segment) and total <= limit:
        header = segment[position]
        if header < 128:
            total += header + 1
            position += header + 2
        elif header > 128:
            total += 257 - header
            position += 2
        else:
            position += 1
    return total
