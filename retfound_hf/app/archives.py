"""The images of an uploaded zip, one at a time in memory; nothing of it is written to disk."""

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import BinaryIO

from ..data.checks import listed
from ..runs.errors import RetFoundError
from .kinds import ACCEPTED, HEAD, is_image_name, is_scan

# Deflate reaches 1,000 on zeros; photographs stay below 2, empty scans below 20.
MAX_RATIO = 100
MAX_ENTRIES = 100_000
UNREADABLE = (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, RuntimeError, ValueError, zlib.error)


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
        for entry in self.zip.infolist():
            self._check(entry)
        self.entries: list[zipfile.ZipInfo] = []
        self.passed_over: list[str] = []
        for entry in self.zip.infolist():
            if self._is_image(entry):
                self.entries.append(entry)
            elif not entry.is_dir() and not _is_hidden(entry):
                self.passed_over.append(entry.filename)
        if not self.entries:
            rest = f"; passed over: {listed(self.passed_over)}" if self.passed_over else ""
            raise RetFoundError(f"the zip holds no image; accepted: {ACCEPTED}{rest}")
        if len(self.entries) > limits.images:
            raise RetFoundError(f"the zip holds {len(self.entries):,} images; at most {limits.images:,} are accepted")
        if sum(entry.file_size for entry in self.entries) > limits.bytes_all:
            raise RetFoundError(f"the zip unpacks to more than {_size(limits.bytes_all)}; send it in parts")

    def _check(self, entry: zipfile.ZipInfo) -> None:
        path = PurePosixPath(entry.filename.replace("\\", "/"))
        if path.is_absolute() or ".." in path.parts or "".join(path.parts[:1]).endswith(":"):
            raise RetFoundError(f"the zip holds the path {entry.filename!r}, which leads out of it; pack it anew")
        if entry.flag_bits & 0x1:
            raise RetFoundError("the zip is encrypted; send it without a password")
        if entry.file_size > self.limits.bytes_each:
            raise RetFoundError(f"{entry.filename} unpacks to more than {_size(self.limits.bytes_each)}")
        if entry.file_size > 2**20 and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
            raise RetFoundError(f"{entry.filename} is packed more than {MAX_RATIO} times, as only zip bombs are")

    def _is_image(self, entry: zipfile.ZipInfo) -> bool:
        if entry.is_dir() or _is_hidden(entry):
            return False
        if is_image_name(entry.filename):
            return True
        try:
            with self.zip.open(entry) as file:
                return is_scan(entry.filename, file.read(HEAD))
        except UNREADABLE:
            return False

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
            except UNREADABLE:
                yield entry.filename, b""

    def close(self) -> None:
        self.zip.close()


def _is_hidden(entry: zipfile.ZipInfo) -> bool:
    parts = PurePosixPath(entry.filename).parts
    return not parts or any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in parts)


def _size(count: int) -> str:
    return f"{count / 2**30:.0f} GB" if count >= 2**30 else f"{count / 2**20:.0f} MB"
