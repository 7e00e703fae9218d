"""The command `publish`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..runs.arguments import parse_arguments


@dataclass
class PublishArguments:
    folder: str = field(metadata={"positional": True, "help": "finished model or adapter folder"})
    repo_id: str = field(metadata={"help": "repository on the Hub: ORG/NAME"})
    private: bool = field(default=False, metadata={"help": "make a new repository private"})
    dry_run: bool = field(
        default=False, metadata={"help": "check everything and list the files, without a connection"}
    )
    revision: str | None = field(default=None, metadata={"help": "tag of this version, such as v1"})
    base_model: str | None = field(
        default=None, metadata={"help": "Hub id of what the model was made from, where its card names a folder"}
    )
    space: bool = field(default=False, metadata={"help": "put the web page up too, as the Space REPO_ID-page"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, publish, and print the address."""
    (arguments,) = parse_arguments(
        PublishArguments, argv=argv, description="Check a finished folder and put it on the Hub with its card."
    )
    from .publishing import publish

    url = publish(
        arguments.folder,
        arguments.repo_id,
        private=arguments.private,
        dry_run=arguments.dry_run,
        revision=arguments.revision,
        base_model=arguments.base_model,
        space=arguments.space,
    )
    if url is not None:
        print(url)
