"""The command `convert_checkpoint`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ...runs.arguments import parse_arguments
from ...runs.record import write_run_record
from .convert import convert_checkpoint


@dataclass
class ConvertArguments:
    checkpoint: str = field(
        metadata={
            "positional": True,
            "help": "official .pth file (RETFound, SimCLR, SwAV, MoCo v3, DINO), or a Hub id",
        }
    )
    out: str = field(metadata={"positional": True, "help": "model folder to make"})
    modality: Literal["auto", "cfp", "oct", "none"] = field(
        default="auto",
        metadata={"help": "what the weights were trained on, none for natural images; auto reads it from the name"},
    )
    head_norm: Literal["auto", "single", "double"] = field(
        default="auto",
        metadata={"help": "fine-tuned files: single for the code of 2023, double for the code since February 2025"},
    )
    class_names: list[str] | None = field(
        default=None, metadata={"help": "fine-tuned files: class names in the order of the head"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, convert, and say where the folder is."""
    (arguments,) = parse_arguments(
        ConvertArguments, argv=argv, description="Official .pth checkpoint -> model folder."
    )
    folder = convert_checkpoint(
        arguments.checkpoint,
        arguments.out,
        modality=None if arguments.modality == "auto" else arguments.modality,
        head_norm=arguments.head_norm,
        class_names=arguments.class_names,
        overwrite=arguments.overwrite_output_dir,
    )
    write_run_record(folder, "convert_checkpoint", arguments)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
