"""Uploads: files and zips that a browser sent, on disk until they are read and no longer."""

import atexit
import os
import secrets
import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import RetFoundError, join_names
from ..images.dicom import MAGIC, PREAMBLE, is_dicom
from ..images.reading import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Limits:
    """Largest upload (bytes, each file), largest image (pixels) and most images of a batch."""

    upload_bytes: int = 200 * 2**20
    pixels: int = 100_000_000
    images: int = 5000


HEAD = PREAMBLE + len(MAGIC)
INDEX = "DICOMDIR"  # DICOM too, with the medium's table of contents and no image
ACCEPTED = f"{', '.join(IMAGE_SUFFIXES)}, or DICOM of any name"


def is_image_name(name: str) -> bool:
    return name.lower().endswith(IMAGE_SUFFIXES)


def is_scan(name: str, head: bytes) -> bool:
    """Whether a file of which `head` is the start (`HEAD` bytes) is DICOM that may hold an image."""
    return is_dicom(head) and PurePosixPath(name).name.upper() != INDEX


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
            rest = f"; passed over: {join_names(self.passed_over)}" if self.passed_over else ""
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


FOLDER = "GRADIO_TEMP_DIR"
ARRIVALS = "arrivals"


@dataclass(frozen=True)
class Upload:
    """One file that waits to be read.

    Attributes:
        path: where it lies, in a folder of its own.
        name: as the browser called it; never used as a path.
    """

    path: Path
    name: str

    def take(self) -> bytes:
        """The content; the file is gone afterwards."""
        try:
            return self.path.read_bytes()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the file and its folder, if they are still there.

        Raises nothing: what cannot be removed now goes with the folder that holds it.
        """
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # stays where another file lies in it


def private_folder() -> Path:
    """A folder that this user alone may read; removed when the process ends.

    Gradio puts uploads into one within it. Call it before gradio is imported: gradio reads the place once.
    """
    folder = Path(tempfile.mkdtemp(prefix="retfound-app-"))
    os.environ[FOLDER] = str(folder / ARRIVALS)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@contextmanager
def claimed(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    """The uploads beside gradio's folder, where it sweeps nothing; whatever is left of them at the end is removed.

    Gradio removes what lies in its own folder for some minutes, though a batch may wait or run for longer. An upload
    that is gone by now keeps its place in the list; reading it raises FileNotFoundError.
    """
    from gradio.utils import get_upload_folder

    folder = Path(tempfile.mkdtemp(prefix="batch-", dir=Path(get_upload_folder()).parent))
    try:
        yield [_moved(upload, folder / str(number)) for number, upload in enumerate(uploads)]
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        for upload in uploads:
            upload.discard()


def _moved(upload: Upload, path: Path) -> Upload:
    with suppress(OSError):
        shutil.move(upload.path, path)
        upload.discard()
        return replace(upload, path=path)
    return upload


def place_uploads_apart() -> None:
    """Give every upload a place of its own, which nobody can guess.

    Gradio names the place after the content, so that two users' equal files would share one, and the first to be
    answered would remove the other's.
    """
    from gradio import route_utils

    shared = route_utils.GradioUploadFile
    if shared.__name__ == "UploadApart":
        return

    class UploadApart(shared):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.sha.update(secrets.token_bytes(32))

    route_utils.GradioUploadFile = UploadApart


def drop_zone(**options: Any) -> Any:
    """A gradio `File` that hands its function a list of `Upload`s; options as there.

    Its methods are replaced on the object: a class of our own would make gradio write a stub file beside this one.
    """
    import gradio

    zone = gradio.File(**options)
    zone.preprocess = _as_uploads
    zone.async_move_resource_to_block_cache = _stay
    return zone


def _as_uploads(payload: Any) -> list[Upload]:
    """Gradio has checked by now that the paths lie in its folder of uploads."""
    files = [] if payload is None else getattr(payload, "root", [payload])
    return [Upload(Path(file.path), file.orig_name or Path(file.path).name) for file in files]


async def _stay(path: str | Path | None) -> str | None:
    """The place of a file, without the copy that gradio would make, and without fetching an address."""
    if path is not None and "://" in str(path):
        from gradio import Error

        raise Error("Addresses are not fetched; upload the file itself.")
    return None if path is None else str(path)


Contents = Iterator[tuple[str, bytes | OSError]]


def images_among(uploads: Sequence[Upload]) -> tuple[list[Upload], list[str]]:
    """What of a folder is an image, in order, and the names of the rest (notes, files of the system), removed."""
    images, passed_over = [], []
    for upload in sorted(uploads, key=lambda upload: upload.name):
        if is_image_name(upload.name) or _is_scan(upload):
            images.append(upload)
        else:
            passed_over.append(upload.name)
            upload.discard()
    return images, passed_over


def count(upload: Upload, limits: Limits) -> int:
    """Images in an upload; one that is gone counts as one that cannot be read.

    Raises:
        RetFoundError: a zip that is refused.
    """
    if not is_archive(upload.name):
        return 1
    try:
        with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
            return len(archive)
    except OSError:
        return 1


def contents(uploads: Sequence[Upload], limits: Limits, passed_over: list[str]) -> Contents:
    """Name of every image with its content, or the reason why there is none; an upload is removed once it is read.

    Args:
        passed_over: gains the names of what the zips hold beside images.
    """
    for upload in uploads:
        try:
            if is_archive(upload.name):
                with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
                    passed_over += archive.passed_over
                    yield from archive
            else:
                yield upload.name, upload.take()
        except OSError as error:
            yield upload.name, error
        finally:
            upload.discard()


def unique_names(contents: Contents, renamed: list[tuple[str, str]]) -> Contents:
    """The same with names that are unique, lest rows of the table share an id; browsers send files without folders."""
    given: set[str] = set()
    for name, content in contents:
        unique, number = name, 1
        while unique in given:
            number += 1
            unique = f"{name} ({number})"
        if unique != name:
            renamed.append((unique, f"an image before it is called {name} too; a zip keeps the folders"))
        given.add(unique)
        yield unique, content


def _is_scan(upload: Upload) -> bool:
    try:
        with open(upload.path, "rb") as file:
            return is_scan(upload.name, file.read(HEAD))
    except OSError:
        return False


def _of_archives(limits: Limits) -> ArchiveLimits:
    return ArchiveLimits(images=limits.images, bytes_each=limits.upload_bytes)
