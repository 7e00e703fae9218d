"""The command `embed`: feature vectors of images."""

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

from ..models.starting_points import ACCEPTED
from ..runs.arguments import parse_arguments
from ..runs.files import refuse_existing, whole_file
from ..runs.record import write_run_record
from .arguments import ForwardArguments
from .embedding import embed
from .loading import load_encoder, load_processor
from .processes import process_state


@dataclass
class EmbedArguments:
    model_name_or_path: str = field(metadata={"help": f"adapter folder, or weights: {ACCEPTED}"})
    data: str = field(metadata={"help": "folder of images, folder of parquet shards, or table with a column image"})
    part_size: int = field(default=1000, metadata={"help": "images from one resting point to the next"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    started = time.time()
    arguments, forward_arguments = parse_arguments(
        EmbedArguments, ForwardArguments, argv=argv, description="Feature vectors of images, to features.parquet."
    )
    output_dir = Path(forward_arguments.output_dir)
    state = process_state()
    parts = output_dir / "parts"
    if state.is_main_process and forward_arguments.overwrite_output_dir:
        shutil.rmtree(parts, ignore_errors=True)
    if state.is_main_process and not parts.is_dir():
        refuse_existing(output_dir, forward_arguments.overwrite_output_dir)
    encoder = load_encoder(arguments.model_name_or_path)
    path, rejected = embed(
        encoder,
        load_processor(arguments.model_name_or_path),
        arguments.data,
        output_dir,
        arguments.model_name_or_path,
        forward_arguments.on_bad_image,
        arguments.part_size,
        **forward_arguments.options,
    )
    if state.is_main_process:
        if rejected:
            with whole_file(output_dir / "rejected.csv") as partial:
                pd.DataFrame(rejected, columns=["id", "reason"]).to_csv(partial, index=False)
            print(f"{len(rejected)} images could not be read: {output_dir / 'rejected.csv'}")
        write_run_record(
            output_dir,
            "embed",
            [arguments, forward_arguments],
            seconds=round(time.time() - started, 1),
            rejected_images=rejected,
        )
        print(path)
