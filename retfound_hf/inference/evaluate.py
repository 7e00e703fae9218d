"""Evaluation of a fine-tuned folder on any labelled set, and the command `evaluate`."""

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..data.labelled import LabelledSet, read_labelled
from ..errors import RetFoundError, join_names
from ..evaluation.report import ReportArguments, format_table, read_points, write_report
from ..files import atomic_file, refuse_existing
from ..models.loading import load_classifier, load_processor
from ..options import parse_arguments
from ..record import write_run_record
from .predict import ForwardArguments, predict_logits, prepare_split, process_state, to_scores, warn_of_modality

SPLITS_FILE = "splits.csv"


def write_splits(folder: Path, labelled: LabelledSet) -> None:
    """Write `splits.csv`: `id`, `patient_id` and `split` of every image of the set."""
    with atomic_file(folder / SPLITS_FILE) as partial:
        labelled.table[["id", "patient_id", "split"]].to_csv(partial, index=False)


def split_of_training(model_folder: str, seed: int) -> dict[str, Any]:
    """How a set without splits is split: as the run that made the model split it.

    Another seed or other shares would put training images into the test split.
    """
    trained = _arguments(model_folder)
    if "split_fractions" not in trained:
        return {"seed": seed}
    return {"seed": trained["split_seed"], "split_fractions": tuple(trained["split_fractions"])}


def refuse_trained_images(model_folder: str, labelled: LabelledSet, data: str) -> None:
    """Raise if images of the test split were trained or validated on: a row more or less deals all patients anew.

    Only the set of the training is looked at, since file names of other sets may be the same by chance.
    """
    path, trained = Path(model_folder) / SPLITS_FILE, _arguments(model_folder)
    if not path.is_file() or os.path.realpath(trained.get("data") or "") != os.path.realpath(data):
        return
    known = pd.read_csv(path, dtype=str, keep_default_na=False)
    seen = set(known.loc[known["split"] != "test", "id"])
    table = labelled.table
    again = [name for name in table.loc[table["split"] == "test", "id"] if name in seen]
    if again:
        raise RetFoundError(
            f"{len(again)} test image(s) of {data} were trained or validated on ({join_names(again)}): the set has "
            f"changed since, and with it its splits; give it a column split, which {path} has for the others"
        )


def _arguments(model_folder: str) -> dict[str, Any]:
    record = Path(model_folder) / "run.json"
    return json.loads(record.read_text(encoding="utf-8"))["arguments"] if record.is_file() else {}


@dataclass
class EvaluateArguments:
    model_name_or_path: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id"})
    data: str = field(metadata={"help": "{train,val,test}/<class>/ folder, CSV or parquet table, or Hub dataset id"})
    split: Literal["train", "val", "test", "all"] = field(default="test", metadata={"help": "split to evaluate on"})
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "columns of the targets in a table; default: the model's"}
    )
    image_column: str = field(default="image", metadata={"help": "column of the image paths in a table"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: the table's"}
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "where decoded images are kept between runs; default: the datasets cache"}
    )


def evaluate(
    arguments: EvaluateArguments, forward_arguments: ForwardArguments, report: ReportArguments | None = None
) -> dict[str, Any]:
    """Evaluate and write `metrics.json`, `predictions.csv`, `plots/` and `run.json`; the metrics are returned.

    What else is written, `report` says. A model folder with thresholds (`operating_points.json`) also brings
    `operating_points.csv`: what they reach on this set.
    """
    started, report = time.time(), report or ReportArguments()
    state = process_state()
    if state.is_main_process:
        refuse_existing(forward_arguments.output_dir, forward_arguments.overwrite_output_dir)
    model = load_classifier(arguments.model_name_or_path)
    class_names = tuple(str(model.config.id2label[index]) for index in range(model.config.num_labels))
    problem_type = model.config.problem_type or "single_label_classification"
    labelled = read_labelled(
        arguments.data,
        label_columns=arguments.label_columns,
        problem_type=problem_type,
        class_names=class_names,
        image_column=arguments.image_column,
        image_root=arguments.image_root,
        **split_of_training(arguments.model_name_or_path, forward_arguments.seed),
        need_splits=() if arguments.split == "all" else (arguments.split,),
    )
    if arguments.split == "test":
        refuse_trained_images(arguments.model_name_or_path, labelled, arguments.data)
    report.check_columns(labelled.table, arguments.data)
    points = read_points(arguments.model_name_or_path, class_names, report)
    processor = load_processor(arguments.model_name_or_path)
    prepared = prepare_split(
        labelled,
        arguments.split,
        processor,
        on_bad_image=forward_arguments.on_bad_image,
        num_workers=forward_arguments.dataloader_num_workers,
        cache_dir=arguments.cache_dir,
    )
    warn_of_modality(prepared.images, getattr(model.config, "modality", None))
    scores = to_scores(predict_logits(model, prepared.images, processor, **forward_arguments.options), problem_type)
    metrics: dict[str, Any] = {}
    if state.is_main_process:
        output_dir = Path(forward_arguments.output_dir)
        metrics = write_report(
            output_dir,
            prepared.rows,
            prepared.targets,
            scores,
            problem_type,
            class_names,
            report=report,
            points=points,
        )
        write_run_record(
            output_dir,
            "evaluate",
            [arguments, forward_arguments, report],
            seconds=round(time.time() - started, 1),
            images=len(prepared.images),
            rejected_images=prepared.rejected,
        )
        print(
            f"\n{format_table(metrics, class_names)}\n\nWritten to {output_dir}: metrics.json, predictions.csv, plots/"
        )
    state.wait_for_everyone()
    return metrics


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    evaluate(
        *parse_arguments(
            EvaluateArguments,
            ForwardArguments,
            ReportArguments,
            argv=argv,
            description="A fine-tuned folder on any labelled set.",
        )
    )
