"""What goes to the Hub and what of an earlier version leaves it, in one commit; and who may see it."""

from glob import escape
from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from ..runs.hub_errors import explained
from .contents import may_be_published


def client(token: str | None = None) -> Any:
    """The Hub's client, with the login's token where none is given."""
    from huggingface_hub import HfApi

    return HfApi(token=token, library_name="retfound_hf")


def space_id(repo_id: str) -> str:
    """The Space of a model's web page."""
    return f"{repo_id}-page"


def check_private(api: Any, repo_id: str, private: bool, space: bool) -> bool:
    """Whether the model, and its page, have to be private: where that is asked for, or where the model is already.

    Raises:
        RetFoundError: a public repository or Space in which they would lie open to all.
    """
    now = _is_private(api, repo_id, "model")
    if private and now is False:
        raise RetFoundError(f"{repo_id} exists and is public, and --private was given; nothing was sent")
    private = private or now is True
    if private and space and _is_private(api, space_id(repo_id), "space") is False:
        raise RetFoundError(
            f"the Space {space_id(repo_id)} exists and is public, and {repo_id} is private; nothing was sent: make "
            "the Space private or remove it, or leave --space out"
        )
    return private


def upload_model(api: Any, stage: Path, repo_id: str, private: bool, revision: str | None) -> str:
    """Send a staged folder, with a tag if `revision` names one, and return the address of the version."""
    url = api.create_repo(repo_id, private=private or None, exist_ok=True)
    if revision is not None and revision in {tag.name for tag in api.list_repo_refs(repo_id).tags}:
        raise RetFoundError(f"{repo_id} has a version {revision} already, which stays as it is; choose another name")
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=stage,
        commit_message=f"Publish {revision or stage.parent.name}",
        delete_patterns=[escape(path) for path in api.list_repo_files(repo_id) if may_be_published(path)],
    )
    if revision is None:
        return str(url)
    api.create_tag(repo_id, tag=revision, revision=commit.oid)
    return f"{url}/tree/{revision}"


def upload_page(api: Any, page: Path, repo_id: str, private: bool) -> str:
    """Put the web page of a published model, written to the folder `page`, up as a Space; return its address."""
    name = space_id(repo_id)
    with explained(name, "published", api.token):
        url = api.create_repo(name, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=name,
            repo_type="space",
            folder_path=page,
            commit_message=f"Page of {repo_id}",
            delete_patterns=["retfound_hf/*"],
        )
        return str(url)


def _is_private(api: Any, repo_id: str, kind: str) -> bool | None:
    """None for a repository that does not exist."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        return api.repo_info(repo_id, repo_type=kind).private
    except RepositoryNotFoundError:
        return None
