"""The jobs of a study: every cell once, under an id that tells what it is and hashes what its result depends on."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..runs.errors import RetFoundError
from .checks import Task
from .identity import data_identity, digest_of, model_identity
from .options import NEUTRAL, job_options
from .settings import Method, Model, Study

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
