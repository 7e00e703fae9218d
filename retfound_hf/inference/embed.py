"""Feature vectors of many images, resumable part by part, and the command `embed`."""

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.image_sources import Part, ShardPart, identities, open_files
from ..errors import RetFoundError
from ..files import atomic_file, refuse_existing, write_json
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import load_encoder, load_processor
from ..models.starting_points import accepted_weights
from ..options import parse_arguments
from ..record import write_run_record
from .predict import ForwardArguments, SourceSet, forward_here, pooled, process_state


def embed(
    encoder: PreTrainedModel,
    processor: RetFoundImageProcessor,
    data: str,
    output_dir: str | Path,
    model_name: str,
    on_bad_image: str = "error",
    part_size: int = 1000,
    **options: Any,
) -> tuple[Path, list[tuple[str, str]]]:
    """Write `features.parquet` (`id` string, `vector` list of float32) for all images of `data`.

    Parts lie in `output_dir/parts` until all are there; a run with the same model takes up those it finds of which no
    image has changed. Several processes share the parts among them.

    Args:
        data: see `data.image_sources.open_files`; a parquet shard is a part, other images are cut into `part_size`.
        model_name: folder or Hub id of the model, with which the parts are marked.
        options: `batch_size`, `num_workers`, `precision`, as in `forward.forward_here`.

    Returns:
        The file, and (id, reason) of every image that was skipped.

    Raises:
        RetFoundError: unreadable images unless they are skipped, or parts of another model in the folder.
    """
    state = process_state()
    output_dir = Path(output_dir)
    folder = output_dir / "parts"
    parts = list(open_files(data).parts(part_size))
    files = [_part_file(folder, part) for part in parts]  # before any image can change
    plan = {
        "model": [model_name, identities(model_name)],
        "processor": processor.to_dict(),
        "precision": options.get("precision", "no"),
    }
    plan = json.loads(json.dumps(plan, default=str))  # as it comes back from the file
    _check_plan(folder, plan)
    own = list(zip(parts, files, strict=True))[state.process_index :: state.num_processes]
    for part, path in tqdm(own, desc="embed", unit="part", disable=not state.is_main_process):
        if path.is_file():
            continue
        vectors, rejected = _embed_part(part, encoder, processor, on_bad_image, options)
        write_json(folder / "plan.json", plan)
        write_json(_rejected_file(path), rejected)
        with atomic_file(path) as partial:
            pq.write_table(vectors, partial)
    state.wait_for_everyone()
    target = output_dir / "features.parquet"
    rejected = [tuple(entry) for path in files for entry in json.loads(_rejected_file(path).read_text())]
    if state.is_main_process:
        _merge(files, target)
    state.wait_for_everyone()  # until all have read what was rejected
    if state.is_main_process:
        shutil.rmtree(folder)
    return target, rejected


def _embed_part(
    part: Part | ShardPart,
    encoder: PreTrainedModel,
    processor: RetFoundImageProcessor,
    on_bad_image: str,
    options: dict[str, Any],
) -> tuple[pa.Table, list[tuple[str, str]]]:
    refs = part.refs
    ids, images = [ref.id for ref in refs], SourceSet([ref.image for ref in refs], processor)
    vectors, reasons = forward_here(encoder, images, processor, pooled, description=None, **options)
    rejected = [(name, reason) for name, reason in zip(ids, reasons, strict=True) if reason]
    if rejected and on_bad_image == "error":
        raise RetFoundError(
            f"{len(rejected)} of {len(ids)} images of part {part.name} cannot be read, such as {rejected[0][0]} "
            f"({rejected[0][1]}); repair or remove them, or pass --on_bad_image skip"
        )
    kept = np.flatnonzero([not reason for reason in reasons])
    width = vectors.shape[1]
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[kept].ravel(), pa.float32()), width)
    return pa.table({"id": pa.array([ids[index] for index in kept], pa.string()), "vector": column}), rejected


def _part_file(folder: Path, part: Part | ShardPart) -> Path:
    # A part whose images have changed since has another name, and is computed anew.
    return folder / f"{part.name}-{part.identity[:16]}.parquet"


def _rejected_file(path: Path) -> Path:
    return path.with_suffix(".rejected.json")


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / "plan.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise RetFoundError(f"{folder} holds parts of another model or precision; remove it or choose another folder")


def _merge(paths: list[Path], target: Path) -> None:
    """One file from the parts, one part in memory at a time."""
    with atomic_file(target) as partial, pq.ParquetWriter(partial, pq.read_schema(paths[0])) as writer:
        for path in paths:
            writer.write_table(pq.read_table(path))


@dataclass
class EmbedArguments:
    model_name_or_path: str = field(metadata={"help": f"adapter folder, or weights: {accepted_weights()}"})
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
            with atomic_file(output_dir / "rejected.csv") as partial:
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
