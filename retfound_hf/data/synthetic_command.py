"""The command `make_synthetic`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..runs.arguments import parse_arguments
from ..runs.record import write_run_record


@dataclass
class SyntheticArguments:
    out: str = field(metadata={"positional": True, "help": "folder to make"})
    modality: Literal["cfp", "oct"] = field(
        default="cfp", metadata={"help": "colour fundus photographs or OCT B-scans"}
    )
    stage: Literal["early", "advanced"] = field(
        default="early", metadata={"help": "of the disease; advanced lesions are large and in groups (CFP only)"}
    )
    camera: Literal["clinic", "handheld"] = field(
        default="clinic", metadata={"help": "photographs of a handheld camera are grainy (CFP only)"}
    )
    num_patients: int = field(default=120, metadata={"help": "patients; each has two eyes, some several photographs"})
    image_size: int = field(default=256, metadata={"help": "height of the images in pixels"})
    seed: int = field(default=0, metadata={"help": "the same seed gives the same files"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, make the set, and say where it is."""
    (arguments,) = parse_arguments(
        SyntheticArguments, argv=argv, description="A synthetic labelled set, split by patient."
    )
    from .synthetic import make_synthetic

    folder = make_synthetic(
        arguments.out,
        arguments.modality,
        arguments.num_patients,
        arguments.image_size,
        arguments.seed,
        arguments.overwrite_output_dir,
        arguments.stage,
        arguments.camera,
    )
    write_run_record(folder, "make_synthetic", arguments)
    print(folder)
