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
from ..errors import BadDataError, join_names
from ..evaluation.predictions import Predictions
from ..evaluation.report import ReportArguments, format_table, measure, read_points, write_report
from ..files import refuse_existing
from ..options import build_arguments, parse_arguments
from ..record import write_run_record
from .predict import ForwardArguments, load_classifier, prepare_split, process_state, warn_of_modality

SPLITS_FILE = "splits.csv"  # `id`, `patient_id` and `split` of every image of the labelled set of a training


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
    patient_column: str | None = field(
        default=None,
        metadata={"help": "column of the patients, image or none; default: that of training on these data"},
    )
    cache_dir: str | None = field(
        default=None, metadata={"help": "where decoded images are kept between runs; default: the datasets cache"}
    )


@dataclass(frozen=True)
class Evaluation:
    """Result of `evaluate`.

    Attributes:
        metrics: as in `metrics.json`; empty on processes other than the main one.
        predictions: of the images, whatever the level of the metrics.
        output_dir: folder of the report, None where nothing was written.
    """

    metrics: dict[str, Any]
    predictions: Predictions
    output_dir: Path | None


def evaluate(model: str | Path, data: str | Path, output_dir: str | Path | None = None, **options: Any) -> Evaluation:
    """Evaluate a fine-tuned classifier or regressor on a labelled set.

    Args:
        model: fine-tuned folder, adapter folder or Hub id.
        data: folder `{train,val,test}/<class>/`, table, or Hub data set.
        output_dir: folder for `metrics.json`, `predictions.csv`, `plots/` and `run.json`; None writes nothing.
        **options: fields of `EvaluateArguments`, `ForwardArguments` and `ReportArguments`, named as the flags of
            `retfound evaluate`.

    Raises:
        BadDataError: the labelled set cannot be used; `.rows` lists the offending ones.
    """
    given = {"model_name_or_path": str(model), "data": str(data), "output_dir": output_dir, **options}
    return run(*build_arguments((EvaluateArguments, ForwardArguments, ReportArguments), given))


def run(arguments: EvaluateArguments, forward_arguments: ForwardArguments, report: ReportArguments) -> Evaluation:
    """Evaluate and write what `report` asks for.

    A model folder with thresholds (`operating_points.json`) also brings `operating_points.csv`: what they reach here.
    """
    started, state, output_dir = time.time(), process_state(), forward_arguments.output_dir
    if output_dir is not None and state.is_main_process:
        refuse_existing(output_dir, forward_arguments.overwrite_output_dir)
    name, data, split = arguments.model_name_or_path, arguments.data, arguments.split
    classifier = load_classifier(name)
    labelled = read_labelled(
        data, label_columns=arguments.label_columns, problem_type=classifier.problem_type,
        class_names=classifier.class_names, image_column=arguments.image_column, image_root=arguments.image_root,
        need_splits=() if split == "all" else (split,),
        **split_of_training(name, forward_arguments.seed, data, arguments.patient_column),
    )  # fmt: skip
    if split == "test":
        refuse_trained_images(name, labelled, data)
    report.check_columns(labelled.table, data)
    points = read_points(name, classifier.class_names, report)
    images = prepare_split(
        labelled, split, classifier.processor, on_bad_image=forward_arguments.on_bad_image,
        num_workers=forward_arguments.dataloader_num_workers, cache_dir=arguments.cache_dir,
    )  # fmt: skip
    warn_of_modality(images.images, getattr(classifier.model.config, "modality", None))
    logits = classifier.logits(images.images, **forward_arguments.options)
    predictions = classifier.predictions(images, logits)
    metrics: dict[str, Any] = {}
    if state.is_main_process and output_dir is None:
        metrics, _ = measure(report.at_level(predictions), report)
    elif state.is_main_process:
        metrics = write_report(output_dir, predictions, report, points)
        write_run_record(
            output_dir, "evaluate", [arguments, forward_arguments, report], images=len(predictions),
            seconds=round(time.time() - started, 1), rejected_images=images.rejected,
        )  # fmt: skip
    state.wait_for_everyone()
    return Evaluation(metrics, predictions, None if output_dir is None else Path(output_dir))


def split_of_training(
    model_folder: str, seed: int, data: str | None = None, patient_column: str | None = None
) -> dict[str, Any]:
    """How a set without splits is split: as the run that made the model split it.

    Another seed or other shares, or for the data of that run other patients, would put training images into the test
    split.
    """
    trained = _arguments(model_folder)
    if patient_column is None and data is not None and _is_data_of(trained, data):
        patient_column = trained.get("patient_column")
    patients = {} if patient_column is None else {"patient_column": patient_column}
    if "split_fractions" not in trained:
        return {"seed": seed, **patients}
    return {"seed": trained["split_seed"], "split_fractions": tuple(trained["split_fractions"]), **patients}


def refuse_trained_images(model_folder: str, labelled: LabelledSet, data: str) -> None:
    """Raise if images of the test split were trained or validated on: a row more or less deals all patients anew.

    Only the set of the training is looked at, since file names of other sets may be the same by chance.
    """
    path, trained = Path(model_folder) / SPLITS_FILE, _arguments(model_folder)
    if not path.is_file() or not _is_data_of(trained, data):
        return
    known = pd.read_csv(path, dtype=str, keep_default_na=False)
    seen = set(known.loc[known["split"] != "test", "id"])
    table = labelled.table
    again = [name for name in table.loc[table["split"] == "test", "id"] if name in seen]
    if again:
        raise BadDataError(
            f"{len(again)} test image(s) of {data} were trained or validated on ({join_names(again)}): the set has "
            f"changed since, and with it its splits; give it a column split, which {path} has for the others",
            rows=again, source=data,
        )  # fmt: skip


def _is_data_of(trained: dict[str, Any], data: str) -> bool:
    return os.path.realpath(trained.get("data") or "") == os.path.realpath(data)


def _arguments(model_folder: str) -> dict[str, Any]:
    record = Path(model_folder) / "run.json"
    return json.loads(record.read_text(encoding="utf-8"))["arguments"] if record.is_file() else {}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, evaluate and print the metrics."""
    types = (EvaluateArguments, ForwardArguments, ReportArguments)
    found = run(*parse_arguments(*types, argv=argv, description="A fine-tuned folder on any labelled set."))
    if process_state().is_main_process:
        print(f"\n{format_table(found.metrics, found.predictions.class_names)}\n")
        print(f"Written to {found.output_dir}: metrics.json, predictions.csv, plots/")
