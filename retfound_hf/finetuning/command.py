"""The command `finetune`."""

from collections.abc import Sequence

from ..runs.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
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
    from .run import finetune

    finetune(*parsed)
