"""Parts of the report: sections, tables, charts, formatted numbers, and the systems that they compare."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from ..evaluation.bootstrap import Estimate
from ..evaluation.document import Block, Picture, Section, counted, is_missing
from ..evaluation.metrics import lower_is_better, metric_title
from ..evaluation.plots import COLOURS
from ..evaluation.plots import figure as styled_figure
from ..files import atomic_file, read_json
from .results import JobResult, StudyResults


def where(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows in which columns have these values."""
    return table[(table[list(values)] == pd.Series(values)).all(axis=1)]


def seeds_of(counts: Iterable[int]) -> str:
    """Number of seeds that means are over: a model on some data may have fewer than the study."""
    low, high = min(found := [int(count) for count in counts]), max(found)
    return counted(f"{low}" if low == high else f"{low} to {high}", "seed")


def duration(seconds: Any) -> str:
    """Such as `0.4 s`, `48 s`, `12 min`, `3.5 h`."""
    if is_missing(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.{int(seconds < 10)}f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def section(
    name: str, title: str, lead: str
) -> Callable[[Callable[..., Block | None]], Callable[..., Section | None]]:
    """Section of a block per data set; no section where no data set has a block.

    Args:
        name: anchor in the page.
        title: heading.
        lead: with `{case}` for what counts as a case: image, eye or patient.

    Returns:
        A decorator for functions of a study and the name of a data set.
    """

    def decorate(build: Callable[[StudyResults, str], Block | None]) -> Callable[[StudyResults], Section | None]:
        @wraps(build)
        def of_study(found: StudyResults) -> Section | None:
            blocks = [replace(block, title=data) for data in found.study.data if (block := build(found, data))]
            text = lead.format(case=found.study.reporting.level)
            return Section(name, title, text, blocks) if blocks else None

        return of_study

    return decorate


class Drawing:
    """Figure of a report: `figure` to draw on, then `picture` for the page."""

    def __init__(self, figure: Figure, path: Path):
        self.figure, self.path = figure, path

    def legend(self) -> None:
        """Below the panels, the labels of the first one."""
        handles, labels = self.figure.axes[0].get_legend_handles_labels()
        self.figure.legend(handles, labels, loc="outside lower center", ncols=2)

    def picture(self, caption: str, alt: str, wide: bool = False) -> Picture:
        """The finished figure."""
        return Picture(self.path.read_bytes(), caption, alt, wide)


@contextmanager
def drawing(found: StudyResults, kind: str, data: str, width: float, height: float) -> Iterator[Drawing]:
    """A figure, `width` x `height` inches, written as SVG and PNG into the study's `figures/`."""
    text = f"{kind}-{data}".lower()
    name = "".join(letter if letter.isalnum() else "-" for letter in text).strip("-")
    path = found.folder / "figures" / f"{name}.svg"
    with styled_figure(path, width, height) as drawn:
        yield Drawing(drawn, path)
        with atomic_file(path.with_suffix(".png")) as partial:
            drawn.savefig(partial)


def read_flow(found: StudyResults, data: str) -> dict[str, Any]:
    """`flow.json` of the cohort that a data set names; empty where it names none, or it is not here any more."""
    cohort = found.study.data[data].cohort
    return read_json(Path(cohort, "flow.json"), absent={}) if cohort else {}


def class_titles(found: StudyResults, data: str) -> dict[str, str]:
    """Title of each class of a data set."""
    own = read_flow(found, data).get("classes", {})
    return {name: own.get(name, name) for name in found.task(data)["class_names"]}


def title_of(found: StudyResults, data: str, metric: str) -> str:
    """Heading of a metric; a mean of several classes is called one."""
    same = metric == "auroc" and found.finding(data) is not None  # for both of two classes
    return metric_title(metric, several=len(found.task(data)["class_names"]) > 1 and not same)


MOST_DRAWN = 6  # systems in one figure: as many as there are colours that the colour-blind can tell


@dataclass(frozen=True, eq=False)
class System:
    """A model and a method on one data set, at the largest label fraction.

    Attributes:
        label: the model's name, with the method's where the study has several.
        job: the one whose main metric on the test set is the median of the seeds.
        mean: of the main metric on the test set over the seeds.
    """

    model: str
    method: str
    label: str
    job: JobResult
    mean: float


def systems_of(found: StudyResults, data: str) -> list[System]:
    """The systems of a data set that have finished jobs, the best one first."""
    metric, fraction = found.metrics(data)[0], max(found.study.fractions)
    chosen = where(found.results, data=data, set="test", metric=metric, fraction=fraction).dropna(subset=["value"])
    jobs = {job.id: job for job in found.finished}
    systems = []
    for (model, method), rows in chosen.groupby(["model", "method"], sort=False):
        median = rows.sort_values(["value", "seed"])["job"].iloc[(len(rows) - 1) // 2]
        label, mean = label_of(found, model, method), float(rows["value"].mean())
        systems.append(System(model, method, label, jobs[median], mean))
    return sorted(systems, key=lambda one: one.mean, reverse=not lower_is_better(metric))


def label_of(found: StudyResults, model: str, method: str) -> str:
    """Name of a model and a method in tables and figures."""
    return model if len(found.study.methods) == 1 else f"{model}, {method}"


def drawn_systems(found: StudyResults, data: str) -> list[System]:
    """Those that a figure has room for: the best ones, and the reference in any case."""
    systems = systems_of(found, data)
    own = [one for one in systems if one.model == found.study.reporting.reference][:1]
    kept = [*own, *(one for one in systems if one not in own)][:MOST_DRAWN]
    return [one for one in systems if one in kept]


def colours_of(found: StudyResults, systems: Sequence[System]) -> list[str]:
    """A colour for each: the same on every data set, as long as the study has no more systems than colours."""
    places = {key: place for place, key in enumerate(product(found.study.models, found.study.methods))}
    own = [places[one.model, one.method] for one in systems]
    if len(places) > len(COLOURS):
        own = [sorted(own).index(place) for place in own]
    return [COLOURS[place] for place in own]


def result_row(system: System, evaluated: str, metric: str, value: Estimate, cases: int) -> dict[str, Any]:
    """A row of results.csv for a number that the report computes, on so many cases."""
    return {
        **system.job.columns, "set": evaluated, "metric": metric, "value": value.value, "low": value.low,
        "high": value.high, "interval": value.method if value.interval else "", "cases": cases,
        "patients": value.n or None, "seconds": system.job.seconds, "status": system.job.status, "reason": "",
    }  # fmt: skip
