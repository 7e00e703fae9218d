"""Which shards the sources of a stream have, and whether they are those of another time."""

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pyarrow.parquet as pq

from ...data.sources import find_shards
from ...runs.errors import RetFoundError, one_line
from .shards import StreamShard

READERS = 16  # footers read at once
NEWEST: Mapping[str, str] = MappingProxyType({})


def fingerprint_of(shards: Sequence[StreamShard]) -> str:
    """Tells whether a resumed run sees the same images in the same order, from wherever they come now."""
    told = [(shard.member, shard.rows, shard.content) for shard in shards]
    return hashlib.sha256(repr(told).encode()).hexdigest()[:16]


def list_shards(sources: Sequence[str], revisions: Mapping[str, str] = NEWEST) -> list[StreamShard]:
    """All shards of folders, parquet files and Hub data sets, in a fixed order; of each the footer alone is read.

    Args:
        sources: as `--train_data` takes them.
        revisions: commits of Hub data sets; of others the newest is taken.

    Raises:
        RetFoundError: nothing there that is a shard, or no column `image`.
    """
    shards = [shard for source in sources for shard in _list(source, revisions.get(source))]
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        raise RetFoundError(f"--train_data {' '.join(sources)} holds no image; make shards with prepare_images")
    return filled


def _list(source: str, revision: str | None) -> list[StreamShard]:
    path = Path(source)
    if not path.exists():
        return _list_hub(source, revision)
    files = find_shards(path) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files:
        raise RetFoundError(f"--train_data {source} holds no parquet shards; make them with prepare_images")
    root = path if path.is_dir() else path.parent
    return [
        StreamShard(
            "", str(file.absolute()), "", *_look(lambda file=file: open(file, "rb"), source, file.relative_to(root))
        )
        for file in files
    ]


def _list_hub(source: str, revision: str | None) -> list[StreamShard]:
    from huggingface_hub import HfFileSystem

    try:
        # Such as hf://datasets/org/name@0123abc/data/train-00000.parquet, by the data set's own card.
        urls = _train_files(source, revision)
        system = HfFileSystem()
        places = [system.resolve_path(url) for url in urls]
    except Exception as error:  # of the network, the Hub, many readers
        raise RetFoundError(
            f"--train_data {source} is neither here nor a data set that the Hub gives ({one_line(error)}); give a "
            "folder made by prepare_images, or a Hub id that you have access to"
        ) from error
    if not places or not all(place.path_in_repo.endswith(".parquet") for place in places):
        raise RetFoundError(
            f"--train_data {source} has no train split of parquet files, as --streaming needs; make one with "
            "prepare_images, or leave --streaming out"
        )

    def look(url: str, place: Any) -> StreamShard:
        path = place.path_in_repo
        return StreamShard(place.repo_id, path, place.revision, *_look(lambda: system.open(url), source, path))

    with ThreadPoolExecutor(READERS) as readers:
        return list(readers.map(look, urls, places))


def _train_files(source: str, revision: str | None) -> list[str]:
    import datasets
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        builder = datasets.load_dataset_builder(source, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        if revision is None or not isinstance(error.__cause__, RevisionNotFoundError):
            raise
        # The history was squashed, which leaves the files: the fingerprint tells.
        builder = datasets.load_dataset_builder(source)
    return list((builder.config.data_files or {}).get("train", []))


def _look(open_file: Callable[[], Any], source: str, member: Path | str) -> tuple[int, str, str]:
    """Rows, member and content of a shard."""
    try:
        with open_file() as file:
            footer = pq.ParquetFile(file)
            content = _content(file)
    except Exception as error:  # not parquet, cut off, of the network
        raise RetFoundError(f"--train_data {source} has a shard that cannot be read ({one_line(error)})") from error
    if "image" not in footer.schema_arrow.names:
        names = ", ".join(footer.schema_arrow.names)
        raise RetFoundError(f"--train_data {source} has no column image; its columns are {names}")
    return footer.metadata.num_rows, Path(member).as_posix(), content


def _content(file: Any) -> str:
    """The hash that the Hub lists, or the size and a hash of the footer, which has the sizes of all columns."""
    listed = getattr(file, "details", {})
    if listed.get("lfs"):
        return listed["lfs"]["sha256"]
    if listed.get("blob_id"):
        return listed["blob_id"]
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 8)
    length = int.from_bytes(file.read(4), "little")
    file.seek(size - 8 - length)
    return f"{size}-{hashlib.sha256(file.read(length)).hexdigest()}"
