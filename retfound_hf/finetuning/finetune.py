"""Fine-tuning from arguments to a finished folder: the function and the command `finetune`."""

import json
import logging
import os
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import TrainerState, set_seed

from ..data.labelled import LabelledSet, keep_fraction, read_labelled
from ..errors import BadArgumentError, OutputError, join_names, require
from ..evaluation.calibration import fit_scaling
from ..evaluation.document import counts_text, find_column
from ..evaluation.metrics import metrics_for
from ..evaluation.predictions import Predictions
from ..evaluation.report import format_table, write_points, write_report
from ..evaluation.thresholds import OperatingPoint, choose_points
from ..files import exclusive_folder, move_into, output_faults, refuse_existing, write_json
from ..inference.evaluate import splits_in_training, write_splits
from ..inference.predict import Classifier, PreparedSplit, prepare_split, process_state, warn_of_modality
from ..models import cards
from ..models.adapters import errors_of_loading
from ..models.configuration_retfound import is_adapter
from ..models.loading import fit_input
from ..options import parse_arguments
from ..record import as_code, as_text, hardware, markdown_table, write_run_record
from ..vocabulary import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from .arguments import FinetuneArguments, argument_types, learned_something
from .methods import METHODS, Method, build_classifier, build_processor, fold_scaling, label_options
from .trainer import TargetScale

logger = logging.getLogger(__name__)
STATE_KINDS: dict[str, Any] = {"global_step": int, "max_steps": int, "epoch": (int, float), "log_history": list}
OPTIMISER_FILES = ("optimizer.pt", "scheduler.pt")
OLDEST = 89  # years; HIPAA's safe harbour asks for one group of all older ones


def write_finetuned_card(
    folder: Path,
    name: str,
    args: FinetuneArguments,
    method: Method,
    prepared: "Prepared",
    seconds: float,
    test: Predictions,
) -> Path:
    """Write the card of a folder whose model and `metrics.json` are written already.

    Args:
        folder: where it is written.
        name: of the folder when it is done.
        args, method, prepared: of the run.
        seconds: that the run took.
        test: predictions of the test images.
    """
    base, labelled = args.model_name_or_path, prepared.labelled
    start, adapter = cards.describe_start(base, args.config_name), is_adapter(str(folder))
    on_hub = not Path(args.data).exists()
    data = args.data if on_hub else Path(args.data).resolve().name
    metadata: dict[str, Any] = {"pipeline_tag": "image-classification"}
    metadata |= cards.base_metadata(base, "adapter" if adapter else "finetune")
    if adapter:
        metadata["library_name"] = "peft"
    if on_hub:
        metadata["datasets"] = [data]
    if index := cards.model_index(folder, name, data, data if on_hub else None):
        metadata["model-index"] = index
    level = args.report.level
    counts = as_text(counts_text(args.report.at_level(test), level))
    images = counts if level == "image" else f"{len(test)} images, metrics by {level} ({counts})"
    kind = labelled.problem_type
    return cards.write_card(
        folder,
        "adapter" if adapter else "finetuned",
        metadata,
        folder_name=name,
        title=f"{as_text(name)}: RETFound fine-tuned ({method.title})",
        description=f"Started from {start}; trained: {method.trains or method.title}.",
        problem_type=kind,
        targets=f"Each image has {PROBLEM_TYPES[kind].label}: {as_text(', '.join(labelled.class_names))}.",
        training_data=_training_data(prepared, data),
        preprocessing=cards.describe_preprocessing(prepared.classifier.processor),
        evaluation=cards.evaluation_text(folder, f"the test split, {images}"),
        calibration=cards.calibration_text(folder, kind, args.is_balanced),
        cost=cards.cost_text(seconds, hardware()),
        provenance=(
            f"The {method.chooses} was chosen on the validation split. Seed {args.seed}. `run.json` holds every "
            "setting and version, and stays with the owner when the folder is published."
        ),
    )


def _training_data(prepared: "Prepared", data: str) -> str:
    """Images, patients and classes of each split, and what the data say of age and sex."""
    labelled, known = prepared.labelled, prepared.labelled.patients_known
    classes = labelled.class_names if labelled.problem_type == SINGLE_LABEL else ()
    rows = []
    for split, part in prepared.splits.items():
        row = [split, f"{len(part.rows)}", *([f"{part.rows['patient_id'].nunique()}"] if known else [])]
        rows.append(row + [f"{(part.targets == index).sum()}" for index in range(len(classes))])
    columns = ["split", "images", *(["patients"] if known else []), *map(as_text, classes)]
    apart = "by patient" if known else "by image, as no patients were given"
    text = f"{as_code(data)}, the splits kept apart {apart}:\n\n{markdown_table(columns, rows)}"
    described = _population(pd.concat([part.rows for part in prepared.splits.values()]))
    return f"{text}\n\n{described or 'The data say nothing of age, sex or origin of the patients.'}"


def _population(rows: pd.DataFrame) -> str:
    found = []
    age = find_column(rows, "Age")
    ages = pd.to_numeric(rows[age], errors="coerce").dropna() if age else pd.Series(dtype=float)
    if len(ages):
        span = f"{_age(ages.min())} to {_age(ages.max())}" if ages.min() <= OLDEST else _age(ages.max())
        found += [f"Age of the patients, by image: mean {_age(ages.mean(), decimals=1)}, {span}."]
    if sex := find_column(rows, "Sex"):
        counts = rows[sex].fillna("unknown").astype(str).value_counts()
        found += [f"Sex, by image: {', '.join(f'{as_text(name)} {count}' for name, count in counts.items())}."]
    return " ".join(found)


def _age(years: float, decimals: int = 0) -> str:
    return f"{years:.{decimals}f}" if years <= OLDEST else f"{OLDEST + 1}+"


@dataclass(frozen=True)
class FinetuneRun:
    """Result of `finetune`.

    Attributes:
        model: the trained classifier, or the `PeftModel` around it, in evaluation mode.
        metrics: of the test split, as in `metrics.json`; empty on processes other than the main one.
        predictions: of the images by split, "val" and "test".
        output_dir: folder of the model, its report and its card.
    """

    model: Any
    metrics: dict[str, Any]
    predictions: dict[str, Predictions]
    output_dir: Path


def finetune(model: str | Path, data: str | Path, output_dir: str | Path, **options: Any) -> FinetuneRun:
    """Fine-tune `model` on `data` and evaluate it on the test split.

    Args:
        model: folder, Hub id or starting point; the name of a preset that is none, such as "retfound-tiny", for random
            weights.
        data: folder `{train,val,test}/<class>/`, table, or Hub data set.
        output_dir: new folder; see `overwrite_output_dir`.
        **options: fields of the dataclasses of `argument_types()`, named as the flags of `retfound finetune`.

    Returns:
        The model, its metrics and predictions; `output_dir` then holds what `run` writes.

    Raises:
        BadDataError: the labelled set cannot be used; `.rows` lists the offending ones.
        TypeError: an option that does not exist.
    """
    args = FinetuneArguments.of(model, data, output_dir, **options)
    if args.push_to_hub:
        raise BadArgumentError(
            "`push_to_hub` belongs to the command; publish the finished folder by itself", field="push_to_hub"
        )
    return run(args)


@dataclass(frozen=True)
class Prepared:
    """Data and untrained classifier of a run.

    Attributes:
        labelled: the labelled set, with the share of its training images that is to be used.
        classifier: with its image processor.
        splits: decoded images of "train", "val" and "test".
        all_training: decoded training images, whatever share of them is used.
        target_scale: of a regression, that of the training targets.
    """

    labelled: LabelledSet
    classifier: Classifier
    splits: dict[str, PreparedSplit]
    all_training: PreparedSplit
    target_scale: TargetScale | None


def prepare(args: FinetuneArguments, method: Method) -> Prepared:
    """Read the labelled set, build the classifier and decode the images; mistakes in data and model show here."""
    everything = read_labelled(
        args.data, label_columns=args.label_columns, problem_type=args.problem_type, class_names=args.class_names,
        patient_column=args.patient_column, positive_class=args.positive_class, image_column=args.image_column,
        image_root=args.image_root, split_fractions=tuple(args.split_fractions), seed=args.split_seed,
    )  # fmt: skip
    if args.model_name_or_path is not None:
        tested = everything.rows("test")
        seen = splits_in_training(args.model_name_or_path, tested, args.data).isin(("train", "val"))
        if seen.any():
            message = "%s: %d of %d test images were trained or validated on by %s, so the test is too optimistic"
            logger.warning(message, args.data, seen.sum(), len(tested), args.model_name_or_path)
        if not learned_something(args.model_name_or_path):
            message = "%s learned next to nothing in its pretraining: its features are hardly better than random ones"
            logger.warning(message, args.model_name_or_path)
    labelled = keep_fraction(everything, args.train_fraction, args.seed)
    kind, targets = labelled.problem_type, labelled.targets("train")
    if kind == REGRESSION and (args.mixup > 0 or args.cutmix > 0):
        raise BadArgumentError("`mixup` and `cutmix` mix classes, and the targets are numbers", field="mixup")
    if kind == REGRESSION and args.class_weights != "none":
        raise BadArgumentError(
            f"`class_weights={args.class_weights}` needs classes, and the targets are numbers",
            field="class_weights", value=args.class_weights,
        )  # fmt: skip
    labels = label_options(labelled.class_names, kind)
    labels["class_order"] = labelled.class_order and list(labelled.class_order)
    # Predicted numbers start at the mean: a head near zero would first spend epochs on reaching it.
    scale = TargetScale.of(targets) if kind == REGRESSION else None
    name = args.model_name_or_path
    model = build_classifier(name, args.config_name, labels, method.drop_path, args.image_size, scale)
    processor = build_processor(name, model, args.image_size, args.crop_fundus)
    classifier = Classifier(fit_input(model, processor), processor)
    splits = {
        split: prepare_split(
            everything, split, classifier.processor, on_bad_image=args.on_bad_image,
            exact=split != "train" or method.frozen_encoder or args.augmentation == "none",
            num_workers=args.dataloader_num_workers, cache_dir=args.cache_dir,
        )
        for split in ("train", "val", "test")
    }  # fmt: skip
    # All training images are decoded, once for whatever share of them a run takes.
    all_training = splits["train"]
    splits["train"] = all_training.only(labelled.rows("train")["id"])
    warn_of_modality(splits["train"].images, getattr(model.config, "modality", None))
    return Prepared(labelled, classifier, splits, all_training, scale)


def run(args: FinetuneArguments) -> FinetuneRun:
    """Fine-tune, evaluate and write `output_dir`, which appears whole at the end.

    It holds the model folder (or adapter), `metrics.json`, `predictions.csv` and `plots/` of the test split,
    `validation/` with the same of the validation split, `splits.csv`, `history.json`, a card and `run.json`; for
    classes also `operating_points.json`, thresholds chosen on the validation split, and `operating_points.csv`, what
    they reach on the test split.
    """
    with exclusive_folder(args.output_dir if process_state().is_main_process else None):
        try:
            with output_faults(args.output_dir):
                return _run(args)
        except Exception:
            _remove_half_written(args.output_dir)
            raise


def _run(args: FinetuneArguments) -> FinetuneRun:
    started, state = time.time(), process_state()
    method = METHODS[args.method](args)
    checkpoint = checkpoint_to_resume(args, method)
    if checkpoint is None and state.is_main_process:
        refuse_existing(args.output_dir, args.overwrite_output_dir)
        _remove_checkpoints(args.output_dir)  # of an earlier run: `latest` must not find them
    set_seed(args.seed)
    args.resolve_rates(method.base_learning_rate)
    prepared = prepare(args, method)
    splits = prepared.splits
    _check_report(args, prepared)

    trained = method.train(prepared.classifier, splits["train"], splits["val"], prepared.target_scale, checkpoint)
    classifier = replace(prepared.classifier, model=trained.model.eval())
    logits = {split: classifier.logits(splits[split].images, **args.forward_options) for split in ("val", "test")}
    if args.calibrate:
        scaling = fit_scaling(logits["val"], splits["val"].targets, classifier.problem_type)
        fold_scaling(classifier.model, scaling)
        logits = {split: scaling.apply(values) for split, values in logits.items()}
    predictions = {split: classifier.predictions(splits[split], values) for split, values in logits.items()}

    metrics: dict[str, Any] = {}
    if state.is_main_process:
        points = _points(predictions["val"], args)
        seconds = round(time.time() - started, 1)
        with move_into(args.output_dir) as folder:
            method.save(classifier.model, classifier.processor, folder)
            if points:
                write_points(folder, points, args.report, images=len(predictions["val"]))
            write_report(folder / "validation", predictions["val"], args.report)
            name, model = Path(args.output_dir).name, args.model_name_or_path or args.config_name
            about = classifier.about(
                f"Fine-tuning of {name}", str(model), args.data, splits, method=method.title,
                **{"class weights": args.class_weights, "sampler": args.sampler}, seed=str(args.seed),
            )  # fmt: skip
            metrics = write_report(folder, predictions["test"], args.report, points, about=about)
            write_splits(folder, prepared.labelled.table, args.model_name_or_path)
            write_json(folder / "history.json", trained.history)
            write_finetuned_card(folder, name, args, method, prepared, seconds, predictions["test"])
            write_run_record(
                folder, "finetune", args.parts, seconds=seconds, data_path=os.path.realpath(args.data),
                images={split: len(part.images) for split, part in splits.items()},
                rejected_images=[image for part in splits.values() for image in part.rejected],
            )  # fmt: skip
        if not args.keep_checkpoints:
            _remove_checkpoints(args.output_dir)
    state.wait_for_everyone()
    return FinetuneRun(classifier.model, metrics, predictions, Path(args.output_dir))


def _check_report(args: FinetuneArguments, prepared: Prepared) -> None:
    """Raise before training for what could not be reported after it."""
    labelled, report = prepared.labelled, args.report
    if args.calibrate and labelled.problem_type == REGRESSION:
        raise BadArgumentError("`calibrate` is for probabilities, and regression has none", field="calibrate")
    if args.is_balanced and not args.calibrate and process_state().is_main_process:
        logger.warning(
            "the training makes all classes count alike, so the probabilities will be those of equally frequent "
            "classes; pass `calibrate` to fit them to these data"
        )
    _check_metric(args.training.metric_for_best_model.removeprefix("eval_"), labelled)
    report.check_columns(labelled.table, args.data)
    report.prevalences(labelled.problem_type, labelled.class_names, labelled.class_order)
    for split in ("val", "test"):
        report.at_level(labelled.unpredicted(split))


def _check_metric(name: str, labelled: LabelledSet) -> None:
    """Raise for a `metric_for_best_model` that no epoch would have."""
    names = ["selection", *(metric.name for metric in metrics_for(labelled.problem_type))]
    require("metric_for_best_model", name, names)
    # Scores of chance: what these leave undefined, the labels of the validation split do.
    blank = labelled.unpredicted("val")
    scores = np.random.default_rng(0).dirichlet(np.ones(max(2, len(labelled.class_names))), len(blank))
    guessed = replace(blank, scores=scores[:, : len(labelled.class_names)])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of classes that validation lacks: the report tells
        undefined = name != "selection" and guessed.metrics()[name] is None
    if undefined:
        raise BadArgumentError(
            f"`metric_for_best_model={name}` is undefined for the labels of the validation split; choose another, or "
            "leave it out", field="metric_for_best_model", value=name,
        )  # fmt: skip


def _points(validation: Predictions, args: FinetuneArguments) -> list[OperatingPoint]:
    """Thresholds that the validation split chooses, at the level of the report."""
    if validation.problem_type == REGRESSION:
        return []
    return choose_points(
        args.report.at_level(validation),
        [("sensitivity", args.target_sensitivity), ("specificity", args.target_specificity), ("youden", None)],
    )


def checkpoint_to_resume(args: FinetuneArguments, method: Method) -> str | None:
    """Folder of the checkpoint that `resume_from_checkpoint` asks for: a path, or `latest` in the output folder."""
    asked = args.resume_from_checkpoint
    if asked in (None, "", "False", "false"):
        return None
    if not method.resumes:
        raise BadArgumentError(
            f"`resume_from_checkpoint`: `method={method.name}` keeps no checkpoints; run it anew",
            field="resume_from_checkpoint", value=asked,
        )  # fmt: skip
    if asked in ("latest", "True", "true"):
        # Trainer writes its state last: a checkpoint without it was cut off.
        found = [path.parent for path in Path(args.output_dir).glob("checkpoint-*/trainer_state.json")]
        if not found:
            raise OutputError(
                f"`resume_from_checkpoint={asked}`: there is no checkpoint in {args.output_dir}", path=args.output_dir
            )
        asked = str(max(found, key=lambda path: int(path.name.removeprefix("checkpoint-"))))
    elif not Path(asked).is_dir():
        raise BadArgumentError(
            f"`resume_from_checkpoint={asked}` is not a folder; pass a checkpoint folder or latest",
            field="resume_from_checkpoint", value=asked,
        )  # fmt: skip
    _check_state(Path(asked), args)
    return asked


def _check_state(checkpoint: Path, args: FinetuneArguments) -> None:
    """Raise `BadModelError` for a checkpoint with a damaged state or without its optimiser: Trainer would make one."""
    with errors_of_loading(checkpoint):
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if wrong := [name for name, kind in STATE_KINDS.items() if not isinstance(getattr(state, name), kind)]:
            raise TypeError(f"trainer_state.json has a wrong {join_names(wrong)}")
        files = (
            () if args.training.save_only_model or args.training.deepspeed or args.training.fsdp else OPTIMISER_FILES
        )
        if absent := [name for name in files if not (checkpoint / name).is_file()]:
            raise FileNotFoundError(f"it lacks {join_names(absent)}")


def _remove_checkpoints(output_dir: str | Path) -> None:
    for path in Path(output_dir).glob("checkpoint-*"):
        shutil.rmtree(path)


def _remove_half_written(output_dir: str | Path) -> None:
    """Remove the checkpoint at which a disk was full: Trainer writes its state last."""
    for path in Path(output_dir).glob("checkpoint-*"):
        try:
            json.loads((path / "trainer_state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(path, ignore_errors=True)


def main(argv: Sequence[str] | None = None, publisher: Callable[[], Any] | None = None) -> None:
    """Parse the arguments, run, print the metrics, and publish the folder if `push_to_hub` asks for it.

    Args:
        argv: the words after the command's name; `sys.argv[1:]` when None.
        publisher: makes the object with `check(token)` and `push(folder, repo_id, private, token)` that publishes.
    """
    description = "Fine-tune a model folder on a labelled set, and evaluate it on the test split."
    args = FinetuneArguments(parse_arguments(*argument_types(), argv=argv, description=description))
    hub = None
    if args.push_to_hub:
        if publisher is None:
            raise BadArgumentError("`push_to_hub` needs the command `retfound finetune`", field="push_to_hub")
        hub = publisher()
        hub.check(args.hub_token)  # before hours of training
    done = run(args)
    if process_state().is_main_process:
        test = args.report.at_level(done.predictions["test"])
        print(f"\nTest split: {counts_text(test, args.report.level)}")
        print(f"\n{format_table(done.metrics, test.problem_type, test.class_names, test.class_order)}\n")
        files = "the model, report.html, metrics.json, predictions.csv, plots/, validation/, run.json"
        print(f"Written to {done.output_dir}: {files}")
        if hub is not None:
            print(hub.push(args.output_dir, args.hub_model_id, args.hub_private_repo, args.hub_token))
