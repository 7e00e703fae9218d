"""From a study's folder to its report."""

import re
from pathlib import Path

import pandas as pd

from ...runs.files import whole_file
from ..folder import StudyResults, read_study
from ..layout import RESULT_COLUMNS
from ..tables import write_table
from .comparison import comparison, trainings
from .curves import adaptation, external, label_efficiency
from .examples import examples
from .groups import subgroups
from .parts import Section
from .provenance import cohorts, failures, settings
from .trust import calibration, operating_points

SECTIONS = (
    comparison, label_efficiency, external, calibration, operating_points, subgroups, adaptation, cohorts, examples,
    failures, settings,
)  # fmt: skip
TEMPLATES = Path(__file__).parent / "templates"
# A class may hold any sign in its name, after the metric and a slash: `auroc/DR [mild]` is not the report's own.
OWN_NAME = re.compile(r"calibration_|[a-z0-9_]+[@\[]")


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/` (SVG and PNG) into a study's folder, and its own numbers to results.csv.

    A section without data is left out. The same folder gives the same report.

    Raises:
        RetFoundError: no study's folder.
    """
    found = read_study(folder)
    sections = build_sections(found)
    _add_rows(found, sections)
    path = found.folder / "report.html"
    with whole_file(path) as partial:
        partial.write_text(render(found, sections), encoding="utf-8")
    return path


def build_sections(found: StudyResults) -> list[Section]:
    """The sections that have something to tell, in the order of the report."""
    if not found.finished:
        return [part for build in (failures, settings) if (part := build(found, found.folder / "figures")) is not None]
    return [part for build in SECTIONS if (part := build(found, found.folder / "figures")) is not None]


def render(found: StudyResults, sections: list[Section]) -> str:
    """One HTML page that needs no other file; whatever the study's names hold is text in it."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    style = (TEMPLATES / "report.css").read_text(encoding="utf-8")
    count = "" if found.summary.empty else trainings(found.summary)
    return environment.get_template("report.html").render(
        study=found.study, trainings=count, sections=sections, style=style
    )


def _add_rows(found: StudyResults, sections: list[Section]) -> None:
    """Numbers that only the report computes: those of thresholds, calibration and subgroups."""
    own = found.results["metric"].map(lambda name: OWN_NAME.match(str(name)) is not None).astype(bool)
    rows = pd.DataFrame([row for part in sections for row in part.rows], columns=list(RESULT_COLUMNS), dtype=object)
    table = pd.concat([found.results[~own].astype(object), rows])
    for name in ("seed", "cases", "patients"):  # whole numbers, some of which are absent
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    write_table(found.folder / "results.csv", table)
