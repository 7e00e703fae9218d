"""The command `finetune`."""

from collections.abc import Sequence
from typing import Protocol

from ..runs.arguments import parse_arguments
from ..runs.errors import RetFoundError


class Publisher(Protocol):
    """What `--push_to_hub` needs; publishing is a room above this one, so that it is handed in."""

    def check(self, token: str | None) -> None:
        """Raise RetFoundError where nothing could be published, before hours of training."""

    def push(self, folder: str, repo_id: str | None, private: bool | None, token: str | None) -> str | None:
        """Publish a finished folder and return its address."""


def main(argv: Sequence[str] | None = None, publisher: Publisher | None = None) -> None:
    """Parse the arguments, run, and publish the folder if `--push_to_hub` asks for it."""
    from ..inference.report_arguments import ReportArguments
    from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
    from .decision import DecisionArguments

    parsed = parse_arguments(
        ModelArguments,
        DataArguments,
        MethodArguments,
        FinetuneTrainingArguments,
        DecisionArguments,
        ReportArguments,
        argv=argv,
        description="Fine-tune a model folder on a labelled set, and evaluate it on the test split.",
    )
    args = parsed[3]
    if args.push_to_hub:
        if publisher is None:
            raise RetFoundError("--push_to_hub belongs to the command; publish the finished folder by itself instead")
        publisher.check(args.hub_token)
    from ..inference.processes import process_state
    from .run import finetune

    finetune(*parsed)
    if args.push_to_hub and process_state().is_main_process:
        print(publisher.push(args.output_dir, args.hub_model_id, args.hub_private_repo, args.hub_token))
