"""The command `check_dataset`: is a downloaded copy of a public data set whole and rightly named?"""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ...runs.arguments import parse_arguments
from ...runs.errors import RetFoundError
from ...runs.files import refuse_existing, write_json
from ...runs.record import write_run_record
from ..splits import SPLITS
from .recipes import Recipe, recipe

SHOWN = 50


@dataclass
class CheckArguments:
    name: str = field(
        metadata={
            "positional": True,
            "help": "APTOS2019, MESSIDOR2, IDRiD, PAPILA, Glaucoma_fundus, JSIEC, Retina or OCTID",
        }
    )
    folder: str = field(metadata={"positional": True, "help": "folder that holds train, val and test"})
    read_images: bool = field(
        default=True, metadata={"help": "whether to decode every image and to look for images that are there twice"}
    )
    output_dir: str | None = field(
        default=None, metadata={"help": "folder for report.json and run.json; none by default"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder's report"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, check the copy, and say what is wrong with it.

    Raises:
        RetFoundError: anything is, so that the command's exit status tells.
    """
    (arguments,) = parse_arguments(
        CheckArguments, argv=argv, description="Check a downloaded copy of a public data set of RETFound's benchmark."
    )
    from .checking import check_copy

    wanted = recipe(arguments.name)
    if arguments.output_dir is not None:
        refuse_existing(arguments.output_dir, arguments.overwrite_output_dir)
    report = check_copy(wanted, arguments.folder, arguments.read_images, progress=True)
    print(f"{wanted.name}: {wanted.task} ({wanted.modality.upper()}); licence: {wanted.licence}; {wanted.site}")
    print(_counts(wanted, report.images))
    for line in [*report.problems[:SHOWN], *(f"note: {note}" for note in report.notes[:SHOWN])]:
        print(line)
    if len(report.problems) > SHOWN:
        print(f"... and {len(report.problems) - SHOWN} more")
    if arguments.output_dir is not None:
        counts = {
            split: {name: len(report.images.get((split, name), [])) for name in wanted.classes} for split in SPLITS
        }
        found = {
            "recipe": dataclasses.asdict(wanted),
            "images": counts,
            "problems": report.problems,
            "notes": report.notes,
        }
        write_json(Path(arguments.output_dir) / "report.json", found)
        write_run_record(arguments.output_dir, "check_dataset", arguments, problems=len(report.problems))
    if report.problems:
        raise RetFoundError(f"{arguments.folder} is not {wanted.name} as published: {len(report.problems)} problem(s)")
    print(f"{arguments.folder} is as it should be")


def _counts(wanted: Recipe, images: dict[tuple[str, str], list[str]]) -> str:
    """A table of images by class and split, with the meaning of each class."""
    width = max(map(len, wanted.classes))
    lines = [f"  {'':<{width}}  {'  '.join(f'{split:>6}' for split in SPLITS)}"]
    for name, meaning in wanted.classes.items():
        cells = [f"{len(images[split, name]):>6,}" if (split, name) in images else f"{'-':>6}" for split in SPLITS]
        lines.append(f"  {name:<{width}}  {'  '.join(cells)}  {meaning}")
    return "\n".join(lines)
