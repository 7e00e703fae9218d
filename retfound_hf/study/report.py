"""`report.html`: a study for a clinician and a reviewer."""

import json
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import pandas as pd

from ..data.splits import SPLITS
from ..files import atomic_file
from .report_comparison import adaptation, comparison, external, label_efficiency, trainings
from .report_parts import Block, Chart, Section, Table, duration, read_flow
from .report_sections import calibration, examples, operating_points, subgroups
from .results import RESULT_COLUMNS, StudyResults, read_study
from .tables import shared_text, without_paths, write_table

NOTE = (
    "Paths of the machine on which the study ran are cut to their last parts, after …; study.yaml in the study's "
    "folder has them whole."
)


def cohorts(found: StudyResults, figures: Path) -> Section | None:
    """Flow charts of the cohorts that data sets name."""
    blocks = []
    for data in found.study.data:
        flow = read_flow(found, data.name)
        if flow:
            picture = Path(str(data.cohort), "flow.svg")
            caption = "From all images to those that are labelled; each exclusion is counted once."
            alt = f"Flow chart of the cohort of {data.name}; the table below has its numbers"
            blocks.append(Block(data.name, [Chart(picture, caption, alt, wide=True)], [_flow_table(flow)]))
    lead = "Who was left out, and why, before any model saw an image."
    return Section("cohorts", "Cohorts", lead, blocks) if blocks else None


def _flow_table(flow: dict) -> Table:
    def counts(part: dict) -> list[str]:
        return ["–" if part.get(unit) is None else f"{part[unit]:,}" for unit in ("patients", "eyes", "images")]

    rows = []
    for stage in flow["stages"]:
        rows += [[f"excluded: {part['text']}", *counts(part)] for part in stage["excluded"] if part["images"]]
        rows.append([stage["text"], *counts(stage)])
    rows += [[f"{split} split", *counts(flow["splits"][split])] for split in SPLITS if split in flow.get("splits", {})]
    return Table(["", "patients", "eyes", "images"], rows)


def failures(found: StudyResults, figures: Path) -> Section | None:
    """Jobs without a result."""
    failed = [job for job in found.jobs if job.status != "finished"]
    missing = found.planned - len(found.jobs)
    if not failed and not missing:
        return None
    notes = [f"{missing} of {found.planned} jobs have not ended yet."] if missing else []
    rows = [[job.id, without_paths(job.reason)] for job in failed]
    tables = [Table(["job", "reason"], rows, text=2)] if failed else []
    lead = (
        "Trainings that came to no result. They are in none of the numbers above; the same command tries them again."
    )
    return Section("failures", "What is missing", lead, [Block(tables=tables, notes=notes)])


def settings(found: StudyResults, figures: Path) -> Section:
    """The exact settings, and the versions and hardware of the jobs, which may have run on several machines."""
    record = json.loads((found.folder / "run.json").read_text(encoding="utf-8"))
    known = [job.facts for job in found.finished]
    packages = dict.fromkeys(name for facts in known for name in facts["versions"])
    versions = ", ".join(f"{name} {_each(facts['versions'].get(name) for facts in known)}" for name in packages)
    hardware = (f"{facts['device']}, {facts['threads']} CPU thread{'s'[: facts['threads'] > 1]}" for facts in known)
    seconds = sum(job.seconds or 0 for job in found.finished)
    facts = [
        ["jobs that finished", f"{len(found.finished)} of {found.planned}"], ["time of all jobs", duration(seconds)],
        ["git revision", _each(facts.get("git_revision") for facts in known)], ["hardware", _each(hardware)],
        ["last call ended", record["finished"]],
    ]  # fmt: skip
    blocks = [
        Block("Run", tables=[Table(["", ""], facts, text=2)]),
        Block("Versions", notes=[f"{versions or '–'}."]),
        Block("Study file", notes=[NOTE], code=shared_text(found.study)),
    ]
    return Section("settings", "Settings and versions", "What another group needs to repeat this study.", blocks)


def _each(values: Iterable[str | None]) -> str:
    """What all jobs share, or every value with the number of its jobs."""
    counts = Counter(value or "–" for value in values)
    if len(counts) < 2:
        return next(iter(counts), "–")
    return ", ".join(f"{value} ({count} job{'s'[: count > 1]})" for value, count in counts.items())


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
    with atomic_file(path) as partial:
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
