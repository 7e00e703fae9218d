"""A shard of a stream: where it lies, what it holds, and how it is brought here."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ...runs.errors import RetFoundError, one_line
from ...runs.hub_errors import is_connection_error

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
        member: path of the file within what was given as source, wherever that lies.
        content: what tells its bytes from others.
    """

    source: str
    path: str
    revision: str
    rows: int
    member: str
    content: str

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


def _may_pass(error: Exception) -> bool:
    """Whether another try may have more luck: a network that is gone, a Hub that is busy."""
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    if isinstance(error, HfHubHTTPError) and error.response is not None:
        return error.response.status_code in (408, 429) or error.response.status_code >= 500
    return isinstance(error, LocalEntryNotFoundError) or is_connection_error(error)
