"""Folders of shards in object stores (s3://, gs://, hf:// and others that fsspec reads), listed and fetched by file.

Credentials come from where each store's own tools have them (environment, files of the home), never from an address.
Nothing here is called for other paths.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import BadArgumentError, BadDataError, MissingPackageError, RetFoundError, one_line

EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}


def check_address(source: str, field: str) -> None:
    """Raise where an address cannot be used; nothing is contacted.

    Raises:
        BadArgumentError: it holds credentials, which records would keep, or fsspec does not know its kind.
        MissingPackageError: the package that reads this kind of store is not installed.
    """
    import fsspec

    address = urlsplit(source)
    if address.query or ("@" in address.netloc and not address.scheme.startswith("abfs")):
        bare = f"{address.scheme}://{address.netloc.rpartition('@')[2]}{address.path}"
        raise BadArgumentError(
            f"`{field}={bare}` was given with credentials in it, which records of the run would keep; give it without "
            "them, and them as the store's own tools take them, such as by AWS_ACCESS_KEY_ID or a profile",
            field=field, value=bare,
        )  # fmt: skip
    try:
        fsspec.get_filesystem_class(address.scheme)
    except ImportError as error:
        if address.scheme in EXTRAS:
            raise MissingPackageError(*EXTRAS[address.scheme]) from error
        raise RetFoundError(f"`{field}={source}`: {one_line(error)}") from error
    except ValueError as error:
        message = f"`{field}={source}`: {address.scheme}:// is not known; give a folder, s3://, gs:// or hf://"
        raise BadArgumentError(message, field=field, value=source) from error


def list_remote(source: str, field: str) -> tuple[str, list[str]]:
    """Parquet files below an address, or the one that it names.

    Returns:
        Address of the folder, and the sorted paths in it; hidden files are left out, as in `find_shards`.

    Raises:
        BadDataError: the store cannot be reached, or refuses.
    """
    from fsspec.core import url_to_fs

    if source.endswith(".parquet"):
        folder, _, name = source.rpartition("/")
        return folder, [name]
    with _faults(source, field):
        system, root = url_to_fs(source)
        system.invalidate_cache()
        found = [path.removeprefix(root).lstrip("/") for path in system.find(root)]
    return source.rstrip("/"), sorted(path for path in found if re.search(r"(^|/)[^./][^/]*\.parquet$", path))


def open_remote(folder: str, member: str):
    """A file of a store, open for reading in parts."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(f"{folder}/{member}")
    return system.open(path, "rb")


def fetch_remote(folder: str, member: str, target: Path) -> Path:
    """Copy a file of a store to `target`."""
    from fsspec.core import url_to_fs

    system, path = url_to_fs(f"{folder}/{member}")
    system.get_file(path, str(target))
    return target


@contextmanager
def _faults(source: str, field: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # each store has its own
        message = f"`{field}={source}` cannot be listed ({one_line(error)}); check it, the network and your access"
        raise BadDataError(message, source=source) from error
