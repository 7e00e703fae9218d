"""Atomic outputs: files and folders are written beside their place, then moved; locks of what is being written."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputError

if TYPE_CHECKING:
    from filelock import FileLock

MODEL_FILES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "operating_points.json",
}
# Seconds to wait for a folder: a killed run's loader processes inherit its lock, another may be saving its last steps.
PATIENCE = 20


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any exception it is removed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # The suffix stays last, because writers such as matplotlib read the format from it.
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    partial = Path(name)
    try:
        yield partial
        os.chmod(partial, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any exception it is removed.

    Raises:
        OutputError: `path` exists, is not an empty folder, and `overwrite` is false.
    """
    path = Path(path).resolve()  # a link keeps pointing at the folder, and `.` gets a name
    refuse_existing(path, overwrite)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    replaced = partial.with_name(f"{partial.name}-replaced")
    try:
        yield partial
        os.chmod(partial, 0o777 & ~_umask())
        open_to_all(partial)
        if path.exists():
            # Renamed away first: a removal takes long enough to be stopped half-way.
            os.replace(path, replaced)
        os.replace(partial, path)
    finally:
        if replaced.exists() and not path.exists():
            os.replace(replaced, path)
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(replaced, ignore_errors=True)


@contextmanager
def move_into(folder: str | Path) -> Iterator[Path]:
    """Yield a temporary folder inside `folder`; on success its content is moved up, the configuration last.

    A reader that waits for `config.json` never sees it without the weights. Files of an earlier model that the new one
    lacks are removed: an old adapter beside new weights would be taken for the model.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".partial-", dir=folder) as name:
        partial = Path(name)
        yield partial
        open_to_all(partial)
        for stale in MODEL_FILES - {path.name for path in partial.iterdir()}:
            (folder / stale).unlink(missing_ok=True)
        for path in sorted(partial.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name)):
            if path.is_dir():
                shutil.rmtree(folder / path.name, ignore_errors=True)
            os.replace(path, folder / path.name)


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """File lock beside `path`: one process makes it, the others wait and should then look whether it is there."""
    lock = _lock_beside(Path(path))
    with lock:
        try:
            yield
        finally:
            Path(lock.lock_file).unlink(missing_ok=True)


@contextmanager
def exclusive_folder(folder: Path) -> Iterator[None]:
    """Lock of an output folder: one process writes it, however that process ends.

    Raises:
        OutputError: another process holds it for longer than `PATIENCE` seconds.
    """
    from filelock import Timeout

    lock = _lock_beside(folder, PATIENCE)
    try:
        lock.acquire()
    except Timeout:
        raise OutputError(
            f"output folder {folder}: another run writes there; wait for its end, stop it, or choose another folder",
            path=folder,
        ) from None
    except NotImplementedError:  # a network file system without locks
        yield
        return
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _lock_beside(path: Path, timeout: float = -1) -> "FileLock":
    """File lock beside `path`. `timeout` in seconds; negative waits forever."""
    from filelock import FileLock

    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.with_name(f".{path.name}.lock"), timeout=timeout)


def open_to_all(folder: Path) -> None:
    """Give the files of a folder ordinary permissions; safetensors makes its own readable by their owner only."""
    for path in folder.iterdir():
        if path.is_file():
            os.chmod(path, 0o666 & ~_umask())


def refuse_existing(path: str | Path, overwrite: bool = False) -> None:
    """Raise unless `path` is free to be written: absent, an empty folder, or a folder with `overwrite`."""
    path = Path(path)
    if path.is_file():
        raise OutputError(f"output folder {path}: a file of this name exists; choose another folder", path=path)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(
            f"output folder {path} is not empty; choose another folder or pass `overwrite_output_dir`", path=path
        )


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused: an undefined number is `None`."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
