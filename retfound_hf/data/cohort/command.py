"""The command `build_cohort`: labels for prognosis from the dates of images and events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...runs.arguments import parse_arguments
from ...runs.errors import RetFoundError
from ...runs.files import refuse_existing, whole_folder
from ...runs.record import write_run_record
from ..splits import PAPER_FRACTIONS


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
        default=None, metadata={"help": "day on which the data were closed: nothing after it was seen"}
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
        default_factory=list, metadata={"help": "further events that bar a patient's images from their day on"}
    )
    match_controls: int | None = field(
        default=None, metadata={"help": "controls for each case, matched by age and sex; all by default"}
    )
    match_age_caliper: float = field(default=2.0, metadata={"help": "largest difference in age, in years"})
    match_sex: bool = field(default=True, metadata={"help": "whether matched patients are of one sex"})
    split_fractions: list[float] = field(
        default_factory=lambda: list(PAPER_FRACTIONS), metadata={"help": "shares of patients of train, val and test"}
    )
    seed: int = field(default=0, metadata={"help": "deals splits, controls and random visits"})
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
    """Parse the arguments, build the cohort, and say what came of it."""
    (arguments,) = parse_arguments(
        CohortArguments, argv=argv, description="A labelled cohort from the dates of images and events."
    )
    refuse_existing(arguments.out, arguments.overwrite_output_dir)
    from ..checks import check_images_exist
    from .building import build_cohort
    from .dates import DateReader, Horizon
    from .matching import Matching
    from .outcomes import Question, default_unit
    from .registry import read_registry
    from .writing import write_cohort

    horizon = Horizon.parse(arguments.horizon)
    matching = None
    if arguments.match_controls is not None:
        matching = Matching(arguments.match_controls, arguments.match_age_caliper, arguments.match_sex)
    registry = read_registry(
        arguments.images,
        arguments.events,
        arguments.patients,
        reader=DateReader(arguments.date_format, _time_zone(arguments.time_zone)),
        follow_up_end=arguments.follow_up_end,
        image_column=arguments.image_column,
        image_root=arguments.image_root,
    )
    events = tuple(arguments.event)
    unit = default_unit(registry, events) if arguments.unit == "auto" else arguments.unit
    cohort = build_cohort(
        registry,
        Question(events, horizon, unit, tuple(arguments.exclude_prior)),
        visits=arguments.visits,
        images=arguments.images_per_visit,
        quality_column=arguments.quality_column,
        matching=matching,
        split_fractions=arguments.split_fractions,
        seed=arguments.seed,
    )
    if arguments.check_images:
        check_images_exist(cohort.table.assign(id=cohort.table["image"]), arguments.images)
    out = Path(arguments.out)
    with whole_folder(out, arguments.overwrite_output_dir) as partial:
        write_cohort(cohort, partial, out)
        write_run_record(partial, "build_cohort", arguments, unit=unit, **cohort.facts)
    _say(cohort, out)


def _time_zone(name: str | None) -> Any:
    if name is None:
        return None
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(name)
    except (ValueError, KeyError, OSError) as error:
        raise RetFoundError(f"--time_zone {name} is unknown; give a name such as Europe/London or UTC") from error


def _say(cohort: Any, out: Path) -> None:
    from .flow import said

    for stage in cohort.flow.stages:
        for part in stage.excluded:
            print(f"  - {said(part.counts)}: {part.text}")
        print(f"{said(stage.counts)}: {stage.text}")
    for split, counts in cohort.flow.as_dict()["splits"].items():
        with_event = counts["labels"].get("1", {"images": 0})["images"]
        print(f"{split}: {said(counts)}, {with_event:,} images with the event")
    for table in ("events", "patients"):
        if unseen := cohort.facts.get(f"patients_without_images_in_{table}"):
            print(f"{unseen:,} patients of the {table} table have no image")
    inferred = cohort.facts["patients_with_follow_up_from_last_record"]
    if inferred:
        print(f"follow-up of {inferred:,} patients ends with their last record, as none is given")
    print(out / "cohort.csv")
