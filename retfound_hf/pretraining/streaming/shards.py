"""The shards of a stream: where they lie, how many images they hold, and how one is brought here."""

import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pyarrow.parquet as pq

from ...data.sources import find_shards
from ...runs.errors import RetFoundError, one_line
from ...runs.hub_errors import is_connection_error

READERS = 16  # footers read at once
# Seconds between tries: a run of weeks outlives a network that is gone for minutes.
WAITS = (1, 5, 20, 60, 180)
T = TypeVar("T")


@dataclass(frozen=True)
class StreamShard:
    """A parquet file with a column `image` (`bytes` and `path`) and mostly `id`.

    Attributes:
        source: Hub id of the data set, or an empty string for a file of this machine.
        path: of the file, within the data set or on this machine.
        revision: commit of the data set, so that all of a run and its resumption see the same images.
        rows: images in it.
    """

    source: str
    path: str
    revision: str
    rows: int

    @property
    def name(self) -> str:
        return f"{self.source}/{self.path}" if self.source else self.path

    def read(
        self, convert: Callable[[Path], T], folder: Path | None = None, check: Callable[[], None] = lambda: None
    ) -> T:
        """What `convert` makes of the file, which is downloaded first if it lies on the Hub, and removed after.

        Args:
            folder: where to download it, if not among the system's temporary files.
            check: called before each try; what it raises ends them.

        Raises:
            RetFoundError: it cannot be had, after several tries.
        """
        check()
        if not self.source:
            return convert(Path(self.path))
        with tempfile.TemporaryDirectory(prefix="retfound-shard-", dir=folder, ignore_cleanup_errors=True) as place:
            return convert(self._download(place, check))

    def _download(self, folder: str, check: Callable[[], None]) -> Path:
        from huggingface_hub import hf_hub_download

        for wait in (*WAITS, None):
            try:
                # Goes on where it was cut off, and checks the size.
                return Path(
                    hf_hub_download(
                        self.source, self.path, repo_type="dataset", revision=self.revision, local_dir=folder
                    )
                )
            except Exception as error:  # of the network, the Hub, the disk
                if wait is None or not _may_pass(error):
                    raise RetFoundError(
                        f"shard {self.name} cannot be fetched ({one_line(error)}); check the network and your access, "
                        "and go on with --resume_from_checkpoint latest"
                    ) from error
            time.sleep(wait)
            check()
        raise AssertionError("the last try returns or raises")


def list_shards(sources: Sequence[str]) -> list[StreamShard]:
    """All shards of folders, parquet files and Hub data sets, in a fixed order; of each the footer alone is read.

    Args:
        sources: as `--train_data` takes them.

    Raises:
        RetFoundError: nothing there that is a shard, or no column `image`.
    """
    shards = [shard for source in sources for shard in _list(source)]
    filled = [shard for shard in shards if shard.rows]
    if not filled:
        raise RetFoundError(f"--train_data {' '.join(sources)} holds no image; make shards with prepare_images")
    return filled


def _list(source: str) -> list[StreamShard]:
    path = Path(source)
    if path.exists():
        files = find_shards(path) if path.is_dir() else [path] if path.suffix == ".parquet" else []
        if not files:
            raise RetFoundError(f"--train_data {source} holds no parquet shards; make them with prepare_images")
        return [
            StreamShard("", str(file.absolute()), "", _rows(lambda file=file: open(file, "rb"), source))
            for file in files
        ]
    return _list_hub(source)


def _list_hub(source: str) -> list[StreamShard]:
    import datasets
    from huggingface_hub import HfFileSystem

    try:
        builder = datasets.load_dataset_builder(source)
        # Such as hf://datasets/org/name@0123abc/data/train-00000.parquet, by the data set's own card.
        urls = list((builder.config.data_files or {}).get("train", []))
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

    with ThreadPoolExecutor(READERS) as readers:
        rows = list(readers.map(lambda url: _rows(lambda: system.open(url), source), urls))
    return [
        StreamShard(place.repo_id, place.path_in_repo, place.revision, count)
        for place, count in zip(places, rows, strict=True)
    ]


def _rows(open_file: Callable[[], Any], source: str) -> int:
    try:
        with open_file() as file:
            footer = pq.ParquetFile(file)
    except Exception as error:  # not parquet, cut off, of the network
        raise RetFoundError(f"--train_data {source} has a shard that cannot be read ({one_line(error)})") from error
    if "image" not in footer.schema_arrow.names:
        names = ", ".join(footer.schema_arrow.names)
        raise RetFoundError(f"--train_data {source} has no column image; its columns are {names}")
    return footer.metadata.num_rows


def _may_pass(error: Exception) -> bool:
    """Whether another try may have more luck: a network that is gone, a Hub that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, LocalEntryNotFoundError) or is_connection_error(error)
