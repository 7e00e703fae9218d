"""The command `study`."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from ..runs.arguments import parse_arguments


@dataclass
class StudyArguments:
    study: str = field(metadata={"positional": True, "help": "YAML file that says what to compare, see the README"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the study, which a later call goes on with; default: the file's name"},
    )
    jobs: int = field(default=1, metadata={"help": "jobs to run at once on this machine"})
    part: str | None = field(
        default=None, metadata={"help": "i/n: this machine's share of the jobs, such as 1/4; all by default"}
    )
    dry_run: bool = field(default=False, metadata={"help": "check everything, print the table of jobs, and run none"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    (arguments,) = parse_arguments(
        StudyArguments,
        argv=argv,
        options_file=False,  # the study's file is one
        description="Models x methods x data sets x label fractions x seeds, from one file to tables.",
    )
    from .run import run_study

    run_study(arguments)
