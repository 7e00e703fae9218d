"""The image in a DICOM file, and nothing else of it: no name, number or date of a patient is read or kept."""

from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..runs.errors import missing_extra

DICOM_SUFFIXES = (".dcm", ".dicom")
PREAMBLE, MAGIC = 128, b"DICM"
# What turns stored values into a picture, beside what pydicom takes along by itself.
DISPLAY_TAGS = (
    "RescaleSlope", "RescaleIntercept", "ModalityLUTSequence", "WindowCenter", "WindowWidth", "VOILUTFunction",
    "VOILUTSequence", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableDescriptor",
    "BluePaletteColorLookupTableDescriptor", "RedPaletteColorLookupTableData", "GreenPaletteColorLookupTableData",
    "BluePaletteColorLookupTableData",
)  # fmt: skip


class DicomError(ValueError):
    """A DICOM file without an image that can be shown; the message is the reason."""


def is_dicom(source: str | Path | bytes) -> bool:
    """Whether a file, or the bytes of one, has the mark of DICOM behind its preamble; its name is not looked at."""
    if isinstance(source, bytes):
        return source[PREAMBLE : PREAMBLE + len(MAGIC)] == MAGIC
    with open(source, "rb") as file:
        return is_dicom(file.read(PREAMBLE + len(MAGIC)))


def read_dicom(source: str | Path | bytes, max_pixels: int | None = None) -> Image.Image:
    """Read one image; of several frames the central one, as RETFound takes the central B-scan of an OCT volume.

    Rescaling, the window or lookup table, and palettes are applied as the file says; MONOCHROME1 is inverted and YBR
    becomes RGB. What is burned into the pixels stays.

    Args:
        max_pixels: refuse larger images before anything is decoded.

    Returns:
        Mode L or RGB where 8 bits are stored or the file says how to show them; otherwise a deep mode, for
        `reading.to_rgb`.

    Raises:
        RetFoundError: pydicom is not installed.
        DicomError: no image in the file, or one that is compressed in an unknown way or too large.
    """
    try:
        import pydicom
        from pydicom.pixels import pixel_array
    except ImportError as error:
        raise missing_extra("pydicom", "dicom") from error

    def file() -> Any:
        return BytesIO(source) if isinstance(source, bytes) else str(source)

    size = pydicom.dcmread(file(), stop_before_pixels=True, specific_tags=["Rows", "Columns", "NumberOfFrames"])
    if "Rows" not in size or "Columns" not in size:
        raise DicomError("this DICOM file holds no image (a report or a document, perhaps)")
    if max_pixels is not None and size.Rows * size.Columns > max_pixels:
        raise DicomError(f"it has {size.Columns} x {size.Rows} pixels, more than the {max_pixels:,} allowed")
    header = pydicom.Dataset()
    tags = [pydicom.tag.Tag(name) for name in DISPLAY_TAGS]
    try:
        frame = int(size.get("NumberOfFrames") or 1) // 2
        values = pixel_array(file(), ds_out=header, specific_tags=tags, index=frame)
    except (AttributeError, RuntimeError, NotImplementedError) as error:
        raise DicomError(f"its image cannot be decoded: {' '.join(str(error).split())}") from error
    return _picture(values, header)


def _picture(values: np.ndarray, header: Any) -> Image.Image:
    from pydicom.pixels import apply_color_lut

    kind = header.PhotometricInterpretation
    if kind == "PALETTE COLOR":
        values = apply_color_lut(values, header)
        return Image.fromarray(_eight_bits(values, 8 * values.itemsize))
    if values.ndim == 3:
        return Image.fromarray(_eight_bits(values, header.BitsStored))
    if not kind.startswith("MONOCHROME"):
        raise DicomError(
            f"its photometric interpretation {kind} is not known; accepted: MONOCHROME, RGB, YBR, PALETTE"
        )
    return _monochrome(values, header, inverted=kind == "MONOCHROME1")


def _monochrome(values: np.ndarray, header: Any, inverted: bool) -> Image.Image:
    from pydicom.pixels import apply_modality_lut, apply_voi_lut

    stored = values
    values = apply_modality_lut(values, header)
    if header.get("VOILUTSequence"):
        values, low, high = apply_voi_lut(values, header), 0, 2 ** int(header.VOILUTSequence[0].LUTDescriptor[2]) - 1
    elif header.get("WindowWidth") is not None and header.get("WindowCenter") is not None:
        # The darkest and the brightest value that the window can give.
        low, high = apply_voi_lut(np.array([-1e12, 1e12]), header)
        values = apply_voi_lut(values, header)
    elif stored.dtype == np.uint8 and header.BitsStored == 8:
        return Image.fromarray(255 - stored if inverted else stored)
    else:
        # Nothing says how bright to show it: the rule for deep images of any format decides.
        values = stored.astype(np.int32) - min(int(stored.min()), 0)
        return Image.fromarray(2 ** int(header.BitsStored) - 1 - values if inverted else values)
    shares = ((values.astype(np.float64) - low) / max(high - low, 1e-12)).clip(0, 1)
    return Image.fromarray(np.rint(255 * (1 - shares if inverted else shares)).astype(np.uint8))


def _eight_bits(values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(np.uint8) if bits <= 8 else (values.astype(np.uint32) >> (bits - 8)).astype(np.uint8)
