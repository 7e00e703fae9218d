"""Files that a browser sent: on disk from their arrival until they are read, and no moment longer."""

import atexit
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

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
