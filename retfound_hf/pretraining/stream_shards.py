"""Shards of a stream: parquet files here, on the Hub or in object stores, listed by their footers, fetched singly."""

import errno
import hashlib
import os
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq

from ..data.parquet import check_unpacked, find_shards, roots_of
from ..data.remote import fetch_remote, list_remote, open_remote
from ..errors import BadDataError, HubAccessError, RetFoundError, one_line
from ..files import is_remote
from ..hub_access import is_connection_error

RETRY_WAITS = (1, 5, 20, 60, 180)  # seconds: a run of weeks outlives a network that is gone for minutes
LOCAL_WAITS = (1, 5)  # seconds, for a file of this machine or of a share that is gone
LISTING_THREADS = 16
T = TypeVar("T")


@dataclass(frozen=True)
class StreamShard:
    """Parquet file with a column `image` (`bytes` and `path`) and mostly `id`.

    Attributes:
        source: Hub id of the data set, address of a folder in an object store, or an empty string for a local file.
        path: of the file, within the source or on this machine.
        revision: commit of the data set, so that a run and its resumption see the same images; empty for others.
        rows: images in it.
        member: path of the file within its source, wherever that lies.
        content: hash of the bytes.
        roots: folders below which it may name files.
    """

    source: str
    path: str
    revision: str
    rows: int
    member: str
    content: str
    roots: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.source}/{self.path}" if self.source else self.path

    def read(
        self, convert: Callable[[Path], T], folder: Path | None = None, check: Callable[[], None] = lambda: None
    ) -> T:
        """`convert` of the file, which is downloaded first if it lies elsewhere, and removed after.

        Args:
            convert: from the path of the file to what is wanted.
            folder: for the download; by default the system's temporary files.
            check: called before each try; what it raises ends them.

        Raises:
            HubAccessError: several tries failed.
            BadDataError: a file is gone or not readable any more, damaged, or in a store another one by now.
        """
        check()
        if not self.source:
            return self._convert(convert, _tried(self._local, LOCAL_WAITS, _is_of_files, check, self._unreadable))
        with tempfile.TemporaryDirectory(prefix="retfound-shard-", dir=folder, ignore_cleanup_errors=True) as download:
            fetch = partial(self._download, download)
            return self._convert(convert, _tried(fetch, RETRY_WAITS, _may_pass, check, self._unfetched))

    def _convert(self, convert: Callable[[Path], T], file: Path) -> T:
        try:
            return convert(file)
        except (OSError, LookupError, pa.ArrowException) as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> BadDataError:
        return BadDataError(
            f"shard {self.name} cannot be read any more ({one_line(error)}); bring it back, and go on with "
            "`resume_from_checkpoint=latest`", rows=[self.member], source=self.name,
        )  # fmt: skip

    def _local(self) -> Path:
        with open(self.path, "rb"):
            return Path(self.path)

    def _download(self, folder: str) -> Path:
        if is_remote(self.source):
            file = fetch_remote(self.source, self.path, Path(folder, "shard.parquet"))
            with open(file, "rb") as opened:
                if _content_of_footer(opened) != self.content:
                    raise BadDataError(
                        f"shard {self.name} was replaced during the run; bring the old one back",
                        rows=[self.member], source=self.source,
                    )  # fmt: skip
            return file
        from huggingface_hub import hf_hub_download

        place = {"repo_type": "dataset", "revision": self.revision, "local_dir": folder}
        return Path(hf_hub_download(self.source, self.path, **place))  # resumes, and checks the size

    def _unfetched(self, error: Exception) -> RetFoundError:
        if is_remote(self.source):
            return error if isinstance(error, BadDataError) else self._unreadable(error)
        return HubAccessError(
            f"shard {self.name} cannot be fetched ({one_line(error)}); check the network and your access, and go on "
            "with `resume_from_checkpoint=latest`",
            repo_id=self.source, status=getattr(getattr(error, "response", None), "status_code", None),
        )  # fmt: skip


def _tried(
    attempt: Callable[[], T], waits: Sequence[float], may_pass: Callable[[Exception], bool],
    check: Callable[[], None], failed: Callable[[Exception], RetFoundError],
) -> T:  # fmt: skip
    """The result of `attempt`, which is tried again after each of the waits.

    Args:
        attempt: what is tried.
        waits: seconds before each further try.
        may_pass: whether another try may mend an error.
        check: called before each further try; what it raises ends them.
        failed: makes the error that is raised in the end.
    """
    for wait in (*waits, None):
        try:
            return attempt()
        except Exception as error:  # of the network, the Hub, the disk
            if wait is None or not may_pass(error):
                raise failed(error) from error
        time.sleep(wait)
        check()
    raise AssertionError("the last try returns or raises")


def _is_of_files(error: Exception) -> bool:
    return isinstance(error, OSError)


def _may_pass(error: Exception) -> bool:
    """Whether another try may succeed: a network that is gone, a Hub that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, OSError) and error.errno in (errno.EBUSY, errno.EIO, errno.ETIMEDOUT):  # of object stores
        return True
    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, LocalEntryNotFoundError) or is_connection_error(error)


def stream_fingerprint(shards: Sequence[StreamShard]) -> str:
    """Hash of members, rows and contents, by which a resumed run knows its data again, wherever they lie now."""
    return hashlib.sha256(repr([(each.member, each.rows, each.content) for each in shards]).encode()).hexdigest()[:16]


def no_shards(source: str) -> BadDataError:
    """The error for a source without parquet files."""
    return BadDataError(f"`train_data={source}` holds no parquet shards; make them with prepare_images", source=source)


def no_image_column(source: str, columns: Sequence[str]) -> BadDataError:
    """The error for a source without images."""
    return BadDataError(
        f"`train_data={source}` has no column image; its columns are {', '.join(columns)}", source=source
    )


def list_shards(
    sources: Sequence[str], revisions: Mapping[str, str] | None = None, image_root: str | None = None
) -> list[StreamShard]:
    """All shards of folders, parquet files and Hub data sets, in a fixed order; only the footer of each is read.

    Args:
        sources: as `train_data`.
        revisions: commits of Hub data sets; the newest of others.
        image_root: folder of images that the shards name in place of holding them.

    Raises:
        BadDataError: no shard there, or no column `image`.
        HubAccessError: a data set that is not there.
    """
    shards = [
        replace(shard, roots=roots_of(source, image_root))
        for source in sources
        for shard in _list_source(source, (revisions or {}).get(source))
    ]
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        joined = " ".join(sources)
        raise BadDataError(f"`train_data={joined}` holds no image; make shards with prepare_images", source=joined)
    return filled


def _list_source(source: str, revision: str | None) -> list[StreamShard]:
    path = Path(source)
    if is_remote(source):
        return _list_store(source)
    if not path.exists():
        return _list_hub(source, revision)
    files = find_shards(path) if path.is_dir() else [path] if path.suffix == ".parquet" else []
    if not files:
        raise no_shards(source)
    root = path if path.is_dir() else path.parent
    return [
        StreamShard("", str(file.absolute()), "", *_read_footer(partial(open, file, "rb"), source,
                                                                file.relative_to(root).as_posix()))
        for file in files
    ]  # fmt: skip


def _list_store(source: str) -> list[StreamShard]:
    folder, members = list_remote(source, "train_data")
    if not members:
        raise no_shards(source)

    def look(member: str) -> StreamShard:
        return StreamShard(folder, member, "", *_read_footer(partial(open_remote, folder, member), source, member))

    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        return list(threads.map(look, members))


def _list_hub(source: str, revision: str | None) -> list[StreamShard]:
    from huggingface_hub import HfFileSystem

    try:
        # Such as hf://datasets/org/name@0123abc/data/train-00000.parquet, by the data set's own card.
        urls = _train_files(source, revision)
        system = HfFileSystem()
        found = [system.resolve_path(url) for url in urls]
    except Exception as error:  # of the network, the Hub, many readers
        raise HubAccessError(
            f"`train_data={source}` is neither a folder here nor a data set on the Hub ({one_line(error)}); pass a "
            "folder made by prepare_images, or a Hub id that you have access to",
            repo_id=source,
        ) from error
    if not found or not all(file.path_in_repo.endswith(".parquet") for file in found):
        raise BadDataError(
            f"`train_data={source}` has no train split of parquet files, as `streaming` needs; make one with "
            "prepare_images, or leave `streaming` out",
            source=source,
        )

    def look(url: str, file: Any) -> StreamShard:
        path = file.path_in_repo
        return StreamShard(file.repo_id, path, file.revision, *_read_footer(lambda: system.open(url), source, path))

    with ThreadPoolExecutor(LISTING_THREADS) as threads:
        return list(threads.map(look, urls, found))


def _train_files(source: str, revision: str | None) -> list[str]:
    import datasets
    from huggingface_hub.errors import RevisionNotFoundError

    try:
        builder = datasets.load_dataset_builder(source, revision=revision)
    except datasets.exceptions.DatasetNotFoundError as error:
        if revision is None or not isinstance(error.__cause__, RevisionNotFoundError):
            raise
        # The history was squashed, which leaves the files: the fingerprint tells whether they are the same.
        builder = datasets.load_dataset_builder(source)
    return list((builder.config.data_files or {}).get("train", []))


def _read_footer(open_file: Callable[[], Any], source: str, member: str) -> tuple[int, str, str]:
    """Rows, member and content of a shard."""
    try:
        with open_file() as file:
            footer = pq.ParquetFile(file)
            content = _listed_hash(file) if not is_remote(source) else ""
            content = content or _content_of_footer(file)
            name = source if source.endswith(".parquet") else f"{source}/{member}"
            check_unpacked(name, file.seek(0, os.SEEK_END), footer.metadata)
    except RetFoundError:
        raise
    except Exception as error:  # not parquet, cut off, of the network
        raise BadDataError(
            f"`train_data={source}` has a shard that cannot be read: {member} ({one_line(error)})",
            rows=[member], source=source,
        ) from error  # fmt: skip
    if "image" not in footer.schema_arrow.names:
        raise no_image_column(source, footer.schema_arrow.names)
    return footer.metadata.num_rows, member, content


def _listed_hash(file: Any) -> str:
    """The hash that the Hub lists for its files, or an empty string."""
    listed = getattr(file, "details", {})
    return listed["lfs"]["sha256"] if listed.get("lfs") else listed.get("blob_id") or ""


def _content_of_footer(file: Any) -> str:
    """The size of a file and a hash of the footer, which has the sizes of all columns."""
    size = file.seek(0, os.SEEK_END)
    file.seek(size - 8)
    length = int.from_bytes(file.read(4), "little")
    file.seek(size - 8 - length)
    return f"{size}-{hashlib.sha256(file.read(length)).hexdigest()}"
