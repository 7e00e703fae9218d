"""What is compared in a report: a model adapted by a method, and the job that stands for its seeds."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import pandas as pd

from ...evaluation.figure_style import COLOURS
from ..folder import JobResult, StudyResults
from ..outcomes import Outcomes, read_outcomes
from ..reading import LOWER_IS_BETTER

MOST_DRAWN = 6  # systems in one figure: as many as there are colours that the colour-blind can tell


@dataclass(frozen=True)
class System:
    """A model and a method on one data set, at the largest label fraction.

    Attributes:
        label: the model's name, with the method's where the study has several.
        job: the one whose main metric on the test set is the median of the seeds.
        mean: of the main metric on the test set over the seeds.
    """

    data: str
    model: str
    method: str
    label: str
    job: JobResult
    mean: float


def systems_of(found: StudyResults, data: str) -> list[System]:
    """The systems of a data set that have finished jobs, the best one first."""
    study, metric = found.study, found.metrics(data)[0]
    results = found.results
    chosen = results[
        (results["data"] == data) & (results["set"] == "test") & (results["metric"] == metric)
        & (results["fraction"] == max(study.fractions))
    ].dropna(subset=["value"])  # fmt: skip
    jobs = {job.id: job for job in found.finished}
    systems = []
    for (model, method), rows in chosen.groupby(["model", "method"], sort=False):
        ordered = rows.sort_values(["value", "seed"])
        job = jobs[ordered["job"].iloc[(len(ordered) - 1) // 2]]
        systems.append(System(data, model, method, label_of(found, model, method), job, float(rows["value"].mean())))
    return sorted(systems, key=lambda one: one.mean, reverse=metric not in LOWER_IS_BETTER)


def label_of(found: StudyResults, model: str, method: str) -> str:
    """How tables and figures call a model and a method."""
    return model if len(found.study.methods) == 1 else f"{model}, {method}"


def drawn(found: StudyResults, systems: Sequence[System]) -> list[System]:
    """Those that a figure has room for: the best ones, and the reference in any case."""
    own = [one for one in systems if one.model == found.study.reporting.reference][:1]
    kept = [*own, *(one for one in systems if one not in own)][:MOST_DRAWN]
    return [one for one in systems if one in kept]


def colours_of(found: StudyResults, systems: Sequence[System]) -> list[str]:
    """A colour for each: the same on every data set, as long as the study has no more systems than colours."""
    study = found.study
    places = {key: place for place, key in enumerate(product([one.label for one in study.models],
                                                             [one.label for one in study.methods]))}  # fmt: skip
    own = [places[one.model, one.method] for one in systems]
    if len(places) > len(COLOURS):
        own = [sorted(own).index(place) for place in own]
    return [COLOURS[place] for place in own]


def outcomes_of(found: StudyResults, system: System, evaluated: str) -> tuple[Outcomes, pd.DataFrame]:
    """What the system's job predicted for a set, by case, and what else is known of the cases."""
    predictions = found.predictions(system.job.id, evaluated)
    images = found.images(system.data, evaluated).set_index("id").loc[predictions["id"]].reset_index()
    eyes = images["eye"].to_numpy(object) if "eye" in images else None
    outcomes = read_outcomes(predictions, found.task(system.data), found.study.reporting, eyes)
    return outcomes, images.iloc[outcomes.first].reset_index(drop=True)
