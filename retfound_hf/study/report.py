"""`report.html`: a study for a clinician and a reviewer."""

import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..data.splits import SPLITS
from ..errors import UnreadableImageError
from ..evaluation import document
from ..evaluation.document import Block, Picture, Section, Table, characteristics, counted, number, tripod_section
from ..evaluation.subgroups import FEWEST
from ..files import atomic_file, read_json, write_table
from ..images.reading import read_image
from ..vocabulary import SINGLE_LABEL
from . import report_parts as parts
from .report_parts import System, section
from .report_sections import (
    adaptation,
    calibration,
    comparison,
    external,
    label_efficiency,
    operating_points,
    subgroups,
)
from .results import StudyResults, read_study
from .tables import RESULT_COLUMNS, shared_text, without_paths

SIDE = 160  # pixels of a thumbnail
MOST_CLASSES = 6
NOTE = (
    "Paths of the machine on which the study ran are cut to their last parts, after …; study.yaml in the study's "
    "folder has them whole."
)
FOOTER = (
    "Every number of the tables is in results.csv, summary.csv, comparisons.csv or efficiency.csv beside this page, "
    "the figures are in figures/ as SVG and PNG."
)
# A class may hold any sign in its name, after the metric and a slash: `auroc/DR [mild]` is not the report's own.
OWN_NAME = re.compile(r"calibration_|[a-z0-9_]+[@\[]")


@section(
    "participants", "Participants",
    "Who was evaluated. Images and classes are counted by image, the facts of a person once for each.",
)  # fmt: skip
def participants(found: StudyResults, data: str) -> Block | None:
    """Characteristics of the images and patients of each evaluated set."""
    jobs = [job for job in found.finished if job.data == data]
    if not jobs:
        return None
    loaded = {name: found.predictions(jobs[0], name) for name in found.study.data[data].evaluated}
    sets = {name: (images.columns, images.targets) for name, images in loaded.items()}
    task = found.task(data)
    table = characteristics(sets, task["problem_type"], task["class_names"], fewest=FEWEST)
    rows = [[name, *row] for name, row in zip(table.index, table.to_numpy(), strict=True)]
    return Block(tables=[Table(["", *table], rows)])


@section("cohorts", "Cohorts", "Who was left out, and why, before any model saw an image.")
def cohorts(found: StudyResults, data: str) -> Block | None:
    """Flow chart of the cohort that a data set names."""
    if not (flow := parts.read_flow(found, data)):
        return None

    def counts(part: dict[str, Any]) -> list[str]:
        return ["–" if part.get(unit) is None else f"{part[unit]:,}" for unit in ("patients", "eyes", "images")]

    rows = []
    for stage in flow["stages"]:
        rows += [[f"excluded: {part['text']}", *counts(part)] for part in stage["excluded"] if part["images"]]
        rows.append([stage["text"], *counts(stage)])
    rows += [[f"{split} split", *counts(flow["splits"][split])] for split in SPLITS if split in flow.get("splits", {})]
    caption = "From all images to those that are labelled; each exclusion is counted once."
    alt = f"Flow chart of the cohort of {data}; the table below has its numbers"
    chart = Picture(Path(str(found.study.data[data].cohort), "flow.svg").read_bytes(), caption, alt, wide=True)
    return Block(charts=[chart], tables=[Table(["", "patients", "eyes", "images"], rows)])


@section(
    "examples", "Right and wrong with the highest confidence",
    "What the model is surest of. Look at the wrong ones first: a wrong label, a poor image, or a sign that the model "
    "takes for another all show here. Each image stands for itself, whatever counts as a case elsewhere.",
)  # fmt: skip
def examples(found: StudyResults, data: str) -> Block | None:
    """Thumbnails of test images by class; single-label tasks alone, where an answer is right or wrong."""
    count, reference = found.study.reporting.examples, found.study.reporting.reference
    systems = [one for one in parts.systems_of(found, data) if one.model == reference]
    if not count or not systems or found.task(data)["problem_type"] != SINGLE_LABEL:
        return None
    galleries = _galleries(found, data, systems[0], count)
    note = f"{systems[0].label}, the seed whose result is the median, on test images."
    return Block(galleries=galleries, notes=[note]) if galleries else None


def _galleries(found: StudyResults, data: str, system: System, count: int) -> list[tuple[str, list[Picture]]]:
    """The surest right and the surest wrong answers of each class, by title."""
    images, titles = found.predictions(system.job, "test"), list(parts.class_titles(found, data).values())
    predicted, confidence, galleries = images.scores.argmax(axis=1), images.scores.max(axis=1), []
    for index, title in enumerate(titles[:MOST_CLASSES]):
        both = []
        for kind, hit in (("right", predicted == images.targets), ("wrong", predicted != images.targets)):
            rows = np.flatnonzero((images.targets == index) & hit)
            rows = rows[np.argsort(-confidence[rows], kind="stable")][:count]
            captions = {images.columns["image"][row]: f"predicted {titles[predicted[row]]}\nconfidence "
                        f"{number(confidence[row], 2)}" for row in rows}  # fmt: skip
            both.append((f"{title}, {kind}", _thumbnails(captions)))
        if any(pictures for _, pictures in both):  # side by side, so that one without pictures keeps its place
            galleries += both
    return galleries


def _thumbnails(captions: dict[str, str]) -> list[Picture]:
    """Small pictures of image files by path; without those that are not files, or not here any more."""
    pictures = []
    for path, caption in captions.items():
        try:
            image = read_image(path)
        except (UnreadableImageError, OSError):
            continue
        image.thumbnail((SIDE, SIDE))
        file = io.BytesIO()
        image.save(file, "JPEG", quality=82)
        pictures.append(Picture(file.getvalue(), caption))
    return pictures


def failures(found: StudyResults) -> Section | None:
    """Jobs without a result."""
    failed = [job for job in found.jobs if job.status != "finished"]
    missing = found.planned - len(found.jobs)
    if not failed and not missing:
        return None
    notes = [f"{missing} of {found.planned} jobs have not ended yet."] if missing else []
    rows = [[job.id, without_paths(job.reason)] for job in failed]
    tables = [Table(["job", "reason"], rows, text=2)] if failed else []
    lead = "Jobs that came to no result. They are in none of the numbers above; the same command tries them again."
    return Section("failures", "What is missing", lead, [Block(tables=tables, notes=notes)])


def settings(found: StudyResults) -> Section:
    """The exact settings, and the versions and hardware of the jobs, which may have run on several machines."""
    record = read_json(found.folder / "run.json")
    known = [job.facts for job in found.finished]
    packages = dict.fromkeys(name for facts in known for name in facts["versions"])
    versions = ", ".join(f"{name} {_each(facts['versions'].get(name) for facts in known)}" for name in packages)
    hardware = (f"{facts['device']}, {counted(facts['threads'], 'CPU thread')}" for facts in known)
    seconds = sum(job.seconds or 0 for job in found.finished)
    facts = [
        ["jobs that finished", f"{len(found.finished)} of {found.planned}"],
        ["time of all jobs", parts.duration(seconds)],
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
    """Value that all jobs share, or every value with the number of its jobs."""
    counts = Counter(value or "–" for value in values)
    if len(counts) < 2:
        return next(iter(counts), "–")
    return ", ".join(f"{value} ({counted(count, 'job')})" for value, count in counts.items())


SECTIONS = (
    comparison, participants, label_efficiency, external, calibration, operating_points, subgroups, adaptation,
    cohorts, examples, failures, settings,
)  # fmt: skip


def write_report(folder: str | Path) -> Path:
    """Write `report.html` and `figures/` (SVG and PNG) into a study's folder, and its own numbers to results.csv.

    A section without data is left out. The same folder gives the same report.

    Raises:
        OutputError: no study's folder.
    """
    found = read_study(folder)
    sections = build_sections(found)
    _add_rows(found, sections)
    path = found.folder / "report.html"
    with atomic_file(path) as partial:
        partial.write_text(render(found, sections), encoding="utf-8")
    return path


def build_sections(found: StudyResults) -> list[Section]:
    """The sections that have something to tell, in the order of the report, and the checklist of what they answer."""
    builders = SECTIONS if found.finished else (failures, settings)
    sections = [part for build in builders if (part := build(found)) is not None]
    return [*sections, tripod_section(sections)] if found.finished else sections


def render(found: StudyResults, sections: list[Section]) -> str:
    """The page, which needs no other file."""
    study = found.study
    size = [counted(len(study.models), "model"), counted(len(study.data), "data set")]
    if not found.summary.empty:
        size.append(f"{parts.seeds_of(found.summary['seeds'])} each")
    about = f"{', '.join(size)}, by the evaluation protocol of RETFound (Zhou et al., Nature 2023)."
    return document.render(study.name, about, sections, FOOTER)


def _add_rows(found: StudyResults, sections: list[Section]) -> None:
    """Numbers that only the report computes: those of thresholds, calibration and subgroups."""
    own = found.results["metric"].map(lambda name: OWN_NAME.match(str(name)) is not None).astype(bool)
    numbers = [row for part in sections for block in part.blocks for row in block.numbers]
    rows = pd.DataFrame(numbers, columns=list(RESULT_COLUMNS), dtype=object)
    table = pd.concat([found.results[~own].astype(object), rows])
    for name in ("seed", "cases", "patients"):  # whole numbers, some of which are absent
        table[name] = pd.to_numeric(table[name]).astype("Int64")
    write_table(found.folder / "results.csv", table)
