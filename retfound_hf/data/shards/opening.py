"""SOURCE of the command: which kind of source a name stands for."""

from collections.abc import Sequence
from itertools import chain
from pathlib import Path

from ...runs.errors import RetFoundError
from ..tables import TABLE_SUFFIXES, holds_images
from .items import ACCEPTED, Source

SAVED = ("dataset_dict.json", "state.json")


def open_source(
    source: str, *, split: str | None = None, image_column: str = "image", keep_columns: Sequence[str] = ()
) -> Source:
    """The source that `source` names: a folder tree of images, a table of paths, or what `datasets` reads.

    Args:
        split: of a data set; all of its splits, one after the other, by default.
        image_column: of a table or a data set.
        keep_columns: columns of a table or a data set that are carried along.

    Raises:
        RetFoundError: nothing there, no image in it, or an option that this kind of source does not have.
    """
    for name in keep_columns:
        if name in ("image", "id", "hash", image_column):
            raise RetFoundError(f"--keep_columns {name}: the shards have a column of this name anyway; leave it out")
    path = Path(source)
    if path.is_dir() and not _is_stored(path, image_column):
        from .files import FolderSource

        if keep_columns or split:
            option = "--keep_columns" if keep_columns else "--split"
            raise RetFoundError(f"{option} does not apply to {source}, a folder of image files; give a table of them")
        return FolderSource(path)
    if path.is_file() and not holds_images(path, image_column):
        from .files import TableSource

        if path.suffix.lower() not in TABLE_SUFFIXES:
            raise RetFoundError(f"{source} is no table ({', '.join(TABLE_SUFFIXES)}); give {ACCEPTED}")
        if split:
            raise RetFoundError(f"--split does not apply to {source}, a table; keep the rows that you want in it")
        return TableSource(path, image_column, keep_columns)
    if not path.exists() and (path.is_absolute() or path.suffix.lower() in TABLE_SUFFIXES):
        raise RetFoundError(f"{source} does not exist; give {ACCEPTED}")
    from .stored import StoredSource

    return StoredSource(source, split, image_column, keep_columns)


def _is_stored(folder: Path, image_column: str) -> bool:
    if any((folder / name).is_file() for name in SAVED):
        return True
    shards = chain(folder.glob("*.parquet"), folder.glob("*/*.parquet"))
    return any(holds_images(path, image_column) for path in shards)
