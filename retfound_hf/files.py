"""Atomic outputs, written beside their place and then moved; locks of what is being written; tables as CSV."""

import csv
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import OutputError

if TYPE_CHECKING:
    import pandas as pd
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
# Begin of a text that a spreadsheet computes, at the start of a cell or after what may end one there, with the
# apostrophes before it. A semicolon ends a cell where the comma is the decimal sign, quoted or not.
FORMULA = r"(?:^|(?<=[;\t\r\n]))(?='*(?:[^\S\t\r\n]*[=+\-@＝＋－＠]|[\t\r\n]))"
GUARD, GUARDED = re.compile(FORMULA), re.compile(FORMULA.replace("(?='*", "'(?='*"))


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


def guard(cell: Any) -> Any:
    """A cell as tables hold it: before text that a spreadsheet would compute stands an apostrophe. Numbers stay."""
    return GUARD.sub("'", cell) if isinstance(cell, str) else cell


def unguard(cell: Any) -> Any:
    """The cell that `guard` was given."""
    return GUARDED.sub("", cell) if isinstance(cell, str) else cell


def without_formulas(table: "pd.DataFrame") -> "pd.DataFrame":
    """A table whose texts and names of columns no spreadsheet computes, see `guard`."""
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
    """Write a table as CSV, whole or not at all, which a spreadsheet opens without computing any of it.

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
    """Yield the writer of one row after the other, for a table that memory need not hold; see `write_table`."""
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:

        def write(row: Iterable[Any]) -> None:
            cells = [guard(cell) for cell in row]
            csv.writer(file, lineterminator=_line_end(any("\r" in str(cell) for cell in cells))).writerow(cells)

        write(header)
        yield write


def _line_end(returns: bool) -> str:
    """End of a line. csv quotes a carriage return in a cell, which readers take for an end, only if it ends lines."""
    return "\r\n" if returns else "\n"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Rows of a table that `write_table` or `rows_of_csv` wrote, all cells as text."""
    with open(path, encoding="utf-8", newline="") as file:
        return [{unguard(name): unguard(cell) for name, cell in row.items()} for row in csv.DictReader(file)]


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
