"""Which of many files are images: by name, or as DICOM by content, which hospital media name without a suffix."""

from pathlib import PurePosixPath

from ..images.dicom import MAGIC, PREAMBLE, is_dicom
from ..images.reading import IMAGE_SUFFIXES

HEAD = PREAMBLE + len(MAGIC)
INDEX = "DICOMDIR"  # DICOM too, with the medium's table of contents and no image
ACCEPTED = f"{', '.join(IMAGE_SUFFIXES)}, or DICOM of any name"


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_scan(name: str, head: bytes) -> bool:
    """Whether a file of which `head` is the start (`HEAD` bytes) is DICOM that may hold an image."""
    return is_dicom(head) and PurePosixPath(name).name.upper() != INDEX
