"""`finetune --push_to_hub`: the command, then `publish` on what it has made."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.hub_errors import explained
from .publishing import publish


class HubPublisher:
    """Publishes the folder of a run; the repository is the user's own unless an organisation is named."""

    def check(self, token: str | None = None) -> None:
        """Raise RetFoundError without a connection or a token that the Hub knows: `--hub_token`, or the login's."""
        _user(token)

    def push(
        self, folder: str, repo_id: str | None, private: bool | None = None, token: str | None = None
    ) -> str | None:
        """Publish `folder` as `repo_id` (`--hub_model_id`), by default under the folder's name."""
        repo_id = repo_id or Path(folder).resolve().name
        repo_id = repo_id if "/" in repo_id else f"{_user(token)}/{repo_id}"
        return publish(folder, repo_id, private=bool(private), token=token)


def finetune(argv: Sequence[str] | None = None) -> None:
    """The command `finetune` with a publisher behind `--push_to_hub`."""
    from ..finetuning.command import main

    main(argv, publisher=HubPublisher())


def _user(token: str | None) -> str:
    from huggingface_hub import HfApi

    with explained("the run", "published", token):
        return HfApi(token=token).whoami()["name"]
