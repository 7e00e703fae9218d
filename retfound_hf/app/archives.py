"""The images of an uploaded zip, one at a time in memory; nothing of it is written to disk."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from ..images.reading import IMAGE_SUFFIXES
from ..runs.errors import RetFoundError

# Deflate reaches 1,000 on zeros; photographs stay below 2, empty scans below 20.
MAX_RATIO = 100
MAX_ENTRIES = 100_000


@dataclass(frozen=True)
class ArchiveLimits:
    """What an archive may hold: images, bytes of one when unpacked, bytes of all."""

    images: int = 5000
    bytes_each: int = 200 * 2**20
    bytes_all: int = 20 * 2**30


def is_archive(name: str) -> bool:
    return name.lower().endswith(".zip")


class Archive:
    """A zip, checked by its table of contents before anything is unpacked.

    Raises:
        RetFoundError: not a zip, encrypted, with a path that leads out of it, too much in it, or packed so tightly
            that it can only be made to fill a memory.
    """

    def __init__(self, file: BinaryIO, limits: ArchiveLimits):
        try:
            self.zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise RetFoundError("the zip cannot be read: it is damaged, or no zip") from error
        self.limits = limits
        if len(self.zip.filelist) > MAX_ENTRIES:
            raise RetFoundError(
                f"the zip has {len(self.zip.filelist):,} entries; at most {MAX_ENTRIES:,} are accepted"
            )
        self.entries = [entry for entry in self.zip.infolist() if _is_image(entry)]
        if not self.entries:
            raise RetFoundError(f"the zip holds no image; accepted: {', '.join(IMAGE_SUFFIXES)}")
        if len(self.entries) > limits.images:
            raise RetFoundError(f"the zip holds {len(self.entries):,} images; at most {limits.images:,} are accepted")
        for entry in self.zip.infolist():
            self._check(entry)
        if sum(entry.file_size for entry in self.entries) > limits.bytes_all:
            raise RetFoundError(f"the zip unpacks to more than {_size(limits.bytes_all)}; send it in parts")

    def _check(self, entry: zipfile.ZipInfo) -> None:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or path.parts[0].endswith(":"):
            raise RetFoundError(f"the zip holds the path {entry.filename!r}, which leads out of it; pack it anew")
        if entry.flag_bits & 0x1:
            raise RetFoundError("the zip is encrypted; send it without a password")
        if entry.file_size > self.limits.bytes_each:
            raise RetFoundError(f"{entry.filename} unpacks to more than {_size(self.limits.bytes_each)}")
        if entry.file_size > 2**20 and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
            raise RetFoundError(f"{entry.filename} is packed more than {MAX_RATIO} times, as only zip bombs are")

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Path within the zip and content of each image, by path; content that cannot be unpacked comes empty."""
        for entry in sorted(self.entries, key=lambda entry: entry.filename):
            try:
                with self.zip.open(entry) as file:
                    # The table of contents may lie about the size; a read that stops cannot be fooled.
                    content = file.read(entry.file_size + 1)
                yield entry.filename, content if len(content) == entry.file_size else b""
            except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError, zlib.error):
                yield entry.filename, b""

    def close(self) -> None:
        self.zip.close()


def _is_image(entry: zipfile.ZipInfo) -> bool:
    path = PurePosixPath(entry.filename)
    is_hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in path.parts)
    return not entry.is_dir() and not is_hidden and path.suffix.lower() in IMAGE_SUFFIXES


def _size(count: int) -> str:
    return f"{count / 2**30:.0f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
