"""Images without labels, in parts: a folder, a table of paths, or parquet shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from ..images.reading import find_images
from ..runs.errors import RetFoundError
from .tables import TABLE_SUFFIXES, holds_images, read_table

ACCEPTED = "a folder of images, a folder of parquet shards, or a CSV or parquet table with a column image"


@dataclass(frozen=True)
class Part:
    """Some images that are worked on together.

    Args:
        name: of the part, unique and fit for a file name.
        identity: what tells whether the part is still the same: paths, sizes and times of change.
        ids, paths: of the images; empty for a shard, whose content `load` reads.
        shard: parquet file with a column `image` (bytes and path).
    """

    name: str
    identity: tuple
    ids: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    shard: Path | None = None

    def load(self) -> tuple[list[str], Sequence[str | bytes]]:
        """Ids and sources (paths, or encoded bytes) of the images."""
        if self.shard is None:
            return list(self.ids), self.paths
        table = pq.read_table(self.shard)
        images = table["image"].to_pylist()
        if "id" in table.column_names:
            ids = [str(value) for value in table["id"].to_pylist()]
        else:
            ids = [image["path"] or f"{self.name}/{index}" for index, image in enumerate(images)]
        return ids, [image["bytes"] for image in images]


def list_parts(data: str, part_size: int = 1000) -> list[Part]:
    """The images of `data` in a fixed order, cut into parts; a shard is a part of its own.

    Args:
        data: a folder of images (searched recursively), a folder of parquet shards, or a table with a column `image`
            and optionally `id`; relative paths start at the table's folder.

    Raises:
        RetFoundError: nothing there, or nothing that is an image.
    """
    path = Path(data)
    if path.is_dir():
        shards = find_shards(path)
        if shards and all(holds_images(shard, "image") for shard in shards):
            return [_shard_part(index, shard) for index, shard in enumerate(shards)]
        images = find_images(path)
        ids, paths = [str(image.relative_to(path).as_posix()) for image in images], [str(image) for image in images]
    elif path.is_file() and path.suffix.lower() in TABLE_SUFFIXES:
        if holds_images(path, "image"):
            return [_shard_part(0, path)]
        ids, paths = _table_images(path)
    else:
        raise RetFoundError(f"data {data} does not exist or is no table; give {ACCEPTED}")
    if not paths:
        raise RetFoundError(f"{data} holds no image; give {ACCEPTED}")
    parts = []
    for index, start in enumerate(range(0, len(paths), part_size)):
        some = slice(start, start + part_size)
        identity = tuple(_identity(image) for image in paths[some])
        parts.append(Part(f"{index:05d}", identity, tuple(ids[some]), tuple(paths[some])))
    return parts


def find_shards(folder: Path) -> list[Path]:
    """The parquet files under `folder`, sorted; hidden ones are what a killed `prepare_images` left half-written."""
    return sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))


def _table_images(path: Path) -> tuple[list[str], list[str]]:
    table = read_table(path, ())
    if "image" not in table:
        raise RetFoundError(f"{path} has no column image; it has {', '.join(map(str, table.columns))}")
    paths = [str(path.parent / str(image)) for image in table["image"]]
    return [str(name) for name in table["id" if "id" in table else "image"]], paths


def _shard_part(index: int, shard: Path) -> Part:
    return Part(f"{index:05d}-{shard.stem}", _identity(str(shard)), shard=shard)


def identities(folder: str | Path) -> list[tuple[str, int, int]]:
    """Path, size and time of change of every file directly in `folder`; empty where that is no folder."""
    return [_identity(str(path)) for path in sorted(Path(folder).glob("*")) if path.is_file()]


def _identity(path: str) -> tuple[str, int, int]:
    try:
        facts = Path(path).stat()
    except OSError:
        return path, 0, 0
    return path, facts.st_size, facts.st_mtime_ns
