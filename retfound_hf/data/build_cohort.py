"""Command `build_cohort`: a labelled cohort from the tables of a registry, with its flow chart."""

import os
import re
import textwrap
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import pandas as pd

from ..evaluation.plots import GREY, PALE, figure
from ..files import atomic_folder, refuse_existing, write_json, write_table
from ..options import parse_arguments
from ..record import write_run_record
from .cohort import Cohort, Horizon, Matching, Question, build_cohort, default_unit
from .flow import Counts, Flow, format_counts
from .registry import DateReader, read_registry
from .splits import PAPER_FRACTIONS
from .tables import check_images_exist

LINE = 0.16  # inches
MAIN, SIDE = 2.7, 3.5  # widths in inches
GAP, PADDING, MARGIN = 0.22, 0.08, 0.05


@dataclass
class CohortArguments:
    images: str = field(metadata={"positional": True, "help": "table: image, patient_id, date, optionally eye"})
    events: str = field(metadata={"positional": True, "help": "table: patient_id, event, date, optionally eye"})
    out: str = field(metadata={"positional": True, "help": "folder to make"})
    event: list[str] = field(metadata={"help": "as the events table calls it; of several the first counts"})
    horizon: str = field(metadata={"help": "such as 1y, 18m, 52w or 365d"})
    patients: str | None = field(
        default=None, metadata={"help": "table: patient_id, and birth_date, sex, death, last_follow_up where known"}
    )
    follow_up_end: str | None = field(
        default=None, metadata={"help": "day on which the data were closed: later records count as unseen"}
    )
    unit: Literal["auto", "patient", "eye", "fellow_eye"] = field(
        default="auto",
        metadata={
            "help": "whose event: the person's, the photographed eye's, or that of the fellow of an affected eye; "
            "auto: eye where the events name eyes, else patient"
        },
    )
    visits: Literal["first", "random", "all"] = field(
        default="first", metadata={"help": "which at-risk visits of each patient (or eye) are index visits"}
    )
    images_per_visit: Literal["one", "all"] = field(default="one", metadata={"help": "of each eye and visit"})
    quality_column: str | None = field(
        default=None, metadata={"help": "the one image of a visit is that with its highest number; default: by name"}
    )
    exclude_prior: list[str] = field(
        default_factory=list, metadata={"help": "further events that exclude a patient's images from their day on"}
    )
    match_controls: int | None = field(
        default=None, metadata={"help": "controls for each case, matched by age and sex; all by default"}
    )
    match_age_caliper: float = field(default=2.0, metadata={"help": "largest difference in age, in years"})
    match_sex: bool = field(default=True, metadata={"help": "whether matched patients are of one sex"})
    split_fractions: list[float] = field(
        default_factory=lambda: list(PAPER_FRACTIONS), metadata={"help": "shares of patients of train, val and test"}
    )
    seed: int = field(default=0, metadata={"help": "of splits, controls and random visits"})
    date_format: str | None = field(
        default=None, metadata={"help": "of all dates, such as %%d/%%m/%%Y; default: 2019-03-04 (ISO 8601)"}
    )
    time_zone: str | None = field(
        default=None, metadata={"help": "the clinic's, such as Europe/London, for times with an offset"}
    )
    image_column: str = field(default="image", metadata={"help": "column of the image paths"})
    image_root: str | None = field(
        default=None, metadata={"help": "folder that image paths are relative to; default: the table's"}
    )
    check_images: bool = field(default=True, metadata={"help": "whether the image files must exist"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Command `build_cohort`: build and write a cohort, and print its flow."""
    description = "A labelled cohort from the dates of images and events."
    (args,) = parse_arguments(CohortArguments, argv=argv, description=description)
    cohort = cohort_of_tables(args)
    for stage in cohort.flow.stages:
        for part in stage.excluded:
            print(f"  - {format_counts(part.counts)}: {part.text}")
        print(f"{format_counts(stage.counts)}: {stage.text}")
    for split, counts in cohort.flow.as_dict()["splits"].items():
        with_event = counts["labels"].get("1", {"images": 0})["images"]
        print(f"{split}: {format_counts(counts)}, {with_event:,} images with the event")
    for table in ("events", "patients"):
        if unseen := cohort.facts.get(f"patients_without_images_in_{table}"):
            print(f"{unseen:,} patients of the {table} table have no image")
    if inferred := cohort.facts["patients_with_follow_up_from_last_record"]:
        print(f"follow-up of {inferred:,} patients ends with their last record, as none is given")
    checks = cohort.checks
    print(
        f"risk within {cohort.question.horizon}: {checks['risk']} of the labelled images, "
        f"{checks['kaplan_meier_risk']} by Kaplan-Meier of all who were followed"
    )
    dates = checks["date_auroc"]
    print(f"the date of the image alone tells the label with an AUROC of {dates}")
    if dates.interval and not dates.low <= 0.5 <= dates.high:
        print(
            "  labels depend on the calendar: see whether all were followed to one day (then give `follow_up_end`), "
            "or whether events came, or were recorded, more often in some years"
        )
    print(Path(args.out) / "cohort.csv")


def cohort_of_tables(args: CohortArguments) -> Cohort:
    """Build a cohort from tables on disk and write `cohort.csv`, `flow.json`, `flow.png`, `flow.svg` and `run.json`.

    Raises:
        BadDataError: tables that cannot be true, or nothing left; `.rows` lists the offending rows.
        BadArgumentError: an option out of range, or an unknown event.
    """
    refuse_existing(args.out, args.overwrite_output_dir)
    horizon = Horizon.parse(args.horizon)
    matching = None
    if args.match_controls is not None:
        matching = Matching(args.match_controls, args.match_age_caliper, args.match_sex)
    registry = read_registry(
        args.images, args.events, args.patients, reader=DateReader(args.date_format, args.time_zone),
        follow_up_end=args.follow_up_end, image_column=args.image_column, image_root=args.image_root,
    )  # fmt: skip
    events = tuple(args.event)
    unit = default_unit(registry, events) if args.unit == "auto" else args.unit
    cohort = build_cohort(
        registry, Question(events, horizon, unit, tuple(args.exclude_prior)), visits=args.visits,
        images=args.images_per_visit, quality_column=args.quality_column, matching=matching,
        split_fractions=args.split_fractions, seed=args.seed,
    )  # fmt: skip
    if args.check_images:
        check_images_exist(cohort.table.assign(id=cohort.table["image"]), args.images)
    with atomic_folder(args.out, args.overwrite_output_dir) as partial:
        write_cohort(cohort, partial, Path(args.out))
        write_run_record(partial, "build_cohort", args, unit=unit, **cohort.facts)
    return cohort


def write_cohort(cohort: Cohort, folder: Path, home: Path) -> None:
    """Write `cohort.csv`, `flow.json`, `flow.png` and `flow.svg`.

    Args:
        cohort: of `build_cohort`.
        folder: of the files, which will be moved to `home`.
        home: paths of images are written relative to it, so that images and cohort may be moved together.
    """
    table = cohort.table.assign(image=[_relative(path, home) for path in cohort.table["image"]])
    for name in table:
        if pd.api.types.is_datetime64_any_dtype(table[name]):
            table[name] = table[name].dt.strftime("%Y-%m-%d")
    write_table(folder / "cohort.csv", table)
    checks = {name: asdict(estimate) for name, estimate in cohort.checks.items()}
    facts = {"classes": cohort.question.classes, "facts": cohort.facts, "checks": checks}
    write_json(folder / "flow.json", cohort.flow.as_dict() | facts)
    for suffix in ("png", "svg"):
        plot_flow(cohort.flow, folder / f"flow.{suffix}")


def _relative(path: str, home: Path) -> str:
    try:
        return Path(os.path.relpath(path, home.resolve())).as_posix()
    except ValueError:  # another drive
        return path


def plot_flow(flow: Flow, path: Path) -> Path:
    """Write the flow chart; the file's suffix decides on PNG or SVG.

    The stages run down the left, the exclusions stand on the right between them, classes and splits below.
    """
    stages = [stage for stage in flow.stages if stage.name == "read" or stage.excluded]
    boxes = [[*_wrap(stage.text, 40), format_counts(stage.counts)] for stage in stages]
    asides = [
        [line for part in stage.excluded if part.counts["images"]
         for line in (*_wrap(f"Excluded: {part.text}", 54), f"    {format_counts(part.counts)}")]
        for stage in stages
    ]  # fmt: skip
    ends = _split_boxes(flow.as_dict())
    heights = [LINE * len(lines) + 2 * PADDING for lines in boxes]
    rooms = [max(GAP, LINE * len(lines) + 2 * PADDING + GAP if lines else 0) for lines in asides[1:]]
    end_height = LINE * max(len(lines) for lines in ends) + 2 * PADDING
    width, height = MAIN + GAP + SIDE + 2 * MARGIN, sum(heights) + sum(rooms) + GAP + end_height + 2 * MARGIN
    with figure(path, width, height) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.axis("off")
        trunk, top = MARGIN + MAIN / 2, height - MARGIN
        for index, lines in enumerate(boxes):
            _draw_box(axes, MARGIN, top, MAIN, heights[index], lines, first_bold=True)
            top -= heights[index]
            if index == len(boxes) - 1:
                break
            _draw_arrow(axes, (trunk, top), (trunk, top - rooms[index]))
            if aside := asides[index + 1]:
                tall, middle = LINE * len(aside) + 2 * PADDING, top - rooms[index] / 2
                _draw_arrow(axes, (trunk, middle), (MARGIN + MAIN + GAP, middle))
                _draw_box(axes, MARGIN + MAIN + GAP, middle + tall / 2, SIDE, tall, aside)
            top -= rooms[index]
        # The splits side by side under a bar.
        each = (width - 2 * MARGIN - GAP * (len(ends) - 1)) / len(ends)
        centres = [MARGIN + each / 2 + index * (each + GAP) for index in range(len(ends))]
        bar = top - GAP / 2
        axes.plot([trunk, trunk], [top, bar], color=GREY, linewidth=0.8)
        axes.plot([centres[0], centres[-1]], [bar, bar], color=GREY, linewidth=0.8)
        for centre, lines in zip(centres, ends, strict=True):
            _draw_arrow(axes, (centre, bar), (centre, top - GAP))
            _draw_box(axes, centre - each / 2, top - GAP, each, end_height, lines, first_bold=True)
    return path


def _split_boxes(flow: dict[str, Any]) -> list[list[str]]:
    """Lines of the box of each split."""
    boxes = []
    for split, counts in flow["splits"].items():
        names = {"train": "Training", "val": "Validation", "test": "Test"}
        lines = [names[split], *_wrap_counts(counts, 35)]
        for label, part in sorted(counts["labels"].items(), reverse=True):
            lines.append("with the event:" if label == "1" else "without the event:")
            lines += [f"    {line}" for line in _wrap_counts(part | {"eyes": None}, 31)]
        boxes.append(lines)
    return boxes


def _wrap_counts(counts: Counts, width: int) -> list[str]:
    """Lines that never part a number from its unit."""
    return _wrap(re.sub(r"(\d) ", "\\1\N{NO-BREAK SPACE}", format_counts(counts)), width)


def _wrap(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _draw_box(
    axes: Any, left: float, top: float, width: float, height: float, lines: list[str], first_bold: bool = False
) -> None:
    from matplotlib.patches import Rectangle

    face = "#eef3f7" if first_bold else "white"
    axes.add_patch(Rectangle((left, top - height), width, height, facecolor=face, edgecolor=PALE, linewidth=0.8))
    for index, line in enumerate(lines):
        weight = "bold" if first_bold and index == 0 else "normal"
        axes.text(left + PADDING, top - PADDING - LINE * (index + 0.5), line, va="center", fontsize=7.5, weight=weight)


def _draw_arrow(axes: Any, start: tuple[float, float], end: tuple[float, float]) -> None:
    style = {"arrowstyle": "-|>", "color": GREY, "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 7}
    axes.annotate("", end, start, arrowprops=style)
