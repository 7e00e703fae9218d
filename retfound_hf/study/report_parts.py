"""Parts of the report: sections, tables, charts, formatted numbers, names of systems and classes."""

import base64
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..evaluation.estimates import Estimate
from ..evaluation.metrics import lower_is_better
from ..evaluation.plots import COLOURS, figure
from ..files import atomic_file
from .results import JobResult, Outcomes, StudyResults, read_outcomes


def is_missing(value: Any) -> bool:
    """Whether a cell of a table holds no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 3) -> str:
    """Such as `0.912`; an en dash where there is none."""
    return "–" if is_missing(value) else f"{value:.{digits}f}".replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """Such as `0.884 to 0.935`."""
    return "–" if is_missing(low) and is_missing(high) else f"{number(low)} to {number(high)}"


def p_value(value: Any) -> str:
    """Such as `0.031`, or `<0.001`."""
    return "<0.001" if not is_missing(value) and value < 0.001 else number(value)


def share(value: float) -> str:
    """Such as `30%`."""
    return f"{100 * value:g}%"


def span(counts: Iterable[int]) -> str:
    """Such as `5`, or `1 to 5`."""
    low, high = min(found := [int(count) for count in counts]), max(found)
    return f"{low}" if low == high else f"{low} to {high}"


def duration(seconds: Any) -> str:
    """Such as `0.4 s`, `48 s`, `12 min`, `3.5 h`."""
    if is_missing(seconds):
        return "–"
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `text` columns are words, all others numbers.

    Attributes:
        emphasis: rows to be set apart, such as the reference's.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: int = 1
    emphasis: frozenset[int] = frozenset()


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Chart:
    """A figure: `svg` is its path, `alt` says what it shows to those who cannot see it.

    Attributes:
        wide: too wide to be read when shrunk to a phone, which scrolls it instead.
    """

    svg: Path
    caption: str
    alt: str
    wide: bool = False

    @property
    def source(self) -> str:
        """As an address that needs no other file."""
        return _address("svg+xml", self.svg.read_bytes())


@dataclass(frozen=True)
class Thumbnail:
    """A small picture (JPEG) and what is said below it."""

    jpeg: bytes
    lines: Sequence[str]

    @property
    def source(self) -> str:
        return _address("jpeg", self.jpeg)


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row under a title."""

    title: str
    pictures: Sequence[Thumbnail]


@dataclass(frozen=True)
class Block:
    """A part of a section, mostly of one data set."""

    title: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    notes: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    Attributes:
        lead: what it tells, in words for readers who are no statisticians.
        rows: numbers that stand nowhere else, for results.csv (`layout.RESULT_COLUMNS`).
    """

    name: str
    title: str
    lead: str
    blocks: Sequence[Block]
    rows: Sequence[dict[str, Any]] = field(default=())


@contextmanager
def chart(folder: Path, name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure, `width` x `height` inches, written as `name.svg` and `name.png` into `folder`."""
    with figure(folder / f"{name}.svg", width, height) as drawn:
        yield drawn
        with atomic_file(folder / f"{name}.png") as partial:
            drawn.savefig(partial)


def file_name(*words: str) -> str:
    """Words as the name of a file, without what file systems and shells take ill."""
    text = "-".join(words)
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")


def read_flow(found: StudyResults, data: str) -> dict[str, Any]:
    """`flow.json` of the cohort that a data set names; empty where it names none, or it is not here any more."""
    cohort = found.study.data_set(data).cohort
    path = Path(cohort or "", "flow.json")
    return json.loads(path.read_text(encoding="utf-8")) if cohort and path.is_file() else {}


def class_titles(found: StudyResults, data: str) -> dict[str, str]:
    """What to call each class of a data set."""
    own = read_flow(found, data).get("classes", {})
    return {name: own.get(name, name) for name in found.task(data)["class_names"]}


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
    return sorted(systems, key=lambda one: one.mean, reverse=not lower_is_better(metric))


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


def said(estimate: Estimate) -> str:
    """Such as `0.912`, and its interval on the next line."""
    if is_missing(estimate.value):
        return "–"
    # On a line of its own: four of them stand side by side.
    ends = "" if estimate.interval is None else f"\n({interval(estimate.low, estimate.high)})"
    return number(estimate.value) + ends


def result_row(system: System, evaluated: str, metric: str, value: Estimate, cases: int) -> dict[str, Any]:
    """A row of results.csv for a number that the report computes, on so many cases."""
    job = system.job
    return {
        "job": job.id, "data": job.data, "model": job.model, "method": job.method, "fraction": job.fraction,
        "seed": job.seed, "set": evaluated, "metric": metric, "value": value.value, "low": value.low,
        "high": value.high, "interval": value.method if value.interval else "", "cases": cases,
        "patients": value.n or None, "seconds": job.seconds, "status": job.status, "reason": "",
    }  # fmt: skip
