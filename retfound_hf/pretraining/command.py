"""The command `pretrain`."""

from collections.abc import Sequence

from ..runs.arguments import parse_arguments


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    from .arguments import DataArguments, ModelArguments, PretrainingArguments

    parsed = parse_arguments(
        ModelArguments,
        DataArguments,
        PretrainingArguments,
        argv=argv,
        description="Pretrain on image shards: a preset from scratch, or on from a RETFound or ViT-MAE folder.",
    )
    from transformers.utils import logging

    from .run import pretrain

    logging.disable_progress_bar()  # of the files of each checkpoint, across the bar of the run
    pretrain(*parsed)
