"""Where the numbers come from: who is in the cohorts, what failed, settings, versions, machine."""

import json
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from ...data.splits import SPLITS
from ..folder import StudyResults
from ..text import shared_text, without_paths
from .classes import read_flow
from .numbers import duration
from .parts import Block, Chart, Section, Table

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
