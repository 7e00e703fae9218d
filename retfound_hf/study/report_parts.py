"""Parts of the report: sections, tables, charts, formatted numbers, and the systems that they compare."""

import base64
import json
import math
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
from ..evaluation.metrics import lower_is_better
from ..evaluation.plots import COLOURS
from ..evaluation.plots import figure as styled_figure
from ..files import atomic_file
from .results import JobResult, StudyResults


def where(table: pd.DataFrame, **values: Any) -> pd.DataFrame:
    """The rows in which columns have these values."""
    return table[(table[list(values)] == pd.Series(values)).all(axis=1)]


def is_missing(value: Any) -> bool:
    """Whether a cell of a table holds no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 3) -> str:
    """Such as `0.912`; an en dash where there is none."""
    return "–" if is_missing(value) else f"{value:.{digits}f}".replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """Such as `0.884 to 0.935`."""
    return "–" if is_missing(low) and is_missing(high) else f"{number(low)} to {number(high)}"


def estimated(estimate: Estimate) -> str:
    """Such as `0.912`, with its interval on the next line: four of them stand side by side."""
    ends = "" if estimate.interval is None else f"\n({interval(estimate.low, estimate.high)})"
    return number(estimate.value) + ends


def p_value(value: Any) -> str:
    """Such as `0.031`, or `<0.001`."""
    return "<0.001" if not is_missing(value) and value < 0.001 else number(value)


def share(value: float) -> str:
    """Such as `30%`."""
    return f"{100 * value:g}%"


def counted(count: int | str, noun: str) -> str:
    """Such as `1 seed` or `1 to 5 seeds`."""
    return f"{count} {noun}" + ("" if str(count) == "1" else "s")


def seeds_of(counts: Iterable[int]) -> str:
    """How many seeds means are over: a model on some data may have fewer than the study."""
    low, high = min(found := [int(count) for count in counts]), max(found)
    return counted(f"{low}" if low == high else f"{low} to {high}", "seed")


def duration(seconds: Any) -> str:
    """Such as `0.4 s`, `48 s`, `12 min`, `3.5 h`."""
    if is_missing(seconds):
        return "–"
    if seconds < 120:
        return f"{seconds:.{int(seconds < 10)}f} s"
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


@dataclass(frozen=True)
class Picture:
    """Figure or thumbnail as an address that needs no other file.

    Attributes:
        content: SVG or JPEG.
        caption: one line or several below it.
        alt: what it shows to those who cannot see it.
        wide: too wide to be read when shrunk to a phone, which scrolls it instead.
    """

    content: bytes
    caption: str
    alt: str = ""
    wide: bool = False

    @property
    def source(self) -> str:
        """Data URL."""
        kind = "jpeg" if self.content.startswith(b"\xff\xd8") else "svg+xml"
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Block:
    """Part of a section, mostly of one data set.

    Attributes:
        galleries: rows of pictures by title.
        numbers: what stands in no other table, for results.csv (`results.RESULT_COLUMNS`).
    """

    title: str = ""
    charts: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[tuple[str, Sequence[Picture]]] = ()
    notes: Sequence[str] = ()
    code: str = ""
    numbers: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Section:
    """Chapter of the report; `lead` is for readers who are no statisticians."""

    name: str
    title: str
    lead: str
    blocks: Sequence[Block]


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
    path = Path(found.study.data[data].cohort or "", "flow.json")
    return json.loads(path.read_text(encoding="utf-8")) if found.study.data[data].cohort and path.is_file() else {}


def class_titles(found: StudyResults, data: str) -> dict[str, str]:
    """What to call each class of a data set."""
    own = read_flow(found, data).get("classes", {})
    return {name: own.get(name, name) for name in found.task(data)["class_names"]}


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
    """How tables and figures call a model and a method."""
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
