"""Jobs of a study: each cell once, its id a hash of what its result depends on, checked before the first starts."""

import hashlib
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..cluster import Share
from ..data.image_cache import are_among
from ..data.labelled import LabelledSet, keep_fraction, read_labelled
from ..errors import BadArgumentError, BadDataError, BadModelError, RetFoundError, join_names, nearest
from ..evaluation.metrics import metrics_for
from ..finetuning.methods import METHODS
from ..models.configuration_retfound import is_adapter
from ..models.loading import read_config
from ..vocabulary import MULTI_LABEL
from .config import NEUTRAL, DataSet, ExternalSet, Study, job_options, parse_options

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Task:
    """A data set of the study as it lies on the disk, with its external sets by name."""

    name: str
    data: DataSet
    labelled: LabelledSet
    external: dict[str, LabelledSet]

    def evaluated(self) -> Iterator[tuple[str, LabelledSet, str]]:
        """Name, labelled set and split of everything that a job predicts."""
        yield "val", self.labelled, "val"
        yield "test", self.labelled, "test"
        for name, external in self.data.external.items():
            yield name, self.external[name], external.split

    def parts(self) -> dict[str, pd.DataFrame]:
        """Rows of the training split and of everything that a job predicts, by name."""
        evaluated = {name: one.rows(split) for name, one, split in self.evaluated()}
        return {"train": self.labelled.rows("train"), **evaluated}


def patients_in(rows: pd.DataFrame) -> int | None:
    """Number of patients; None where some are unknown."""
    return int(rows["patient_id"].nunique()) if rows["patient_id"].notna().all() else None


def check_study(study: Study) -> tuple[Task, ...]:
    """Read every data set and look for every model.

    Raises:
        RetFoundError: the first thing that would make a job fail or its result wrong.
    """
    tasks = tuple(_read_task(study, name, data) for name, data in study.data.items())
    for task in tasks:
        _check_metrics(study, task)
        _check_cases(study, task)
        _check_fractions(study, task)
    columns = {column for task in tasks for column in task.labelled.table}
    for column in study.reporting.subgroups:
        if column not in columns:
            reason = f"no data set has a column {column!r}{nearest(column, columns)}"
            raise _refused("reporting.subgroups", reason, column)
    _check_models(study)
    return tasks


def _refused(field: str, reason: str, value: Any = None) -> BadArgumentError:
    return BadArgumentError(f"{field}: {reason}", field=field, value=value)


def _read_task(study: Study, name: str, data: DataSet) -> Task:
    if data.cohort and not Path(data.cohort, "flow.json").is_file():
        reason = f"{data.cohort} has no flow.json; give the folder that build_cohort made"
        raise _refused(f"data.{name}.cohort", reason, data.cohort)
    # A data set is read alike for every model and method.
    args = parse_options({**study.finetune.options, **data.options, "data": data.data, "config_name": "retfound-tiny"})
    labelled = read_labelled(
        data.data, label_columns=args.label_columns, problem_type=args.problem_type, image_column=args.image_column,
        image_root=args.image_root, split_fractions=tuple(args.split_fractions), seed=args.split_seed,
        class_names=args.class_names, patient_column=args.patient_column, positive_class=args.positive_class,
    )  # fmt: skip
    external = {other: read_external(one, labelled) for other, one in data.external.items()}
    for other, one in data.external.items():
        _check_unseen(f"data.{name}.external.{other}", name, labelled, external[other].rows(one.split))
    return Task(name, data, labelled, external)


def _check_unseen(place: str, trained: str, labelled: LabelledSet, tested: pd.DataFrame) -> None:
    """Refuse images that a model learns from; warn of patients, since ids of two clinics may be alike by chance."""
    learned = labelled.table[labelled.table["split"] != "test"]
    shared = are_among(tested["image"], learned["image"])
    if shared.any():
        raise BadDataError(
            f"{place}: {shared.sum()} of its images are in the train or val split of {trained}; an external set must "
            "be unseen", rows=tested["id"][shared], source=place,
        )  # fmt: skip
    patients = sorted(set(tested["patient_id"].dropna()) & set(learned["patient_id"].dropna()))
    if patients:
        logger.warning(
            "%s: %d of its patients bear ids of train or val patients of %s (%s); if they are the same people, leave "
            "them out: an external set must be unseen", place, len(patients), trained, join_names(patients),
        )  # fmt: skip


def read_external(external: ExternalSet, trained: LabelledSet) -> LabelledSet:
    """Read an external set with the classes of the set that its models are trained on."""
    options = external.options
    if "split_seed" in options:
        options["seed"] = options.pop("split_seed")
    return read_labelled(
        external.data, problem_type=trained.problem_type, class_names=trained.class_names,
        need_splits=() if external.split == "all" else (external.split,), **options,
    )  # fmt: skip


def _check_metrics(study: Study, task: Task) -> None:
    accepted = [metric.name for metric in metrics_for(task.labelled.problem_type)]
    if not set(study.metrics) & set(accepted):
        raise _refused(
            "metrics",
            f"none of {', '.join(study.metrics)} exists for {task.name} ({task.labelled.problem_type}); add one of "
            f"{', '.join(accepted)}", study.metrics,
        )  # fmt: skip


def _check_cases(study: Study, task: Task) -> None:
    """Refuse patients or eyes that are unknown, or whose images have different labels."""
    reporting, labelled = study.reporting, task.labelled
    for name, one, split in task.evaluated():
        # An external set takes the classes of the data set, and with them their order.
        found = replace(one, class_order=labelled.class_order).unpredicted(split)
        try:
            found.at_level(reporting.level, reporting.aggregation, reporting.label_conflicts)
        except RetFoundError as error:
            raise _refused("reporting.level", f"{task.name} ({name}): {error}", reporting.level) from error


def _check_fractions(study: Study, task: Task) -> None:
    labelled = task.labelled
    for fraction in study.fractions:
        for seed in study.seeds:
            try:
                targets = keep_fraction(labelled, fraction, seed).targets("train")
            except RetFoundError as error:
                raise _refused("fractions", f"on {task.name}: {error}", fraction) from error
            if labelled.problem_type == MULTI_LABEL and (constant := np.ptp(targets, axis=0) == 0).any():
                names = ", ".join(np.array(labelled.class_names)[constant])
                reason = f"{fraction:g} of {task.name} at seed {seed} has all or none with {names}; take a larger one"
                raise _refused("fractions", reason, fraction)


def _check_models(study: Study) -> None:
    seen: set[str] = set()
    for label, model in study.models.items():
        usable = [data for data in study.data.values() if model.start(data.modality)]
        if not usable:
            raise _refused(f"models.{label}", "there is a start for none of the data sets; give one under any")
        for data in usable:
            start = str(model.start(data.modality))
            if model.model_name_or_path and start not in seen:
                _check_start(label, start)
                seen.add(start)
            for name, method in study.methods.items():
                if METHODS[method.method].needs_weights and model.config_name:
                    raise _refused(
                        f"methods.{name}",
                        f"{method.method} adapts trained weights, and models.{label} has none (config_name); leave "
                        "one of the two out", method.method,
                    )  # fmt: skip
                parse_options(job_options(study, model, method, data))


def _check_start(label: str, start: str) -> None:
    try:
        read_config(start)
    except RetFoundError as error:
        raise BadModelError(f"models.{label}: {error}", model=start) from error
    if is_adapter(start):
        reason = f"{start} is a LoRA adapter; give a folder that was trained with `merge`"
        raise BadModelError(f"models.{label}: {reason}", model=start)


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
            with open(path, "rb") as file:
                while chunk := file.read(CHUNK):
                    digest.update(chunk)
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


PLACES = ("data", "model_name_or_path")  # where things lie; their contents count instead


@dataclass(frozen=True)
class Job:
    """One training run and the sets that it predicts.

    Attributes:
        id: such as `aptos-retfound-linear-f0100-s0-1a2b3c4d`.
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
    def key(self) -> tuple[str, str, str, str]:
        """The id with the labels that `results.ended_jobs` gives the job."""
        return self.id, self.data, self.model, self.method


def plan_jobs(study: Study, tasks: Sequence[Task]) -> tuple[Job, ...]:
    """All jobs, in a fixed order: the cells of one seed before those of the next.

    A head on features of trained weights has nothing random where all training patients are used; such a cell is run
    with the first seed alone.
    """
    identity = cache(model_identity)
    sets = {task.name: {name: data_identity(one) + split for name, one, split in task.evaluated()} for task in tasks}
    jobs = []
    cells = product(study.seeds, study.data.items(), study.fractions, study.methods.items(), study.models.items())
    for seed, (data_label, data), fraction, (method_label, method), (model_label, model) in cells:
        start = model.start(data.modality)
        fixed = METHODS[method.method].frozen_encoder and not model.config_name and fraction == 1
        if start is None or (fixed and seed != study.seeds[0]):
            continue
        options = {**job_options(study, model, method, data), "train_fraction": fraction, "seed": seed}
        facts = {name: value for name, value in options.items() if name not in (*NEUTRAL, *PLACES)}
        facts |= {"model": identity(model.option, start), "sets": sets[data_label]}
        labels = (data_label, model_label, method_label)
        name = f"{_prefix(*labels, fraction, seed)}-{digest_of(facts)}"
        jobs.append(Job(name, *labels, fraction, seed, options))
    _check_distinct(jobs)
    return _with_unique_ids(jobs)


def part_of(jobs: Sequence[Job], share: Share) -> tuple[Job, ...]:
    """The jobs of a share, in their order: those alike are dealt one by one, so that all shares take about as long."""
    alike = sorted(jobs, key=lambda job: (job.method, job.model, job.data, job.fraction))
    mine = {job.id for job in share.of(alike)}
    return tuple(job for job in jobs if job.id in mine)


def _prefix(data: str, model: str, method: str, fraction: float, seed: int) -> str:
    words = [re.sub(r"[^a-z0-9]+", "-", word.lower()).strip("-")[:24] for word in (data, model, method)]
    return "-".join([*words, f"f{round(1000 * fraction):04d}", f"s{seed}"])


def _check_distinct(jobs: Sequence[Job]) -> None:
    seen: dict[tuple[Any, ...], Job] = {}
    for job in jobs:
        other = seen.setdefault((job.data, job.fraction, job.seed, job.id.rsplit("-", 1)[1]), job)
        if other is not job:
            raise _refused(
                "models",
                f"{job.model} with {job.method} and {other.model} with {other.method} are the same on {job.data}: the "
                "same weights and options; leave one of them out", (job.model, other.model),
            )  # fmt: skip


def _with_unique_ids(jobs: Sequence[Job]) -> tuple[Job, ...]:
    """Jobs whose labels enter the digest where two have one id.

    The same images under two names that begin alike (`Set A`, `set-a`) give the same id. All other ids stay, since
    finished jobs are found by them.
    """
    count, found = Counter(job.id for job in jobs), []
    for job in jobs:
        name, digest = job.id.rsplit("-", 1)
        own = digest_of({"digest": digest, "labels": [job.data, job.model, job.method]})
        found.append(replace(job, id=f"{name}-{own}") if count[job.id] > 1 else job)
    return tuple(found)
