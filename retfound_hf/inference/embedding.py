"""Feature vectors of many images, one part at a time, so that a stopped run goes on where it was."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.sources import Part, identities, list_parts
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from ..runs.files import whole_file, write_json
from .batches import SourceSet
from .forward import forward_here, pooled
from .processes import process_state


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
        data: see `data.sources.list_parts`; a parquet shard is a part, other images are cut into `part_size`.
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
    parts = list_parts(data, part_size)
    plan = {
        "model": [model_name, identities(model_name)],
        "processor": processor.to_dict(),
        "precision": options.get("precision", "no"),
    }
    plan = json.loads(json.dumps(plan, default=str))  # as it comes back from the file
    _check_plan(folder, plan)
    own = parts[state.process_index :: state.num_processes]
    for part in tqdm(own, desc="embed", unit="part", disable=not state.is_main_process):
        path = _part_file(folder, part)
        if path.is_file():
            continue
        vectors, rejected = _embed_part(part, encoder, processor, on_bad_image, options)
        write_json(folder / "plan.json", plan)
        write_json(_rejected_file(folder, part), rejected)
        with whole_file(path) as partial:
            pq.write_table(vectors, partial)
    state.wait_for_everyone()
    target = output_dir / "features.parquet"
    rejected = [tuple(entry) for part in parts for entry in json.loads(_rejected_file(folder, part).read_text())]
    if state.is_main_process:
        _merge([_part_file(folder, part) for part in parts], target)
    state.wait_for_everyone()  # until all have read what was rejected
    if state.is_main_process:
        shutil.rmtree(folder)
    return target, rejected


def _embed_part(
    part: Part,
    encoder: PreTrainedModel,
    processor: RetFoundImageProcessor,
    on_bad_image: str,
    options: dict[str, Any],
) -> tuple[pa.Table, list[tuple[str, str]]]:
    ids, sources = part.load()
    vectors, reasons = forward_here(
        encoder, SourceSet(sources, processor), processor, pooled, description=None, **options
    )
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


def _part_file(folder: Path, part: Part) -> Path:
    # A part whose images have changed since has another name, and is computed anew.
    digest = hashlib.sha256(repr(part.identity).encode()).hexdigest()[:16]
    return folder / f"{part.name}-{digest}.parquet"


def _rejected_file(folder: Path, part: Part) -> Path:
    return _part_file(folder, part).with_suffix(".rejected.json")


def _check_plan(folder: Path, plan: dict[str, Any]) -> None:
    path = folder / "plan.json"
    if path.is_file() and json.loads(path.read_text(encoding="utf-8")) != plan:
        raise RetFoundError(f"{folder} holds parts of another model or precision; remove it or choose another folder")


def _merge(paths: list[Path], target: Path) -> None:
    """One file from the parts, one part in memory at a time."""
    with whole_file(target) as partial, pq.ParquetWriter(partial, pq.read_schema(paths[0])) as writer:
        for path in paths:
            writer.write_table(pq.read_table(path))
