"""A large file from the Hub into its cache, going on where an earlier try stopped.

The Hub's library starts a file anew in each process; over a slow line a file of gigabytes would never arrive.
"""

import re
import shutil
from pathlib import Path

from ..models.conversion.reading import sha256_of
from ..runs.errors import RetFoundError
from ..runs.hub_errors import explained


def download(repo_id: str, file: str, revision: str = "main") -> Path:
    """The path of a file in the Hub's cache, of the size and the SHA-256 that the Hub states.

    Raises:
        RetFoundError: no token, no access, no network, too little space, a damaged file; each says what to do.
    """
    from huggingface_hub import constants, hf_hub_download

    with explained(repo_id, "fetched"):
        if not constants.HF_HUB_OFFLINE:
            _fill_cache(repo_id, file, revision)
        path = Path(hf_hub_download(repo_id, file, revision=revision))
    stored = path.resolve()
    # Large files are stored under the hash that the Hub states.
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        try:
            _check_hash(repo_id, stored, stored.name)
        except RetFoundError:
            path.unlink(missing_ok=True)
            raise
    return path


def _fill_cache(repo_id: str, file: str, revision: str) -> None:
    """Put the content where the library looks for it, unless it is there."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils import WeakFileLock, build_hf_headers

    url = hf_hub_url(repo_id, file, revision=revision, endpoint=constants.ENDPOINT)
    stated = get_hf_file_metadata(url)
    if stated.etag is None or not re.fullmatch(r"[0-9a-f]{64}", stated.etag):
        return  # a small file, or a mirror that states no hash: left to the library
    cache, name = Path(constants.HF_HUB_CACHE), repo_folder_name(repo_id=repo_id, repo_type="model")
    folder, lock = cache / name / "blobs", cache / ".locks" / name / f"{stated.etag}.lock"  # the library's own lock
    blob, partial = folder / stated.etag, folder / f"{stated.etag}.partial"
    if blob.exists():
        return
    folder.mkdir(parents=True, exist_ok=True)
    lock.parent.mkdir(parents=True, exist_ok=True)
    with WeakFileLock(lock):
        _check_space(repo_id, stated.size or 0, partial)
        with partial.open("ab") as stream:
            http_get(
                url,
                stream,
                resume_size=stream.tell(),
                headers=build_hf_headers(),
                expected_size=stated.size,
                displayed_filename=file,
            )
        _check_hash(repo_id, partial, stated.etag)
        partial.replace(blob)


def _check_hash(repo_id: str, path: Path, stated: str) -> None:
    if (found := sha256_of(path)) != stated:
        path.unlink()
        raise RetFoundError(
            f"the download of {repo_id} is damaged: its SHA-256 is {found}, and the Hub states {stated}; it was "
            "removed, run the same command again"
        )


def _check_space(repo_id: str, size: int, partial: Path) -> None:
    """Refuse before hours of download what the disk cannot hold: the file, and the folder made from it."""
    free = shutil.disk_usage(partial.parent).free + (partial.stat().st_size if partial.exists() else 0)
    if free < 2 * size:
        raise RetFoundError(
            f"{repo_id} takes {size / 1e9:.1f} GB, twice that with the folder made from it, and {partial.parent} has "
            f"{free / 1e9:.1f} GB left; make room, or name another place in HF_HOME"
        )
