"""`finetune --push_to_hub`: the command, then `publish` on what it has made."""

from collections.abc import Sequence
from pathlib import Path

from ..runs.hub_errors import explained
from .publishing import publish


class HubPublisher:
    """Publishes the folder of a run; the repository is the user's own unless an organisation is named."""

    def check(self) -> None:
        """Raise RetFoundError without a connection or a token that the Hub knows."""
        _user()

    def push(self, folder: str, repo_id: str | None, private: bool | None = None) -> str | None:
        """Publish `folder` as `repo_id` (`--hub_model_id`), by default under the folder's name."""
        repo_id = repo_id or Path(folder).resolve().name
        return publish(folder, repo_id if "/" in repo_id else f"{_user()}/{repo_id}", private=bool(private))


def finetune(argv: Sequence[str] | None = None) -> None:
    """The command `finetune` with a publisher behind `--push_to_hub`."""
    from ..finetuning.command import main

    main(argv, publisher=HubPublisher())


def _user() -> str:
    from huggingface_hub import HfApi

    with explained("the run", "published"):
        return HfApi().whoami()["name"]
