"""The command `evaluate`: a fine-tuned folder on any labelled set."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..data.labelled import read_labelled
from ..evaluation.table import format_table
from ..runs.arguments import parse_arguments
from ..runs.files import refuse_existing
from ..runs.record import write_run_record
from .arguments import ForwardArguments
from .forward import predict_logits, to_scores
from .loading import load_classifier, load_processor
from .operating_points import read_points
from .processes import process_state
from .report import write_report
from .report_arguments import ReportArguments
from .sets import prepare_split, warn_of_modality
from .training_split import refuse_trained_images, split_of_training


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
