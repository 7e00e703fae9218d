"""Feature vectors of many images, resumable part by part, and the command `embed`."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..data.image_sources import Part, ShardPart
from ..errors import OutputError
from ..files import atomic_file, exclusive_folder, identities, read_json, refuse_existing, write_json, write_table
from ..models.loading import accepted_weights, load_encoder, load_processor
from ..options import build_arguments, parse_arguments
from ..record import write_run_record
from .predict import ForwardArguments, forward_part, pooled, process_state


@dataclass
class EmbedArguments:
    model_name_or_path: str = field(metadata={"help": f"adapter folder, or weights: {accepted_weights()}"})
    data: str = field(metadata={"help": "folder of images, folder of parquet shards, or table with a column image"})
    part_size: int = field(default=1000, metadata={"help": "images per resumable part"})


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors of images.

    Attributes:
        ids: (images,) names: paths relative to the folder, or as the table or the list has them.
        vectors: float32 (images, width), in the order of `ids`.
        rejected: id and reason of each unreadable image that was left out.
        output: `features.parquet`, None where nothing was written.
    """

    ids: np.ndarray
    vectors: np.ndarray
    rejected: list[tuple[str, str]]
    output: Path | None = None


def embed(
    model: str | Path, images: str | Path | Sequence[Any], output_dir: str | Path | None = None, **options: Any
) -> Embeddings:
    """Feature vectors of images: RETFound's mean of the patch tokens, normalised.

    Args:
        model: folder, adapter folder, Hub id or starting point.
        images: folder of images or parquet shards, table with a column `image`, or a list of paths or `PIL.Image`s.
        output_dir: folder for `features.parquet`, `rejected.csv` and `run.json`; None writes nothing.
        **options: fields of `EmbedArguments` and `ForwardArguments`, named as the flags of `retfound embed`.

    Raises:
        BadDataError: unreadable images, unless `on_bad_image="skip"`.
    """
    given = {"model_name_or_path": str(model), "data": images, "output_dir": output_dir, **options}
    arguments, forward_arguments = build_arguments((EmbedArguments, ForwardArguments), given)
    if output_dir is None:
        encoder, processor = load_encoder(str(model)), load_processor(str(model))
        found = [
            forward_part(encoder, part, processor, pooled, forward_arguments.on_bad_image, **forward_arguments.options)
            for part in forward_arguments.source(images).parts(arguments.part_size)
        ]
        ids, parts, reasons = zip(*found, strict=True)
        return Embeddings(np.concatenate(ids).astype(object), np.concatenate(parts), list(chain(*reasons)))
    path, rejected = run(arguments, forward_arguments)
    table = pq.read_table(path)
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return Embeddings(table["id"].to_numpy(), vectors, rejected, path)


def run(arguments: EmbedArguments, forward_arguments: ForwardArguments) -> tuple[Path, list[tuple[str, str]]]:
    """Write `features.parquet` (`id` string, `vector` list of float32), `rejected.csv` and `run.json`.

    Parts lie in `output_dir/parts` until all are there; a run with the same model takes up those it finds of which no
    image has changed. Several processes share the parts among them.

    Returns:
        The file, and (id, reason) of every image that was skipped.

    Raises:
        BadDataError: unreadable images, unless they are skipped.
        OutputError: parts of another model in the folder, or another run in it.
    """
    with exclusive_folder(forward_arguments.output_dir if process_state().is_main_process else None):
        return _run(arguments, forward_arguments)


def _run(arguments: EmbedArguments, forward_arguments: ForwardArguments) -> tuple[Path, list[tuple[str, str]]]:
    started, state = time.time(), process_state()
    model_name, output_dir = arguments.model_name_or_path, Path(str(forward_arguments.output_dir))
    folder = output_dir / "parts"
    if state.is_main_process and forward_arguments.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    if state.is_main_process and not folder.is_dir():
        refuse_existing(output_dir, forward_arguments.overwrite_output_dir)
    encoder, processor = load_encoder(model_name), load_processor(model_name)
    options = forward_arguments.options
    parts = list(forward_arguments.source(arguments.data).parts(arguments.part_size))
    files = [_part_file(folder, part) for part in parts]  # before any image can change
    plan = {"model": [model_name, identities(model_name)], "processor": processor.to_dict()}
    # As it comes back from the file.
    plan = json.loads(json.dumps({**plan, "precision": options["precision"]}, default=str))
    stored = folder / "plan.json"
    if read_json(stored, absent=plan) != plan:
        raise OutputError(
            f"{folder} holds parts of another model or precision; remove it or choose another folder", path=folder
        )
    own = list(zip(parts, files, strict=True))[state.process_index :: state.num_processes]
    for part, path in tqdm(own, desc="embed", unit="part", disable=not state.is_main_process):
        if path.is_file():
            continue
        ids, vectors, rejected = forward_part(
            encoder, part, processor, pooled, forward_arguments.on_bad_image, **options
        )
        column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
        write_json(stored, plan)
        write_json(_rejected_file(path), rejected)
        with atomic_file(path) as partial:
            pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": column}), partial)
    state.wait_for_everyone()
    target = output_dir / "features.parquet"
    rejected = [tuple(entry) for path in files for entry in read_json(_rejected_file(path), list)]
    if state.is_main_process:
        # One part in memory at a time.
        with atomic_file(target) as partial, pq.ParquetWriter(partial, pq.read_schema(files[0])) as writer:
            for path in files:
                writer.write_table(pq.read_table(path))
    state.wait_for_everyone()  # until all have read what was rejected
    if state.is_main_process:
        shutil.rmtree(folder)
        if rejected:
            write_table(output_dir / "rejected.csv", pd.DataFrame(rejected, columns=["id", "reason"]))
        write_run_record(
            output_dir, "embed", [arguments, forward_arguments], seconds=round(time.time() - started, 1),
            rejected_images=rejected,
        )  # fmt: skip
    return target, rejected


def _part_file(folder: Path, part: Part | ShardPart) -> Path:
    # A part whose images have changed since has another name, and is computed anew.
    return folder / f"{part.name}-{part.identity[:16]}.parquet"


def _rejected_file(path: Path) -> Path:
    return path.with_suffix(".rejected.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    arguments, forward_arguments = parse_arguments(
        EmbedArguments, ForwardArguments, argv=argv, description="Feature vectors of images, to features.parquet."
    )
    path, rejected = run(arguments, forward_arguments)
    if process_state().is_main_process:
        if rejected:
            print(f"{len(rejected)} images could not be read: {path.parent / 'rejected.csv'}")
        print(path)
