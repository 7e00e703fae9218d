"""Official weights from the Hub, checked and converted, and the command `fetch`."""

import re
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ..errors import BadArgumentError, HubAccessError, require
from ..files import refuse_existing
from ..hub_access import translate_hub_errors
from ..models.conversion import convert_checkpoint, sha256_of
from ..models.loading import STARTING_POINTS, find_starting_point
from ..options import parse_arguments
from ..record import write_run_record
from ..vocabulary import MODALITIES


def download(repo_id: str, file: str, revision: str = "main") -> Path:
    """Path of a file in the Hub's cache, of the size and the SHA-256 that the Hub states.

    Raises:
        HubAccessError: no token, no access, no network, too little space, a damaged file; each says what to do.
    """
    from huggingface_hub import constants, hf_hub_download

    with translate_hub_errors(repo_id, "fetched"):
        if not constants.HF_HUB_OFFLINE:
            _fill_cache(repo_id, file, revision)
        path = Path(hf_hub_download(repo_id, file, revision=revision))
    stored = path.resolve()
    # Large files are stored under the hash that the Hub states.
    if re.fullmatch(r"[0-9a-f]{64}", stored.name):
        try:
            _check_hash(repo_id, stored, stored.name)
        except HubAccessError:
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
        raise HubAccessError(
            f"the download of {repo_id} is damaged: its SHA-256 is {found}, and the Hub states {stated}; it was "
            "removed, run the same command again",
            repo_id=repo_id,
        )


def _check_space(repo_id: str, size: int, partial: Path) -> None:
    """Refuse before hours of download what the disk cannot hold: the file, and the folder made from it."""
    free = shutil.disk_usage(partial.parent).free + (partial.stat().st_size if partial.exists() else 0)
    if free < 2 * size:
        raise HubAccessError(
            f"{repo_id} takes {size / 1e9:.1f} GB, twice that with the folder made from it, and {partial.parent} has "
            f"{free / 1e9:.1f} GB left; make room, or name another place in HF_HOME",
            repo_id=repo_id,
        )


def fetch(
    name: str, output_dir: str | Path, modality: str | None = None, revision: str = "main", overwrite: bool = False
) -> Path:
    """Download official weights and turn them into a model folder.

    An interrupted download continues where it stopped; the folder appears whole or not at all. With the weights in
    the cache and `HF_HUB_OFFLINE` set, the network is left alone. Mirrors: `HF_ENDPOINT`. No hash is pinned: none is
    published beside the weights, and the download is checked against the one that the Hub states.

    Args:
        name: a name in `STARTING_POINTS` whose weights have to be converted, or its repository.
        output_dir: the folder to make.
        modality: `cfp` or `oct`, needed where the name does not tell.
        revision: branch, tag or commit of the repository.
        overwrite: replace the folder.

    Raises:
        BadArgumentError: an unknown name, or the wrong modality.
        HubAccessError: no token, no access, no network, too little space, a damaged download.
    """
    start = find_starting_point(name, folders=False)
    if start is None or start.file is None:
        require("name", name, [row.name for row in STARTING_POINTS.values() if row.file])
    wanted = start.modality or modality
    if wanted is None:
        raise BadArgumentError(
            f"the name {name} does not tell the `modality`; give that of its training images, as its page tells: "
            f"{' or '.join(MODALITIES)}",
            field="modality", value=None, accepted=MODALITIES,
        )  # fmt: skip
    if modality not in (None, wanted):
        raise BadArgumentError(
            f"{name} holds weights for {wanted}, not for `modality={modality}`; fetch retfound-{modality}, or leave "
            "`modality` out",
            field="modality", value=modality, accepted=[wanted],
        )  # fmt: skip
    refuse_existing(output_dir, overwrite)
    path = download(start.hub_id, start.file, revision)
    return convert_checkpoint(path, output_dir, modality=wanted, overwrite=overwrite)


@dataclass
class FetchArguments:
    name: str = field(
        metadata={
            "positional": True,
            "help": f"official weights: {', '.join(row.name for row in STARTING_POINTS.values() if row.file)}",
        }
    )
    output_dir: str | None = field(default=None, metadata={"help": "folder to make; default: the name"})
    modality: Literal["auto", "cfp", "oct"] = field(
        default="auto", metadata={"help": "kind of the training images, where the name of the weights does not tell"}
    )
    revision: str = field(default="main", metadata={"help": "branch, tag or commit of the repository"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command `fetch`: write the folder and print its files."""
    started = time.time()
    (arguments,) = parse_arguments(
        FetchArguments, argv=argv, description="Official weights from the Hub -> model folder."
    )
    folder = fetch(
        arguments.name,
        arguments.output_dir or arguments.name.split("/")[-1],
        modality=None if arguments.modality == "auto" else arguments.modality,
        revision=arguments.revision,
        overwrite=arguments.overwrite_output_dir,
    )
    write_run_record(folder, "fetch", arguments, seconds=round(time.time() - started, 1))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
