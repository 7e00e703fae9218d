"""Files that visitors send: limits, zips, removal once they are read, and what gradio would keep of them."""

import atexit
import itertools
import os
import re
import secrets
import shutil
import struct
import tempfile
import threading
import time
import unicodedata
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from ..errors import BadDataError, join_names
from ..images.reading import IMAGE_SUFFIXES, is_image

KEPT_SECONDS = 900  # a visitor's last image, in memory
ACCEPTED = f"{', '.join(IMAGE_SUFFIXES)}, or DICOM of any name"
# Deflate reaches 1,000 on zeros; photographs stay below 2, empty scans below 20.
MAX_RATIO = 100
MAX_ENTRIES = 100_000
UTF8_NAME, UNICODE_PATH = 0x800, 0x7075  # flag and extra field of a zip's entry
# Code pages in which zips of Windows hold names without saying so: Chinese, Japanese and Korean ones with a codec and
# the common characters in it; then those of one byte, of which letters are counted.
WIDE_PAGES = {
    "gbk": ("gb2312", re.compile(rb"[\xb0-\xd7].", re.S)), "big5": ("big5", re.compile(rb"[\xa4-\xc6].", re.S)),
    "cp949": ("euc_kr", re.compile(rb"[\xb0-\xc8].", re.S)),
    "cp932": ("shift_jis", re.compile(rb"\x82[\x9f-\xf1]|\x83[\x40-\x96]|[\x88-\x98].", re.S)),
}  # fmt: skip
NARROW_PAGES = ("cp850", "cp1252", "cp866", "cp1251", "cp737", "cp862", "cp437")
# Left, right and eye, which tell between pages that give common characters alike.
EYE_WORDS = re.compile("[左右]|[眼目]|왼|오른|[좌우]안|눈|лев|прав|глаз")


@dataclass(frozen=True)
class Limits:
    """Largest uploads."""

    upload_bytes: int = 200 * 2**20  # of a file, also of one in a zip when unpacked
    pixels: int = 100_000_000  # of an image
    images: int = 5000  # of a batch
    unpacked_bytes: int = 20 * 2**30  # of all images in a zip together


@dataclass(frozen=True)
class Upload:
    """File that was sent and is not read yet."""

    path: Path  # in a folder of its own
    name: str  # as the browser called it; never used as a path

    def take(self) -> bytes:
        """The content; the file is removed."""
        try:
            return self.path.read_bytes()
        finally:
            self.discard()

    def discard(self) -> None:
        """Remove the file and its folder, if they are still there; never raises."""
        with suppress(OSError):
            self.path.unlink(missing_ok=True)
            self.path.parent.rmdir()  # fails where another file lies in it


class Archive:
    """Images of a zip, which is checked by its table of contents before anything is unpacked.

    Args:
        file: path or open file of the zip.
        limits: for its images.

    Raises:
        BadDataError: not a zip, encrypted, a path that leads out of it, too much, or a zip bomb; `rows`: the entry.
        OSError: the file cannot be opened.
    """

    def __init__(self, file: str | Path | BinaryIO, limits: Limits):
        self.file, self.entries, self.passed_over = file, [], []
        try:
            archive = zipfile.ZipFile(file)
        except NotImplementedError as error:  # of a later version of the format
            raise BadDataError(f"the zip cannot be read ({error}); pack it again with another program") from error
        except (zipfile.BadZipFile, ValueError) as error:
            raise BadDataError("the zip cannot be read: it is damaged, or not a zip") from error
        with archive:
            if len(archive.filelist) > MAX_ENTRIES:
                raise BadDataError(f"the zip has more than {MAX_ENTRIES:,} entries; send it in parts")
            for entry in archive.filelist:
                _check_entry(entry, limits)
            self.names = names = entry_names(archive.filelist)
            for entry in archive.filelist:
                parts = PurePosixPath(names[entry.filename]).parts
                if not parts or entry.is_dir() or any(part.startswith((".", "__MACOSX")) for part in parts):
                    continue
                if is_image(entry.filename, partial(archive.open, entry)):
                    self.entries.append(entry)
                else:
                    self.passed_over.append(names[entry.filename])
        if sum(entry.file_size for entry in self.entries) > limits.unpacked_bytes:
            raise BadDataError(
                f"the zip unpacks to more than {limits.unpacked_bytes / 2**20:,.0f} MB; send it in parts"
            )

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[tuple[str, bytes]]:
        """Path within the zip and content of each image, by path; empty where it cannot be unpacked."""
        with zipfile.ZipFile(self.file) as archive:
            for entry in sorted(self.entries, key=lambda entry: self.names[entry.filename]):
                content = b""
                with suppress(Exception), archive.open(entry) as file:  # zipfile fails with errors of every type
                    content = file.read(entry.file_size + 1)  # bounded, since the table of contents may lie
                yield self.names[entry.filename], content if len(content) == entry.file_size else b""


def entry_names(entries: Sequence[zipfile.ZipInfo]) -> dict[str, str]:
    """Names of a zip's entries as they were meant, by those that `zipfile` gives.

    A name is UTF-8 where the entry or its bytes say so, else in the code page that makes the most sense of all names
    together: common characters, or letters of one script in a row.
    """
    stated = {entry.filename: _unicode_path(entry) for entry in entries}
    meant = {name: path or name for name, path in stated.items()}
    raw = {
        entry.filename: entry.filename.encode("cp437")
        for entry in entries
        if not entry.flag_bits & UTF8_NAME and not entry.filename.isascii() and not stated[entry.filename]
    }
    if raw:
        everything = b"/".join(raw.values())
        texts = {page: _decoded(everything, page) for page in ("utf-8", *WIDE_PAGES, *NARROW_PAGES)}
        best = max(filter(texts.get, texts), key=lambda page: _plausibility(texts[page], page))
        meant |= {name: content.decode(best) for name, content in raw.items()}
    return meant


def _unicode_path(entry: zipfile.ZipInfo) -> str:
    """Name in the extra field that Info-ZIP writes beside one in a code page, else empty."""
    extra = entry.extra
    while len(extra) >= 4:
        kind, size = struct.unpack("<HH", extra[:4])
        if kind == UNICODE_PATH and size > 5:
            return _decoded(extra[9 : 4 + size], "utf-8")
        extra = extra[4 + size :]
    return ""


def _decoded(content: bytes, page: str) -> str:
    try:
        return content.decode(page)
    except UnicodeDecodeError:
        return ""


def _plausibility(text: str, page: str) -> float:
    """Share of the characters beyond ASCII that make sense, and more for words of the eye."""
    if page == "utf-8":
        return 2.0  # hardly anything else is valid UTF-8
    codec, common = WIDE_PAGES.get(page, ("", re.compile(b"")))
    good = 0
    beyond = [place for place, letter in enumerate(text) if not letter.isascii()]
    for place in beyond:
        letter, before, after = text[place], text[place - 1 : place], text[place + 1 : place + 2]
        if codec:
            good += common.fullmatch(letter.encode(codec, "replace")) is not None
        else:
            near = [one for one in (before, after) if one.isalpha()]
            scripts = {unicodedata.name(one).split()[0] for one in (letter, *near) if one.isalpha()}
            rare = scripts == {"LATIN"} and near and not any(map(str.isascii, near))  # accents in a row
            good += letter.isalpha() and len(scripts) == 1 and not rare and not (letter.isupper() and before.islower())
    return good / max(len(beyond), 1) + 0.5 * bool(EYE_WORDS.search(text))


def _check_entry(entry: zipfile.ZipInfo, limits: Limits) -> None:
    name, reason = entry.filename, ""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "".join(path.parts[:1]).endswith(":"):
        reason = "has a path that leads out of the zip"
    elif entry.flag_bits & 0x1:
        reason = "is encrypted; send the zip without a password"
    elif entry.file_size > limits.upload_bytes:
        reason = f"unpacks to more than {limits.upload_bytes / 2**20:,.0f} MB"
    elif entry.file_size > 2**20 and entry.file_size > MAX_RATIO * max(entry.compress_size, 1):
        reason = f"is compressed more than {MAX_RATIO} times, as only zip bombs are"
    if reason:
        raise BadDataError(f"{name} {reason}", rows=[name])


class Batch:
    """Images of several uploads, read and removed one after the other.

    Args:
        files: images and zips.
        folder: files of a folder; those that are not images are removed, and named in `passed_over`.
        limits: for zips and for the number of images.

    Attributes:
        renamed: (new name, reason) of images whose name has occurred before; filled while iterating.

    Raises:
        BadDataError: no image, too many, or a zip that is refused.
    """

    def __init__(self, files: Sequence[Upload], folder: Sequence[Upload], limits: Limits):
        self.renamed: list[tuple[str, str]] = []
        self.passed_over: list[str] = []
        self._sources: list[tuple[Upload, Archive | None]] = []
        for upload in files:
            archive = None
            with suppress(OSError):  # a file that is gone is reported in its turn
                archive = Archive(upload.path, limits) if upload.name.lower().endswith(".zip") else None
            self._sources.append((upload, archive))
            self.passed_over += [] if archive is None else archive.passed_over
        for upload in sorted(folder, key=lambda upload: upload.name):
            if is_image(upload.name, partial(upload.path.open, "rb")):
                self._sources.append((upload, None))
            else:
                self.passed_over.append(upload.name)
                upload.discard()
        if not len(self):
            if not files and not folder:
                raise BadDataError("choose a zip or some images first")
            names = self.passed_over or [upload.name for upload in files]
            raise BadDataError(f"no image in {join_names(names)}; accepted: {ACCEPTED}", rows=names)
        if len(self) > limits.images:
            raise BadDataError(f"{len(self):,} images; at most {limits.images:,} are accepted at once")

    def __len__(self) -> int:
        return sum(1 if archive is None else len(archive) for _, archive in self._sources)

    def __iter__(self) -> Iterator[tuple[str, bytes | OSError]]:
        """Name (unique) and content of each image; the error where the disk does not give it."""
        given: set[str] = set()
        for name, content in self._contents():
            names = itertools.chain([name], (f"{name} ({number})" for number in itertools.count(2)))
            unique = next(candidate for candidate in names if candidate not in given)
            if unique != name:
                self.renamed.append((unique, f"another image is called {name}; a zip keeps the folders"))
            given.add(unique)
            yield unique, content

    def _contents(self) -> Iterator[tuple[str, bytes | OSError]]:
        for upload, archive in self._sources:
            try:
                if archive is None:
                    yield upload.name, upload.take()
                else:
                    yield from archive
            except OSError as error:
                yield upload.name, error
            finally:
                upload.discard()


def private_folder() -> Path:
    """Folder that only this user can read, in which gradio puts uploads; removed when the process ends.

    Those of processes that were killed are removed: a process that runs has its folder locked.
    """
    for left in Path(tempfile.gettempdir()).glob("retfound-app-*"):
        if (handle := _lock(left)) is not None:
            shutil.rmtree(left, ignore_errors=True)
            os.close(handle)
    folder = Path(tempfile.mkdtemp(prefix="retfound-app-"))
    _lock(folder)  # as long as this process lives
    os.environ["GRADIO_TEMP_DIR"] = str(folder / "arrivals")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def _lock(folder: Path) -> int | None:
    """Handle that locks the folder until it is closed; None where another process has it, or there are no locks."""
    try:
        import fcntl

        handle = os.open(folder, os.O_RDONLY)
    except (ImportError, OSError):
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        return None
    return handle


def sweep(every: float, after: float) -> None:
    """Start a thread that looks every so many seconds, and removes uploads that have not grown for `after` seconds.

    Gradio sweeps only what it has answered for, and not the part of an upload that a visitor broke off.
    """
    folder = Path(os.environ["GRADIO_TEMP_DIR"])

    def run() -> None:
        while folder.parent.exists():
            paths: list[Path] = []
            with suppress(OSError):
                paths = list(folder.rglob("*"))
            for path in paths:
                with suppress(OSError):
                    if path.stat().st_mtime < time.time() - after:
                        path.rmdir() if path.is_dir() else path.unlink()
            time.sleep(every)

    threading.Thread(target=run, name="sweep of uploads", daemon=True).start()


@contextmanager
def claimed(uploads: Sequence[Upload]) -> Iterator[list[Upload]]:
    """The uploads, moved out of the folder that gradio sweeps while a batch waits or runs; removed at the end.

    An upload that is gone by now stays in the list; reading it raises FileNotFoundError.
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


def patch_gradio() -> None:
    """Replace two classes of gradio 6 that have no option for what a private page needs.

    `GradioUploadFile` names the place of an upload after its content: equal files of two visitors would share it, and
    the first answer would remove the other's. `SessionState` stores every value shown, photographs too, for deep links
    (the page has none), and the states of a closed page for an hour.
    """
    from gradio import route_utils, state_holder

    if state_holder.SessionState.__name__ == "ForgetfulSession":
        return

    class UploadApart(route_utils.GradioUploadFile):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.sha.update(secrets.token_bytes(32))

    class ForgetfulSession(state_holder.SessionState):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.STATE_TTL_WHEN_CLOSED = KEPT_SECONDS

        def _update_value_in_config(self, key: int, value: Any) -> None:
            pass

    route_utils.GradioUploadFile, state_holder.SessionState = UploadApart, ForgetfulSession


def session_state() -> Any:
    """A gradio `State` that is forgotten `KEPT_SECONDS` after it was set."""
    import gradio

    return gradio.State(None, time_to_live=KEPT_SECONDS)


def drop_zone(**options: Any) -> Any:
    """A gradio `File` that hands `Upload`s to its function without copying them; options as there.

    Its methods are replaced on the object, because gradio writes a stub file beside the module of a subclass.
    """
    import gradio

    async def stay(path: str | Path | None) -> str | None:
        if path is not None and "://" in str(path):
            raise gradio.Error("Addresses are not fetched; upload the file itself.")
        return None if path is None else str(path)

    def as_uploads(payload: Any) -> list[Upload]:
        files = [] if payload is None else getattr(payload, "root", [payload])
        return [Upload(Path(file.path), file.orig_name or Path(file.path).name) for file in files]

    zone = gradio.File(**options)
    zone.preprocess, zone.async_move_resource_to_block_cache = as_uploads, stay
    return zone
