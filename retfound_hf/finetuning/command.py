"""The command `finetune`."""

from collections.abc import Sequence

from ..runs.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    from .arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments

    parsed = parse_arguments(
        ModelArguments,
        DataArguments,
        MethodArguments,
        FinetuneTrainingArguments,
        argv=argv,
        description="Fine-tune a model folder on a labelled set, and evaluate it on the test split.",
    )
    from .run import finetune

    finetune(*parsed)
