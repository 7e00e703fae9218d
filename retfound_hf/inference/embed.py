"""Feature vectors of many images, resumable part by part, and the command `embed`."""

import json
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from ..cluster import ClusterArguments
from ..data.image_sources import Part, ShardPart
from ..data.stored_images import ACCEPTED_FILES
from ..errors import BadArgumentError, OutputError
from ..files import (
    atomic_file,
    exclusive_folder,
    file_lock,
    identities,
    read_json,
    read_rows,
    refuse_existing,
    write_json,
    write_table,
)
from ..models.loading import accepted_weights, load_encoder, load_processor
from ..options import build_arguments, parse_arguments
from ..record import write_run_record
from .predict import ForwardArguments, forward_part, pooled, process_state

FEATURES = "features.parquet"


@dataclass
class EmbedArguments:
    model_name_or_path: str = field(metadata={"help": f"adapter folder, or weights: {accepted_weights()}"})
    data: str = field(metadata={"help": ACCEPTED_FILES})
    part_size: int = field(default=1000, metadata={"help": "images per resumable part"})


@dataclass(frozen=True)
class Embeddings:
    """Feature vectors of images.

    Attributes:
        ids: (images,) names: paths relative to the folder, or as the table or the list has them.
        vectors: float32 (images, width), in the order of `ids`.
        rejected: id and reason of each unreadable image that was left out.
        output: `features.parquet`, None where it is not written.
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
        images: as `open_files` takes them: files, a table, a Hub id, an address, or a list of paths, bytes or
            `PIL.Image`s.
        output_dir: folder for `features.parquet`, `rejected.csv` and `run.json`; None writes nothing.
        **options: fields of `EmbedArguments`, `ForwardArguments` and `ClusterArguments`, named as the flags of
            `retfound embed`. With `part` the result has the images of all parts that are there.

    Raises:
        BadDataError: unreadable images, unless `on_bad_image="skip"`.
    """
    given = {"model_name_or_path": str(model), "data": images, "output_dir": output_dir, **options}
    kinds = (EmbedArguments, ForwardArguments, ClusterArguments)
    arguments, forward_arguments, cluster = build_arguments(kinds, given)
    if output_dir is None:
        for name in ("part", "cluster"):
            if value := getattr(cluster, name):
                message = f"`{name}={value}` needs `output_dir`, where the parts are joined"
                raise BadArgumentError(message, field=name, value=value)
        encoder, processor = load_encoder(str(model)), load_processor(str(model))
        found = [
            forward_part(encoder, part, processor, pooled, forward_arguments.on_bad_image, **forward_arguments.options)
            for part in forward_arguments.source(images).parts(arguments.part_size)
        ]
        ids, parts, reasons = zip(*found, strict=True)
        return Embeddings(np.concatenate(ids).astype(object), np.concatenate(parts), list(chain(*reasons)))
    made = run(arguments, forward_arguments, cluster)
    if not made.files:
        return Embeddings(np.empty(0, object), np.empty((0, 0), np.float32), made.rejected)
    table = pa.concat_tables([pq.read_table(path) for path in made.files])
    vectors = table["vector"].combine_chunks().flatten().to_numpy().reshape(len(table), -1)
    return Embeddings(table["id"].to_numpy(), vectors, made.rejected, None if made.missing else made.files[0])


class EmbedResult(NamedTuple):
    """Result of `run`: `features.parquet`, or the files of the parts that are there while `missing` are not."""

    files: list[Path]
    rejected: list[tuple[str, str]]
    missing: int = 0


def run(arguments: EmbedArguments, forward_arguments: ForwardArguments, cluster: ClusterArguments) -> EmbedResult:
    """Write `features.parquet` (`id` string, `vector` list of float32), `rejected.csv` and `run.json`.

    Parts lie in `output_dir/parts` until all are there; a run with the same model takes up those it finds of which no
    image has changed. Several processes share the parts among them, as do several machines, of which the last one
    joins them.

    Raises:
        BadDataError: unreadable images, unless they are skipped.
        OutputError: parts of another model in the folder, or another run in it.
        RetFoundError: failed jobs of a cluster.
    """
    started, is_main = time.time(), process_state().is_main_process
    output_dir = Path(str(forward_arguments.output_dir))
    cluster.refuse_overwriting(forward_arguments.overwrite_output_dir)
    with exclusive_folder(output_dir if is_main and cluster.part is None else None):
        files = _compute(arguments, forward_arguments, cluster)
        with file_lock(output_dir / FEATURES) if is_main and cluster.part else nullcontext():
            made = _join(files, output_dir)
            if is_main and not made.missing and files[0].parent.is_dir():
                shutil.rmtree(files[0].parent)
                if made.rejected:
                    write_table(output_dir / "rejected.csv", pd.DataFrame(made.rejected, columns=["id", "reason"]))
                write_run_record(
                    output_dir, "embed", [arguments, forward_arguments, cluster],
                    seconds=round(time.time() - started, 1), rejected_images=made.rejected,
                )  # fmt: skip
    return made


def _compute(arguments: EmbedArguments, forward_arguments: ForwardArguments, cluster: ClusterArguments) -> list[Path]:
    """Compute the parts of this machine's share that are not there yet; returns the files of all parts."""
    state, model_name = process_state(), arguments.model_name_or_path
    output_dir = Path(str(forward_arguments.output_dir))
    folder = output_dir / "parts"
    if state.is_main_process and forward_arguments.overwrite_output_dir:
        shutil.rmtree(folder, ignore_errors=True)
    if state.is_main_process and not folder.is_dir():
        refuse_existing(output_dir, forward_arguments.overwrite_output_dir)
    encoder = load_encoder(model_name) if cluster.cluster is None else None
    processor = load_processor(model_name)
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
    if encoder is None:
        write_json(stored, plan)  # by which the jobs know the folder
        left = [index for index, path in enumerate(files) if not path.is_file()]
        task = partial(_compute, arguments, replace(forward_arguments, overwrite_output_dir=False))
        cluster.run(task, output_dir, [share for share in cluster.shares if any(map(share.owns, left))])
        return files
    own = cluster.share.of(list(zip(parts, files, strict=True)))[state.process_index :: state.num_processes]
    with exclusive_folder(output_dir if state.is_main_process and cluster.part else None, cluster.part or ""):
        for part, path in tqdm(own, desc="embed", unit="part", disable=not state.is_main_process):
            if path.is_file():
                continue
            ids, vectors, rejected = forward_part(
                encoder, part, processor, pooled, forward_arguments.on_bad_image, **options
            )
            column = pa.FixedSizeListArray.from_arrays(pa.array(vectors.ravel(), pa.float32()), vectors.shape[1])
            write_json(stored, plan)
            write_json(_rejected_file(path), rejected)
            with atomic_file(path) as partial_file:
                pq.write_table(pa.table({"id": pa.array(ids, pa.string()), "vector": column}), partial_file)
    return files


def _join(files: list[Path], output_dir: Path) -> EmbedResult:
    """Join the parts into one file if all are there, unless another machine did."""
    state, target = process_state(), output_dir / FEATURES
    state.wait_for_everyone()
    if target.is_file() and not files[0].parent.is_dir():
        rows = read_rows(output_dir / "rejected.csv") if (output_dir / "rejected.csv").is_file() else []
        return EmbedResult([target], [(row["id"], row["reason"]) for row in rows])
    found = [path for path in files if path.is_file()]
    rejected = [(name, reason) for path in found for name, reason in read_json(_rejected_file(path), list)]
    if found == files and state.is_main_process:
        # One part in memory at a time.
        with atomic_file(target) as partial_file, pq.ParquetWriter(partial_file, pq.read_schema(files[0])) as writer:
            for path in files:
                writer.write_table(pq.read_table(path))
    state.wait_for_everyone()  # until all have read what was rejected
    return EmbedResult([target] if found == files else found, rejected, len(files) - len(found))


def _part_file(folder: Path, part: Part | ShardPart) -> Path:
    # A part whose images have changed since has another name, and is computed anew.
    return folder / f"{part.name}-{part.identity[:16]}.parquet"


def _rejected_file(path: Path) -> Path:
    return path.with_suffix(".rejected.json")


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    arguments, forward_arguments, cluster = parse_arguments(
        EmbedArguments,
        ForwardArguments,
        ClusterArguments,
        argv=argv,
        description="Feature vectors of images, to features.parquet.",
    )
    made = run(arguments, forward_arguments, cluster)
    if not process_state().is_main_process:
        return
    if made.missing:
        print(f"{made.missing} parts are missing; the machine that makes the last of them writes {FEATURES}")
        return
    if made.rejected:
        print(f"{len(made.rejected)} images could not be read: {made.files[0].parent / 'rejected.csv'}")
    print(made.files[0])
