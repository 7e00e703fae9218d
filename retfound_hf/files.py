"""Atomic outputs, written beside their place and then moved; locks of what is being written; tables as CSV."""

import csv
import errno
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import BadDataError, OutputError, RetFoundError, join_names, one_line

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from filelock import FileLock

logger = logging.getLogger(__name__)

MODEL_FILES = {
    "config.json",
    "model.safetensors",
    "preprocessor_config.json",
    "adapter_config.json",
    "adapter_model.safetensors",
    "operating_points.json",
}
# Errors of a disk that no file can be written to, and those that count where they name a path of the output.
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
REFUSED = (errno.EACCES, errno.EPERM, errno.EIO, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP)
# Messages of numpy and torch on a full disk, which give no other sign of it.
CUT = re.compile("requested and [0-9]+ written|PytorchStreamWriter failed|file write failed|unexpected pos [0-9]+ vs")
# Seconds to wait for a folder: a killed run's loader processes inherit its lock, another may be saving its last steps.
PATIENCE = 20
# Start of a text that a spreadsheet computes, with the apostrophes before it: at the start of a cell, or after what
# may end a cell. A semicolon does where the comma is the decimal sign, quoted or not.
FORMULA = r"(?:^|(?<=[;\t\r\n]))(?='*(?:[^\S\t\r\n]*[=+\-@＝＋－＠]|[\t\r\n]))"
GUARD, GUARDED = re.compile(FORMULA), re.compile(FORMULA.replace("(?='*", "'(?='*"))


@contextmanager
def atomic_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it replaces `path`, on any exception it is removed.

    Raises:
        OutputError: a full or read-only disk, see `output_faults`; the other functions here raise it too.
    """
    path = Path(path)
    with output_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The suffix stays last, because writers such as matplotlib read the format from it.
        handle, name = tempfile.mkstemp(prefix=f".{_short(path.stem)}-", suffix=path.suffix, dir=path.parent)
        os.close(handle)
    partial = Path(name)
    try:
        with output_faults(path):  # while it takes the room that it could not do with
            yield partial
            os.chmod(partial, 0o666 & ~_umask())  # mkstemp makes files that only their owner may read
            os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; on success it becomes `path`, on any exception it is removed.

    Raises:
        OutputError: `path` exists, is not an empty folder, and `overwrite` is false, at the start or at the end.
    """
    path = Path(path).resolve()  # a link keeps pointing at the folder, and `.` gets a name
    refuse_existing(path, overwrite)
    with output_faults(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{_short(path.name)}-", dir=path.parent))
    replaced = partial.with_name(f"{partial.name}-replaced")
    try:
        with output_faults(path):
            yield partial
            os.chmod(partial, 0o777 & ~_umask())
            open_to_all(partial)
            refuse_existing(path, overwrite)
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
    with output_faults(folder):
        folder.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
    try:
        with output_faults(folder):
            yield partial
            open_to_all(partial)
            for stale in MODEL_FILES - {path.name for path in partial.iterdir()}:
                (folder / stale).unlink(missing_ok=True)
            for path in sorted(partial.iterdir(), key=lambda path: (path.name.endswith("config.json"), path.name)):
                if path.is_dir():
                    shutil.rmtree(folder / path.name, ignore_errors=True)
                os.replace(path, folder / path.name)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def output_faults(path: str | Path) -> Iterator[None]:
    """Turn errors of the block into `OutputError` if they come from `path`, a file or folder that cannot be written.

    Libraries report a full disk in their own ways, some without a word of it. So any exception counts if nothing can
    be written to `path` after it.
    """
    try:
        yield
    except RetFoundError:
        raise
    except Exception as error:
        place, reason = _fault(error, Path(os.path.abspath(path)))
        if not reason:
            raise
        raise _unwritable(place, reason) from error


def _fault(error: Exception, path: Path) -> tuple[Path, str]:
    """Path that cannot be written, `path` or another, and the reason; an empty reason for errors of other kinds."""
    named, code = getattr(error, "filename", None), getattr(error, "errno", None)
    named = Path(os.path.abspath(os.fsdecode(named))) if isinstance(named, (str, bytes, os.PathLike)) else path
    if code in FULL or any(os.strerror(full) in str(error) for full in FULL) or CUT.search(str(error)):
        return named, os.strerror(code) if code in FULL else one_line(error)
    if isinstance(error, OSError) and code in REFUSED and named is not path:
        beside = named.parent == path.parent and named.name.startswith(f".{path.stem}")
        if beside or path in (named, *named.parents) or named in path.parents:
            return path if beside else named, os.strerror(code)
    try:
        check_writable(path)
    except OutputError as fault:
        return path, fault.reason
    return path, ""


def check_writable(path: str | Path) -> None:
    """Raise `OutputError` unless a file can be written at or below `path`; a temporary one is written to find out."""
    place = Path(os.path.abspath(path))
    try:
        while not place.exists():
            place = place.parent
        # A file may be replaced; no folder can be made in one.
        place = place.parent if place.is_file() and place == Path(os.path.abspath(path)) else place
        with tempfile.TemporaryFile(dir=place) as file:
            file.write(bytes(4096))
            file.flush()
            os.fsync(file.fileno())  # network disks report it as late as this
    except OSError as error:
        raise _unwritable(path, os.strerror(error.errno) if error.errno else one_line(error)) from error


def _unwritable(path: str | Path, reason: str) -> OutputError:
    full = any(os.strerror(code) in reason for code in FULL[:3])
    fix = "make room there, or choose another place" if full else "choose another place"
    error = OutputError(f"{path} cannot be written ({reason}); {fix}", path=path)
    error.reason = reason
    return error


@contextmanager
def file_lock(path: str | Path) -> Iterator[None]:
    """File lock beside `path`: one process makes it, the others wait and should then look whether it is there."""
    from filelock import Timeout

    lock = _lock_beside(Path(path))
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        logger.warning("waiting for %s, which another run makes%s", path, _holder(lock.lock_file))
        lock.acquire(timeout=-1)
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


@contextmanager
def exclusive_folder(folder: str | Path | None, share: str = "") -> Iterator[None]:
    """Lock of an output folder: one process writes it, however that process ends.

    Args:
        folder: also guarded by `output_faults`; None locks nothing.
        share: name of a part of the folder, where several machines each write their own.

    Raises:
        OutputError: it cannot be written, or another process holds it for longer than `PATIENCE` seconds.
    """
    from filelock import Timeout

    if folder is None:
        yield
        return
    with output_faults(folder):
        refuse_existing(folder, overwrite=True)
        lock = _lock_beside(Path(folder), share)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            raise OutputError(
                f"output folder {folder}: another run writes there{_holder(lock.lock_file)}; wait for its end, stop "
                "it, or choose another folder", path=folder,
            ) from None  # fmt: skip
        except (NotImplementedError, OSError):
            # A network disk without locks, or a folder that may be written within one that may not.
            if not Path(folder).is_dir():
                raise
        try:
            yield
        finally:
            if lock.is_locked:
                Path(lock.lock_file).unlink(missing_ok=True)
                lock.release()


def _lock_beside(path: Path, share: str = "") -> "FileLock":
    """File lock beside `path`, or beside what a link points at."""
    from filelock import FileLock

    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(path.parent / f".{_short(path.name + share.replace('/', '-'))}.lock")


def _holder(lock_file: str) -> str:
    """Holder of a lock, for messages; on disks without locks it is an ordinary file that may outlive its machine."""
    try:
        lines = Path(lock_file).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    # Two lines, or in later versions of filelock one for each fact.
    facts = dict(zip(("pid", "host"), lines, strict=False)) | dict(
        re.findall("^(pid|host)=(.*)$", "\n".join(lines), re.M)
    )
    if facts.keys() < {"pid", "host"}:
        return ""
    who = f"process {facts['pid']} of the machine {facts['host']}"
    return f" (by {lock_file} it is {who}; if either is gone, remove that file)"


def _short(name: str, most: int = 180) -> str:
    """The name, or a digest of one longer than `most` bytes, which leaves room for a prefix and a suffix."""
    encoded = os.fsencode(name)
    return name if len(encoded) <= most else hashlib.blake2b(encoded, digest_size=16).hexdigest()


def open_to_all(folder: Path) -> None:
    """Give the files of a folder ordinary permissions; safetensors makes its own readable by their owner only."""
    for path in folder.iterdir():
        if path.is_file():
            os.chmod(path, 0o666 & ~_umask())


def refuse_existing(path: str | Path, overwrite: bool = False) -> None:
    """Raise unless `path` can be written and is free: absent, an empty folder, or a folder with `overwrite`."""
    check_writable(path)
    path = Path(path)
    if path.exists() and not path.is_dir():
        raise OutputError(f"output folder {path}: a file of this name exists; choose another folder", path=path)
    if path.is_dir() and any(path.iterdir()) and not overwrite:
        raise OutputError(
            f"output folder {path} is not empty; choose another folder or pass `overwrite_output_dir`", path=path
        )


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all. NaN is refused: an undefined number is `None`."""
    with atomic_file(path) as partial:
        partial.write_text(json.dumps(value, indent=2, allow_nan=False) + "\n", encoding="utf-8")


def guard(cell: Any) -> Any:
    """A cell as tables hold it: text that a spreadsheet would compute gets an apostrophe, numbers stay as they are."""
    return GUARD.sub("'", cell) if isinstance(cell, str) else cell


def unguard(cell: Any) -> Any:
    """The cell that `guard` was given."""
    return GUARDED.sub("", cell) if isinstance(cell, str) else cell


def without_formulas(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table with its texts and column names guarded from being computed by a spreadsheet, see `guard`."""
    return _changed(table, guard)


def with_formulas(table: "pd.DataFrame") -> "pd.DataFrame":
    """The table that `without_formulas` was given, read from a file."""
    return _changed(table, unguard)


def _changed(table: "pd.DataFrame", change: Callable[[Any], Any]) -> "pd.DataFrame":
    table = table.rename(columns=change)  # a copy
    for name in table.select_dtypes(exclude=["number", "bool"]).columns.unique():
        cells = table[name].astype(object)
        changed = cells.map(change)
        if not changed.equals(cells):
            table[name] = changed
    return table


def write_table(path: str | Path, table: "pd.DataFrame", **options: Any) -> None:
    """Write a table as CSV, whole or not at all, so that a spreadsheet computes none of its cells.

    Args:
        path: of the file.
        table: its index is left out.
        **options: of `DataFrame.to_csv`, such as `float_format`; by default numbers have all digits.
    """
    table = without_formulas(table)
    texts = table.select_dtypes(exclude=["number", "bool"])
    returns = texts.map(lambda cell: "\r" in str(cell)).any(axis=None)
    with atomic_file(path) as partial:
        table.to_csv(partial, index=False, lineterminator=_line_end(returns), **options)


@contextmanager
def rows_of_csv(path: Path, header: Iterable[str]) -> Iterator[Callable[[Iterable[Any]], None]]:
    """Yield a function that writes one row, for tables that are not held in memory; see `write_table`."""
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:

        def write(row: Iterable[Any]) -> None:
            cells = [guard(cell) for cell in row]
            csv.writer(file, lineterminator=_line_end(any("\r" in str(cell) for cell in cells))).writerow(cells)

        write(header)
        yield write


def _line_end(returns: bool) -> str:
    """End of a line: with a carriage return where a cell holds one, which `csv` otherwise leaves without quotes."""
    return "\r\n" if returns else "\n"


def read_table(path: str | Path, **options: Any) -> "pd.DataFrame":
    """Table that `write_table` wrote; only its empty cells are missing, where any are.

    Args:
        path: of the file.
        **options: of `pandas.read_csv`, such as `dtype`.

    Raises:
        BadDataError: no such file, cut short or damaged.
    """
    import pandas as pd

    try:
        return with_formulas(pd.read_csv(path, keep_default_na=False, **options))
    except Exception as error:  # damaged files give errors of every type
        message = f"{path} cannot be read as a table ({one_line(error)}); bring it back, or make it anew"
        raise BadDataError(message, source=path) from error


def numbers_of(table: "pd.DataFrame", names: Sequence[str], path: str | Path) -> "np.ndarray":
    """Columns of a table that was read from `path`, float64 (rows, columns); `BadDataError` where they hold others."""
    try:
        return table[list(names)].to_numpy("float64")
    except (ValueError, TypeError) as error:
        message = f"{path}: {join_names(names)} must hold numbers ({one_line(error)})"
        raise BadDataError(message, source=path) from error


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table that `write_table` or `rows_of_csv` wrote, all cells as text."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{unguard(name): unguard(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def read_json(path: str | Path, kind: type = dict, absent: Any = None) -> Any:
    """Content of a JSON file.

    Args:
        path: of the file.
        kind: of the content, `dict` or `list`.
        absent: returned where there is no file, unless None.

    Raises:
        BadDataError: no such file, cut short or damaged, or of another kind.
    """
    path = Path(path)
    if absent is not None and not path.exists():
        return absent
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds a {type(content).__name__} in place of a {kind.__name__}")
    except (OSError, ValueError, RecursionError) as error:
        message = f"{path} cannot be read, it may be cut short ({one_line(error)}); bring it back, or make it anew"
        raise BadDataError(message, source=path) from error
    return content


def is_remote(source: str | Path) -> bool:
    """Whether a source is an address such as `s3://bucket/my-shards`."""
    return re.match(r"[a-z][a-z0-9+.-]*://", str(source)) is not None


def identities(folder: str | Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file directly in `folder`; empty where that is not a folder."""
    files = [str(path) for path in sorted(Path(folder).glob("*")) if path.is_file()]
    return [(path, *(file_stamp(path) or (0, 0))) for path in files]


def file_stamp(path: str | Path) -> tuple[int, int] | None:
    """Size and time of change (ns); None where there is no file."""
    try:
        facts = os.stat(path)
    except OSError:
        return None
    return facts.st_size, facts.st_mtime_ns


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
