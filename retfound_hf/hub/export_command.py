"""The command `export`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..runs.arguments import parse_arguments
from ..runs.record import write_run_record


@dataclass
class ExportArguments:
    folder: str = field(metadata={"positional": True, "help": "model or adapter folder, or Hub id"})
    format: Literal["timm", "onnx"] = field(metadata={"help": "a state dict for timm's ViT-L, or an ONNX graph"})
    output_dir: str | None = field(default=None, metadata={"help": "folder to make; default: FOLDER-FORMAT"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, export, and say how to load the result."""
    (arguments,) = parse_arguments(
        ExportArguments, argv=argv, description="A model folder in the format of timm or ONNX, outputs compared."
    )
    from .exporting import export

    output_dir = arguments.output_dir or f"{arguments.folder.rstrip('/').split('/')[-1]}-{arguments.format}"
    folder = export(arguments.folder, output_dir, arguments.format, arguments.overwrite_output_dir)
    write_run_record(folder, "export", arguments)
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
