"""Metrics of a job on resampled patients, computed once and kept: intervals and tests of all tables come from them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..evaluation.bootstrap import evaluate, interval
from ..evaluation.estimate import Estimate
from ..evaluation.logit_jackknife import is_skewed
from ..evaluation.metric_draws import metric_draws
from ..runs.errors import RetFoundError
from ..runs.files import whole_file
from .layout import predictions_file, read_images, read_predictions, read_task
from .outcomes import Outcomes, read_outcomes
from .settings import Study

# A sample's ECE is biased upwards, and that of a resample more so.
WITHOUT_INTERVAL = ("ece",)


@dataclass(frozen=True)
class Resampled:
    """A metric of one job, on the evaluated set and on sets like it; of several jobs, their mean.

    Attributes:
        value: NaN where undefined.
        drawn: (B,) on bootstrap samples of the patients, the same samples for every job on the set; (0,) for a metric
            that has no interval.
        left_out, strata: (groups,) without each group of patients, and the group's stratum.
        patients, cases: their numbers.
    """

    value: float
    drawn: np.ndarray
    left_out: np.ndarray
    strata: np.ndarray
    patients: int
    cases: int

    def estimate(self, metric: str) -> Estimate:
        """The value with its interval over patients, as `bootstrap.metric_intervals` finds that of the metric."""
        value = None if np.isnan(self.value) else self.value
        if not len(self.drawn):
            return Estimate(value, None, None, self.patients, "no interval")
        return interval(value, self.drawn, self.patients, (self.left_out, self.strata), is_skewed(metric))


def mean_of(jobs: Sequence[Resampled]) -> Resampled:
    """The mean of a metric over jobs that differ in their seed; undefined where one of them is."""
    means = {name: np.mean([getattr(job, name) for job in jobs], axis=0) for name in ("value", "drawn", "left_out")}
    return dataclasses.replace(jobs[0], **{**means, "value": float(means["value"])})


def resampled(folder: Path, study: Study, job_id: str, data: str, evaluated: str) -> dict[str, Resampled]:
    """Every metric of the study, and its values per class, by name; computed now or read from `statistics/`."""
    reporting = study.reporting
    facts = (study.metrics, reporting.level, reporting.aggregation, reporting.label_conflicts, reporting.resamples)
    content = predictions_file(folder, job_id, evaluated).read_bytes()
    digest = hashlib.blake2b(repr(facts).encode() + content, digest_size=8).hexdigest()
    path = folder / "statistics" / job_id / f"{evaluated}-{digest}.npz"
    if not path.is_file():
        predictions = read_predictions(folder, job_id, evaluated)
        eyes = read_images(folder, data, evaluated).set_index("id") if reporting.level == "eye" else None
        sides = None if eyes is None else eyes.loc[predictions["id"], "eye"].to_numpy(object)
        outcomes = read_outcomes(predictions, read_task(folder, data), reporting, sides)
        _save(path, resample(outcomes, study.metrics, reporting.resamples))
    return _load(path)


def resample(outcomes: Outcomes, metrics: Sequence[str], resamples: int, seed: int = 0) -> dict[str, Resampled]:
    """The metrics `metrics`, also per class, on `resamples` bootstrap samples of patients, drawn as in `bootstrap`."""
    draws = metric_draws(outcomes.problem_type, outcomes.labels, outcomes.scores, outcomes.class_names)
    rows, empty = len(outcomes.labels), np.zeros(0)
    once = draws.statistic()(np.ones((1, rows)))
    wanted = {name: float(value[0]) for name, value in once.items() if name.split("/", 1)[0] in metrics}
    found = {name: Resampled(value, empty, empty, empty, 1, rows) for name, value in wanted.items()}
    try:
        passes = list(draws.passes(wanted, outcomes.patients))
    except RetFoundError:  # a single patient
        return found
    for names, patients in passes:
        statistic, drawn, left_out, strata = draws.statistic(names), {}, {}, empty
        if resamples:
            drawn = evaluate(statistic, patients.draws(resamples, seed))
            strata, blocks = patients.left_out()
            left_out = evaluate(statistic, blocks)
        for name in names:
            found[name] = dataclasses.replace(found[name], strata=strata, patients=patients.count)
            if resamples and name not in WITHOUT_INTERVAL:
                found[name] = dataclasses.replace(found[name], drawn=drawn[name], left_out=left_out[name])
    return found


def _save(path: Path, table: dict[str, Resampled]) -> None:
    arrays = {f"{row}-{name}": value for row, one in enumerate(table.values()) for name, value in vars(one).items()}
    with whole_file(path) as partial:
        np.savez(partial, names=np.array(list(table), dtype=str), **arrays)


def _load(path: Path) -> dict[str, Resampled]:
    fields = [field.name for field in dataclasses.fields(Resampled)]
    with np.load(path) as stored:
        return {
            str(name): Resampled(*(_plain(stored[f"{index}-{field}"]) for field in fields))
            for index, name in enumerate(stored["names"])
        }


def _plain(array: np.ndarray) -> np.ndarray | float:
    return array if array.ndim else array.item()
