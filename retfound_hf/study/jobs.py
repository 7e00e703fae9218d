"""Jobs of a study: each cell once, its id a hash of what its result depends on, checked before the first starts."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.labelled import LabelledSet, keep_fraction, read_labelled
from ..errors import RetFoundError, join_names, nearest
from ..evaluation.aggregation import count_conflicts, units_of
from ..finetuning.methods import METHODS
from ..models.loading import is_adapter, read_config
from .config import (
    NEUTRAL,
    DataSet,
    ExternalSet,
    Method,
    Model,
    Study,
    accepted_metrics,
    data_arguments,
    job_options,
    parse_options,
)

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
            "them out: an external set must be unseen", place, len(patients), trained, join_names(patients),
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
                if METHODS[method.method].needs_weights and model.option == "config_name":
                    raise RetFoundError(
                        f"methods > {method.label}: {method.method} adapts trained weights, and models > "
                        f"{model.label} has none (config_name); leave one of the two out"
                    )
                parse_options(job_options(study, model, method, data), "unused")


def _check_start(label: str, start: str) -> None:
    try:
        read_config(start)
    except RetFoundError as error:
        raise RetFoundError(f"models > {label}: {error}") from error
    if is_adapter(start):
        raise RetFoundError(f"models > {label}: {start} is a LoRA adapter; give a folder written with --merge")


MODEL_FILES = ("config.json", "adapter_config.json", "preprocessor_config.json")
WEIGHTS = ("*.safetensors", "*model*.bin")  # of other .bin files, such as the Trainer's, no result depends
CHUNK = 2**24


def model_identity(option: str, start: str) -> str:
    """Digest of a model folder's files; a Hub id or preset is its name."""
    folder = Path(start)
    if option == "config_name" or not folder.is_dir():
        return f"{option}={start}"
    digest = hashlib.blake2b(digest_size=16)
    weights = (path for pattern in WEIGHTS for path in folder.glob(pattern))
    for path in sorted([*weights, *(folder / name for name in MODEL_FILES)]):
        if path.is_file():
            digest.update(path.name.encode())
            _add_file(digest, path)
    return digest.hexdigest()


def data_identity(labelled: LabelledSet) -> str:
    """Digest of a labelled set: names and sizes of its images, their patients, splits and labels."""
    digest = hashlib.blake2b(repr((labelled.problem_type, labelled.class_names)).encode(), digest_size=16)
    columns = ["id", "image", "patient_id", "split", *labelled.label_columns]
    for name, image, *facts in labelled.table[columns].itertuples(index=False):
        # Contents would mean reading tens of gigabytes before anything starts.
        size = len(image) if isinstance(image, bytes) else os.path.getsize(image) if os.path.isfile(image) else None
        digest.update(repr((name, size, [str(fact) for fact in facts])).encode())
    return digest.hexdigest()


def digest_of(facts: Mapping[str, Any]) -> str:
    """Digest of plain values, whatever their order."""
    text = json.dumps(facts, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=4).hexdigest()


def _add_file(digest: Any, path: Path) -> None:
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)


PLACES = ("data", "model_name_or_path")  # where things lie; their contents count instead


@dataclass(frozen=True)
class Job:
    """One training run and the sets that it predicts.

    Attributes:
        id: such as `aptos-retfound-linear-f010-s0-1a2b3c4d`.
        data, model, method: labels as in the study.
        fraction: of the training patients.
        options: of the command `finetune`, but for the output folder.
    """

    id: str
    data: str
    model: str
    method: str
    fraction: float
    seed: int
    options: Mapping[str, Any]

    @property
    def kind(self) -> tuple[str, str, str, float]:
        """Jobs of one kind differ in their seeds alone."""
        return self.data, self.model, self.method, self.fraction

    @property
    def labelled(self) -> tuple[str, str, str, str]:
        """The id with the labels that `folder.ended_jobs` gives the job."""
        return self.id, self.data, self.model, self.method


def plan_jobs(study: Study, tasks: Sequence[Task]) -> tuple[Job, ...]:
    """All jobs, in a fixed order: the cells of one seed before those of the next.

    A linear head on trained weights has nothing random where all training patients are used; such a cell is run with
    the first seed alone.
    """
    models = {start: model_identity(*start) for start in _starts(study)}
    sets = {
        task.data.name: {name: data_identity(labelled) + split for name, labelled, split in task.evaluated()}
        for task in tasks
    }
    jobs = []
    for seed in study.seeds:
        for data in study.data:
            for fraction in study.fractions:
                for method in study.methods:
                    for model in study.models:
                        start = model.start(data.modality)
                        if start is None or (seed != study.seeds[0] and _is_fixed(model, method, fraction)):
                            continue
                        options = job_options(study, model, method, data)
                        options |= {"train_fraction": fraction, "seed": seed}
                        facts = {name: value for name, value in options.items() if name not in (*NEUTRAL, *PLACES)}
                        facts |= {"model": models[model.option, start], "sets": sets[data.name]}
                        name = _prefix(data.name, model.label, method.label, fraction, seed)
                        jobs.append(
                            Job(
                                f"{name}-{digest_of(facts)}",
                                data.name,
                                model.label,
                                method.label,
                                fraction,
                                seed,
                                options,
                            )
                        )
    _check_distinct(jobs)
    return _told_apart(jobs)


def part_of(jobs: Sequence[Job], part: str | None) -> tuple[Job, ...]:
    """The jobs of part `i/n`, in their order: every n-th of those alike, so that all parts take about as long."""
    if part is None:
        return tuple(jobs)
    found = re.fullmatch(r"(\d+)/(\d+)", part)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise RetFoundError(f"--part {part!r} is not accepted; give i/n, such as 1/4 to 4/4")
    alike = sorted(jobs, key=lambda job: (job.method, job.model, job.data, job.fraction))
    mine = {job.id for job in alike[int(found[1]) - 1 :: int(found[2])]}
    return tuple(job for job in jobs if job.id in mine)


def _starts(study: Study) -> set[tuple[str, str]]:
    found = {(model.option, model.start(data.modality)) for model in study.models for data in study.data}
    return {(option, start) for option, start in found if start is not None}


def _is_fixed(model: Model, method: Method, fraction: float) -> bool:
    return method.method == "linear" and model.option == "model_name_or_path" and fraction == 1


def _prefix(data: str, model: str, method: str, fraction: float, seed: int) -> str:
    words = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:24] for word in (data, model, method)]
    return "-".join([*words, f"f{round(1000 * fraction):04d}", f"s{seed}"])


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[str, Job] = {}
    for job in jobs:
        digest = f"{job.data}-{job.fraction}-{job.seed}-{job.id.rsplit('-', 1)[1]}"
        if digest in seen:
            other = seen[digest]
            raise RetFoundError(
                f"{job.model} with {job.method} and {other.model} with {other.method} are the same on {job.data}: "
                "the same weights and options; leave one of them out"
            )
        seen[digest] = job


def _told_apart(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Jobs with ids of their own.

    The same images under two names that begin alike (`Set A`, `set-a`) give the same id: there the labels enter the
    digest. All other ids stay, since finished jobs are found by them.
    """
    count = Counter(job.id for job in jobs)
    return tuple(replace(job, id=_with_labels(job)) if count[job.id] > 1 else job for job in jobs)


def _with_labels(job: Job) -> str:
    name, digest = job.id.rsplit("-", 1)
    return f"{name}-{digest_of({'digest': digest, 'labels': [job.data, job.model, job.method]})}"
