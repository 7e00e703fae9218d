"""Evaluation of a fine-tuned folder on any labelled set, and the command `evaluate`."""

import dataclasses
import logging
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..data.image_cache import content_digests, resolved_paths
from ..data.labelled import LabelledSet, read_labelled
from ..data.splits import SPLITS
from ..errors import BadDataError, join_names
from ..evaluation.document import counts_text
from ..evaluation.predictions import Predictions
from ..evaluation.report import ReportArguments, format_table, measure, read_points, write_report
from ..files import exclusive_folder, read_table, refuse_existing, write_table
from ..options import build_arguments, parse_arguments
from ..record import read_run_record, write_run_record
from ..vocabulary import SINGLE_LABEL, order_classes
from .predict import (
    ForwardArguments,
    load_classifier,
    prepare_split,
    process_state,
    warn_of_modality,
)

logger = logging.getLogger(__name__)
# `id`, `patient_id`, `split`, `path` and `digest` of every image of the labelled set of a training.
SPLITS_FILE = "splits.csv"


@dataclass
class EvaluateArguments:
    model_name_or_path: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id"})
    data: str = field(metadata={"help": "{train,val,test}/<class>/ folder, CSV or parquet table, or Hub dataset id"})
    split: Literal["train", "val", "test", "all"] = field(
        default="test",
        metadata={"help": "split to evaluate on; of a set without splits all images but those trained on"},
    )
    label_columns: list[str] | None = field(
        default=None, metadata={"help": "columns of the targets in a table; default: the model's"}
    )
    patient_column: str | None = field(
        default=None,
        metadata={
            "help": "column of the patients, or image or none as in finetune; default: that of training on these data"
        },
    )
    positive_class: str | None = field(
        default=None,
        metadata={"help": "which of two classes is the finding, for curves and reports; default: the model's"},
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
    with exclusive_folder(forward_arguments.output_dir if process_state().is_main_process else None):
        return _run(arguments, forward_arguments, report)


def _run(arguments: EvaluateArguments, forward_arguments: ForwardArguments, report: ReportArguments) -> Evaluation:
    started, state, output_dir = time.time(), process_state(), forward_arguments.output_dir
    if output_dir is not None and state.is_main_process:
        refuse_existing(output_dir, forward_arguments.overwrite_output_dir)
    name, data, split = arguments.model_name_or_path, arguments.data, arguments.split
    classifier = load_classifier(name)
    order, finding = classifier.class_order, arguments.positive_class
    if finding is not None:
        order = order_classes(classifier.class_names, classifier.problem_type, finding)
    labelled = read_labelled(
        data, label_columns=arguments.label_columns, problem_type=classifier.problem_type,
        class_names=classifier.class_names, image_column=forward_arguments.image_column,
        image_root=forward_arguments.image_root,
        need_splits=() if split == "all" else (split,),
        **split_of_training(name, forward_arguments.seed, data, arguments.patient_column),
    )  # fmt: skip
    if classifier.problem_type == SINGLE_LABEL:  # of a model that had no names for its classes
        classifier.model.config.id2label = dict(enumerate(labelled.class_names))
    if split == "test" and (labelled.table["split"] == "all").all():
        split = "all"  # neither it nor the training has splits for these images
    labelled, what = _leave_out_trained(labelled, split, name, data)
    if state.is_main_process:
        logger.info("%s: %s", data, what)
    report.check_columns(labelled.table, data)
    report.prevalences(classifier.problem_type, classifier.class_names, order)
    report.at_level(dataclasses.replace(labelled, class_order=order).unpredicted(split))
    points = read_points(name, classifier.class_names, report)
    images = prepare_split(
        labelled, split, classifier.processor, on_bad_image=forward_arguments.on_bad_image,
        num_workers=forward_arguments.dataloader_num_workers, cache_dir=arguments.cache_dir,
    )  # fmt: skip
    warn_of_modality(images.images, getattr(classifier.model.config, "modality", None))
    logits = classifier.logits(images.images, **forward_arguments.options)
    predictions = classifier.predictions(images, logits)
    predictions = dataclasses.replace(predictions, class_order=order)
    metrics: dict[str, Any] = {}
    if state.is_main_process and output_dir is None:
        metrics, _ = measure(report.at_level(predictions), report)
    elif state.is_main_process:
        about = classifier.about(f"Evaluation of {Path(name).name}", name, data, {split: images})
        metrics = write_report(output_dir, predictions, report, points, about=about)
        write_run_record(
            output_dir, "evaluate", [arguments, forward_arguments, report], images=len(predictions),
            seconds=round(time.time() - started, 1), rejected_images=images.rejected,
        )  # fmt: skip
    state.wait_for_everyone()
    return Evaluation(metrics, predictions, None if output_dir is None else Path(output_dir))


def split_of_training(
    model_folder: str, seed: int, data: str | None = None, patient_column: str | None = None
) -> dict[str, Any]:
    """Keyword arguments of `read_labelled` that split a set without splits.

    Images of the set of the training keep their splits, whatever has become of the table since. A set of which the
    training saw no image is used as a whole.
    """
    trained = read_run_record(model_folder)
    arguments = trained.get("arguments", {})
    if patient_column is None and data is not None and _is_data_of(trained, data):
        patient_column = arguments.get("patient_column")
    found: dict[str, Any] = {} if patient_column is None else {"patient_column": patient_column}
    found |= {"seed": arguments.get("split_seed", seed), "divide": partial(_divide, model_folder, data)}
    if "split_fractions" in arguments:
        found["split_fractions"] = tuple(arguments["split_fractions"])
    return found


def _divide(model_folder: str, data: str | None, table: pd.DataFrame) -> pd.Series | None:
    if not Path(model_folder, SPLITS_FILE).is_file() and data and _is_data_of(read_run_record(model_folder), data):
        return None  # without a list of images, as the run dealt them
    splits = splits_in_training(model_folder, table, data)
    return splits.fillna("all" if splits.isna().all() else "test")


def splits_in_training(model_folder: str, table: pd.DataFrame, data: str | None) -> pd.Series:
    """Split of each image in the training of a model: "train", "val" or "test", None for an unseen one.

    An image is known by its file, or under another name by its content. Where some are, their patients' other images
    belong to the same split.

    Args:
        model_folder: with `splits.csv`; without it no image is known.
        table: of a labelled set.
        data: source of the table: a `splits.csv` of an earlier version has names alone, which tell nothing elsewhere.
    """
    splits, path = pd.Series(None, table.index, dtype=object), Path(model_folder) / SPLITS_FILE
    if not path.is_file():
        return splits
    known = _read_splits(path)
    if "digest" not in known:
        same = data is not None and _is_data_of(read_run_record(model_folder), data)
        return table["id"].map(_split_by(known, "id")).astype(object) if same else splits
    known = known.sort_values("split", key=lambda names: names.map(SPLITS.index), kind="stable")
    splits = pd.Series(resolved_paths(table["image"]), table.index).map(_split_by(known, "path")).astype(object)
    digests = content_digests(table.loc[splits.isna(), "image"])
    splits[splits.isna()] = pd.Series(digests).map(_split_by(known, "digest")).to_numpy(object)
    if splits.notna().any():
        splits = splits.fillna(table["patient_id"].map(_split_by(known, "patient_id")))
    return splits.where(splits.notna(), None)


def _read_splits(path: Path) -> pd.DataFrame:
    known = read_table(path, dtype=str)
    if not {"id", "split"} <= set(known) or not known["split"].isin(SPLITS).all():
        message = f"{path} names no split of some image ({join_names(SPLITS)}); remove it, or bring it back"
        raise BadDataError(message, source=path)
    return known


def _split_by(known: pd.DataFrame, column: str) -> pd.Series:
    """Split by the values of a column; of one that lies in two, the one that was learned from."""
    named = known[known[column] != ""].drop_duplicates(column)
    return named.set_index(column)["split"]


def _leave_out_trained(labelled: LabelledSet, split: str, model_folder: str, data: str) -> tuple[LabelledSet, str]:
    """The set without images of `split` that the training saw, and what its images are, in words.

    Of "val" only those are left out that were trained on, and none of "train", which is asked for as such.

    Raises:
        BadDataError: all images of the split are (`rows`).
    """
    rows = labelled.rows(split)
    splits = splits_in_training(model_folder, rows, data)
    seen = splits.isin({"train": (), "val": ("train",)}.get(split, ("train", "val")))
    if seen.all():
        raise BadDataError(
            f"all {len(rows)} images of {data} (split {split}) were trained or validated on; give images that the "
            "model has not seen, or pass `split='train'` or `split='val'` to see how it fits those",
            rows=rows["id"], source=data,
        )  # fmt: skip
    if seen.any():
        named = join_names(rows.loc[seen, "id"])
        message = "%s: %d of %d images (split %s) were trained or validated on and are left out (%s)"
        logger.warning(message, data, seen.sum(), len(rows), split, named)
    kept = labelled.table[~labelled.table["id"].isin(rows.loc[seen, "id"])]
    others = labelled.table.loc[~labelled.table["id"].isin(rows["id"]), "split"].value_counts()
    what = "the whole set" if split == "all" else f"the {split} split"
    what += f" (without {', '.join(f'{name} {count}' for name, count in others.items())})" if len(others) else ""
    again = int(splits[~seen].notna().sum())
    place = "test" if split == "all" else split
    known = f"{again} of them lay in the training's {place} split" if again else "the training saw none of them"
    known = known if Path(model_folder, SPLITS_FILE).is_file() else "whether the training saw them is not known"
    count = f"{len(rows) - seen.sum()} of its {len(labelled.table)} images are evaluated"
    return dataclasses.replace(labelled, table=kept), f"{count}, {what}; {known}"


def write_splits(folder: Path, table: pd.DataFrame, base: str | None = None) -> None:
    """Write the images of a training set with their splits, by which `splits_in_training` knows them again.

    Args:
        folder: of the trained model.
        table: of the labelled set.
        base: model that the training started from; what it was trained on itself is kept.
    """
    facts = {"path": resolved_paths(table["image"]), "digest": content_digests(table["image"])}
    rows, before = [table[["id", "patient_id", "split"]].assign(**facts)], Path(base or "", SPLITS_FILE)
    if base is not None and before.is_file():
        known = _read_splits(before)
        # Without patients, whose names may be those of others here.
        rows += [known[known["split"] != "test"].assign(patient_id="")] if "digest" in known else []
    write_table(folder / SPLITS_FILE, pd.concat(rows, ignore_index=True))


def _is_data_of(trained: dict[str, Any], data: str) -> bool:
    learned = trained.get("data_path") or trained.get("arguments", {}).get("data") or ""
    return os.path.realpath(learned) == os.path.realpath(data)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, evaluate and print the metrics."""
    types = (EvaluateArguments, ForwardArguments, ReportArguments)
    parsed = parse_arguments(*types, argv=argv, description="A fine-tuned folder on any labelled set.")
    found, report = run(*parsed), parsed[-1]
    if process_state().is_main_process:
        predictions = report.at_level(found.predictions)
        print(f"\n{counts_text(predictions, report.level)}")
        facts = predictions.problem_type, predictions.class_names, predictions.class_order
        print(f"\n{format_table(found.metrics, *facts)}\n")
        print(f"Written to {found.output_dir}: report.html, metrics.json, predictions.csv, plots/")
