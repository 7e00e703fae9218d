"""The command `fetch`."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ..runs.arguments import parse_arguments
from ..runs.record import write_run_record


@dataclass
class FetchArguments:
    name: str = field(
        metadata={"positional": True, "help": "retfound-cfp, retfound-oct, retfound-meh, retfound-shanghai, "
                  "retfound-dinov2-meh or retfound-dinov2-shanghai"}
    )  # fmt: skip
    output_dir: str | None = field(default=None, metadata={"help": "folder to make; default: the name"})
    modality: Literal["auto", "cfp", "oct"] = field(
        default="auto", metadata={"help": "what the weights were trained on, where their name does not tell"}
    )
    revision: str = field(default="main", metadata={"help": "branch, tag or commit of the repository"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, fetch, and say where the folder is."""
    started = time.time()
    (arguments,) = parse_arguments(
        FetchArguments, argv=argv, description="The official weights from the Hub -> model folder."
    )
    from .fetching import fetch

    folder = fetch(
        arguments.name,
        arguments.output_dir or arguments.name.split("/")[-1],
        modality=None if arguments.modality == "auto" else arguments.modality,
        revision=arguments.revision,
        overwrite=arguments.overwrite_output_dir,
    )
    write_run_record(folder, "fetch", arguments, seconds=round(time.time() - started, 1))
    print(f"{folder}: {', '.join(sorted(path.name for path in folder.iterdir()))}")
