"""A finished folder to the Hub, in one commit."""

import tempfile
from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from ..runs.hub_errors import explained
from .card_checks import check_card, read_card
from .contents import Contents, read_contents
from .licences import check_licence
from .staging import is_hub_id, staged

# Of an earlier version: what the new one lacks must not stay beside it and be taken for a part of it.
REPLACED = ["*.safetensors", "*.safetensors.index.json", "adapter_config.json", "*retfound*.py", "*.csv"]


def publish(
    folder: str | Path,
    repo_id: str,
    private: bool = False,
    dry_run: bool = False,
    revision: str | None = None,
    base_model: str | None = None,
    space: bool = False,
) -> str | None:
    """Check a folder and upload it.

    Args:
        folder: a model or adapter folder with its card.
        repo_id: `ORG/NAME`.
        private: make the repository private when it is new; a public one that exists is refused.
        dry_run: check, build and list what would be uploaded, without any connection.
        revision: tag of this version, which must be new.
        base_model: Hub id of what the model was made from, where its card names a folder.
        space: put the web page of the model up too, as the Space `repo_id`-page.

    Returns:
        The address of the version, or None for a dry run.

    Raises:
        RetFoundError: whatever a check or the Hub refuses.
    """
    if not is_hub_id(repo_id):
        raise RetFoundError(f"--repo_id {repo_id!r} is no name of a repository; accepted: ORG/NAME")
    contents = read_contents(folder)
    if space and not contents.is_classifier:
        raise RetFoundError(f"--space: the page shows a classifier, and {folder} is none; leave --space out")
    metadata, text = read_card(contents.folder)
    licence = check_licence(contents, metadata, base_model)
    check_card(contents, metadata, text)
    with staged(contents, repo_id, base_model) as stage:
        read_card(stage)
        print(listing(contents, stage))
        if dry_run:
            also = f", and its page to the Space {space_id(repo_id)}" if space else ""
            print(f"\nDry run: nothing was sent. Without --dry_run this goes to {repo_id}{also}.")
            return None
        with explained(repo_id, "published"):
            url = _upload(stage, repo_id, private, revision)
    if space:
        print(publish_space(repo_id, licence, private))
    return url


def space_id(repo_id: str) -> str:
    """The Space of a model's web page."""
    return f"{repo_id}-page"


def publish_space(repo_id: str, licence: str, private: bool = False) -> str:
    """Put the web page of a published model up as a Space, and return its address."""
    from huggingface_hub import HfApi

    from ..app.space import write_space

    name = space_id(repo_id)
    with tempfile.TemporaryDirectory() as folder, explained(name, "published"):
        write_space(folder, repo_id, license=licence)
        api: Any = HfApi(library_name="retfound_hf")
        url = api.create_repo(name, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        api.upload_folder(repo_id=name, repo_type="space", folder_path=folder, commit_message=f"Page of {repo_id}")
        return str(url)


def listing(contents: Contents, stage: Path) -> str:
    """The files with their sizes, and what is left out with the reason."""
    paths = sorted(path for path in stage.rglob("*") if path.is_file())
    rows = [(path.relative_to(stage).as_posix(), path.stat().st_size) for path in paths]
    width = max(len(name) for name, _ in rows)
    lines = [f"  {name.ljust(width)}  {size_text(size):>9}" for name, size in rows]
    lines.append(f"  {f'{len(rows)} files'.ljust(width)}  {size_text(sum(size for _, size in rows)):>9}")
    reasons: dict[str, list[str]] = {}
    for path, reason in contents.left_out.items():
        reasons.setdefault(reason, []).append(path)
    lines += [
        f"  left out ({reason}): {', '.join(found[:4])}{f' and {len(found) - 4} more' if len(found) > 4 else ''}"
        for reason, found in reasons.items()
    ]
    return "\n".join(lines)


def size_text(size: int) -> str:
    """Bytes in decimal units, as the Hub shows them."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.2f} {unit}"
    return f"{size} B"


def _upload(stage: Path, repo_id: str, private: bool, revision: str | None) -> str:
    from huggingface_hub import HfApi

    api: Any = HfApi(library_name="retfound_hf")
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    if private and not api.repo_info(repo_id).private:
        raise RetFoundError(f"{repo_id} exists and is public, and --private was given; nothing was sent")
    if revision is not None and revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}:
        raise RetFoundError(f"{repo_id} has a version {revision} already, which stays as it is; choose another name")
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=stage,
        commit_message=f"Publish {revision or stage.parent.name}",
        delete_patterns=REPLACED,
    )
    if revision is None:
        return str(url)
    api.create_tag(repo_id, tag=revision, revision=commit.oid)
    return f"{url}/tree/{revision}"
