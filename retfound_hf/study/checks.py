"""The study file against the disk: data, classes, models and fractions, all before the first job starts."""

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.checks import listed
from ..data.fractions import keep_fraction
from ..data.labelled import read_labelled
from ..data.labelled_set import LabelledSet
from ..evaluation.levels import count_conflicts, units_of
from ..inference.loading import is_adapter, read_config
from ..runs.errors import RetFoundError, nearest
from .options import data_arguments, job_options, parse_options
from .reading import accepted_metrics
from .settings import DataSet, ExternalSet, Study

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A data set of the study as it lies on the disk, with its external sets by name."""

    data: DataSet
    labelled: LabelledSet
    external: dict[str, LabelledSet]

    def evaluated(self) -> Iterator[tuple[str, LabelledSet, str]]:
        """Name, labelled set and split of everything that a job predicts."""
        yield "val", self.labelled, "val"
        yield "test", self.labelled, "test"
        for external in self.data.external:
            yield external.name, self.external[external.name], external.split


def check_study(study: Study) -> tuple[Task, ...]:
    """Read every data set and look for every model.

    Raises:
        RetFoundError: the first thing that would make a job fail or its result wrong.
    """
    tasks = tuple(_read_task(study, data) for data in study.data)
    for task in tasks:
        _check_metrics(study, task)
        _check_cases(study, task)
        _check_fractions(study, task)
    columns = {column for task in tasks for column in task.labelled.table}
    for column in study.reporting.subgroups:
        if column not in columns:
            raise RetFoundError(
                f"reporting > subgroups: no data set has a column {column!r}{nearest(column, columns)}"
            )
    _check_models(study)
    return tasks


def _read_task(study: Study, data: DataSet) -> Task:
    if data.cohort and not Path(data.cohort, "flow.json").is_file():
        raise RetFoundError(
            f"data > {data.name} > cohort: {data.cohort} has no flow.json; give the folder that build_cohort made"
        )
    data_args = data_arguments(study, data)
    shared = {"image_column": data_args.image_column, "image_root": data_args.image_root}
    labelled = read_labelled(
        data.data,
        label_columns=data_args.label_columns,
        problem_type=data_args.problem_type,
        split_fractions=tuple(data_args.split_fractions),
        seed=data_args.split_seed,
        **shared,
    )
    external = {one.name: read_external(one, labelled) for one in data.external}
    for one in data.external:
        place = f"data > {data.name} > external > {one.name}"
        _check_unseen(place, data.name, labelled, external[one.name].rows(one.split))
    return Task(data, labelled, external)


def _check_unseen(place: str, trained: str, labelled: LabelledSet, tested: pd.DataFrame) -> None:
    """Refuse images that a model learns from; warn of patients, since ids of two clinics may be alike by chance."""
    learned = labelled.table[labelled.table["split"] != "test"]
    shared = tested["image"].map(_resolved).isin(set(learned["image"].map(_resolved))).sum()
    if shared:
        raise RetFoundError(
            f"{place}: {shared} of its images are in the train or val split of {trained}; an external set must be "
            "unseen"
        )
    patients = sorted(set(tested["patient_id"].dropna()) & set(learned["patient_id"].dropna()))
    if patients:
        logger.warning(
            "%s: %d of its patients bear ids of train or val patients of %s (%s); if they are the same people, leave "
            "them out: an external set must be unseen", place, len(patients), trained, listed(patients),
        )  # fmt: skip


def _resolved(image: str | bytes) -> str | bytes:
    """The one path of a file that tables may reach in several ways, such as `/a/x.png` and `/a/b/../x.png`."""
    return os.path.realpath(image) if isinstance(image, str) else image


def read_external(external: ExternalSet, trained: LabelledSet) -> LabelledSet:
    """Read an external set with the classes of the set that its models are trained on."""
    options = dict(external.options)
    if "split_seed" in options:
        options["seed"] = options.pop("split_seed")
    return read_labelled(
        external.data,
        problem_type=trained.problem_type,
        class_names=trained.class_names,
        need_splits=() if external.split == "all" else (external.split,),
        **options,
    )


def _check_metrics(study: Study, task: Task) -> None:
    accepted = accepted_metrics(task.labelled.problem_type)
    if not set(study.metrics) & set(accepted):
        raise RetFoundError(
            f"metrics: none of {', '.join(study.metrics)} exists for {task.data.name} "
            f"({task.labelled.problem_type}); add one of {', '.join(accepted)}"
        )


def _check_cases(study: Study, task: Task) -> None:
    level = study.reporting.level
    needed = {"image": (), "eye": ("patient_id", "eye"), "patient": ("patient_id",)}[level]
    for name, labelled, split in task.evaluated():
        rows = labelled.rows(split)
        for column in needed:
            if column not in rows or rows[column].isna().any():
                raise RetFoundError(
                    f"reporting > level: {level} needs the column {column} in {task.data.name} ({name})"
                )
        if level == "image" or study.reporting.label_conflicts == "max":
            continue
        units = units_of(level, rows["patient_id"], rows.get("eye"))
        if conflicts := count_conflicts(labelled.targets(split), units):
            raise RetFoundError(
                f"reporting > level: the images of {conflicts} of {units.max() + 1} {level}s in {task.data.name} "
                f"({name}) have different labels; choose a level at which they agree, or set reporting > "
                "label_conflicts: max to take the highest label (of classes: the last in their order)"
            )


def _check_fractions(study: Study, task: Task) -> None:
    for fraction in study.fractions:
        for seed in study.seeds:
            try:
                targets = keep_fraction(task.labelled, fraction, seed).targets("train")
            except RetFoundError as error:
                raise RetFoundError(f"fractions, on {task.data.name}: {error}") from error
            if task.labelled.problem_type == "multi_label_classification":
                alike = [name for name, column in zip(task.labelled.class_names, targets.T, strict=True)
                         if np.ptp(column) == 0]  # fmt: skip
                if alike:
                    raise RetFoundError(
                        f"fractions: {fraction:g} of {task.data.name} at seed {seed} has all or none with "
                        f"{', '.join(alike)}; take a larger one"
                    )


def _check_models(study: Study) -> None:
    seen: set[str] = set()
    for model in study.models:
        usable = [data for data in study.data if model.start(data.modality)]
        if not usable:
            raise RetFoundError(f"models > {model.label} has a start for none of the data sets; give one under any")
        for data in usable:
            start = model.start(data.modality)
            if model.option == "model_name_or_path" and start not in seen:
                _check_start(model.label, start)
                seen.add(start)
            for method in study.methods:
                if method.method == "lora" and model.option == "config_name":
                    raise RetFoundError(
                        f"methods > {method.label}: lora adapts trained weights, and models > {model.label} has none "
                        "(config_name); leave one of the two out"
                    )
                parse_options(job_options(study, model, method, data), "unused")


def _check_start(label: str, start: str) -> None:
    try:
        read_config(start)
    except RetFoundError as error:
        raise RetFoundError(f"models > {label}: {error}") from error
    if is_adapter(start):
        raise RetFoundError(f"models > {label}: {start} is a LoRA adapter; give a folder written with --merge")
