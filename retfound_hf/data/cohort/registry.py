"""A registry: whose eye was photographed when, what befell whom when, and how long each patient was followed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ...runs.errors import RetFoundError, nearest
from ..checks import bare_name, check_columns, listed
from ..labels import as_text
from ..tables import read_table, table_images
from . import checks
from .closing import as_seen_on, closing_day, with_deaths
from .dates import DateReader, offset_of
from .eyes import read_eyes
from .facts import DEATH, FACTS, fact_of_event, one_per_patient

PATH = {"id": "path_in_table"}


@dataclass(frozen=True)
class Registry:
    """Checked tables.

    Attributes:
        images: `image` (absolute path), `path_in_table` (as written), `patient_id`, `eye` ("R", "L" or None), `date`,
            and whatever else the table holds, its own `label` and `split` as `image_label` and `image_split`.
        events: `patient_id`, `eye` ("R", "L", "both", or None for the person), `event`, `date`; deaths are events too.
        patients: by patient: `birth_date`, `sex`, `death`, `follow_up_end` (the last day on which an event would have
            been seen), `follow_up_given` (false where it is the day of the patient's last record).
        first_dates: by event, also those after the registry was closed, the day of its first one.
        closed: the day on which the registry was closed, if one was given; later events are not in `events`.
        without_images: number of patients of the tables `events` and `patients` of whom there is no image.
    """

    images: pd.DataFrame
    events: pd.DataFrame
    patients: pd.DataFrame
    first_dates: pd.Series
    closed: pd.Timestamp | None
    without_images: dict[str, int]


def read_registry(
    images: str | Path,
    events: str | Path,
    patients: str | Path | None = None,
    *,
    reader: DateReader | None = None,
    follow_up_end: str | None = None,
    image_column: str = "image",
    image_root: str | None = None,
) -> Registry:
    """Read and check the tables of a registry (CSV or parquet).

    What is known once per patient (`birth_date`, `sex`, `death`, `last_follow_up`) may be a column of any of the
    tables; death and last follow-up may also be rows of `events`, whose `event` is "death" or "last_follow_up".

    Args:
        images: `image`, `patient_id`, `date`, optionally `eye`.
        events: `patient_id`, `event`, `date`, optionally `eye`. A row may have neither event nor date if it tells
            something else of a patient.
        patients: one row per patient.
        follow_up_end: the day on which the data were closed, such as that of a linkage with hospital records:
            follow-up of all patients without an earlier end; what is dated later is taken for unseen.

    Raises:
        RetFoundError: a table, date, eye or patient that cannot be true, in one line that names the rows.
    """
    reader = reader or DateReader()
    tables = {str(path): _read(Path(path)) for path in (images, events, patients) if path is not None}
    for name, table in tables.items():
        check_columns(table, ["patient_id"], name, "its header")
        checks.refuse(table["patient_id"].isna(), name, "name no patient")
    photographs = _images(tables[str(images)], Path(images), reader, image_column, image_root)
    without_images = {
        kind: checks.check_patients(tables[str(path)]["patient_id"], photographs["patient_id"], path, images)
        for kind, path in (("events", events), ("patients", patients))
        if path is not None
    }
    happened = _events(tables[str(events)], str(events), reader)
    if reader.time_zone is None and reader.date_format is None:
        checks.check_offsets({name: offset_of(table["date"]) for name, table in list(tables.items())[:2]})
    told = [_told(table, name, reader) for name, table in tables.items()]
    checks.check_duplicates(happened, events)
    is_fact = happened["event"].map(fact_of_event).notna()
    rows = happened[is_fact]
    told.append(pd.DataFrame({"patient_id": rows["patient_id"], "fact": rows["event"].map(fact_of_event),
                              "value": rows["date"], "source": str(events)}))  # fmt: skip
    facts = one_per_patient(told)
    happened = happened[~is_fact]
    everyone = pd.Index(pd.unique(pd.concat([photographs["patient_id"], happened["patient_id"]])), name="patient_id")
    facts = facts.reindex(everyone)
    checks.check_order(photographs, happened, facts, images, events)
    happened = with_deaths(happened, facts[DEATH])
    first_dates = happened.groupby("event")["date"].min()
    closed = closing_day(follow_up_end, reader)
    seen = as_seen_on(closed, photographs, happened, facts)
    return Registry(photographs, *seen, first_dates, closed, without_images)


def _read(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise RetFoundError(f"table {path} does not exist; give a CSV or parquet file")
    table = read_table(path, ["event", "sex"])
    if "patient_id" in table:
        table["patient_id"] = as_text(table["patient_id"]).replace("", None)
    return table


def _images(
    table: pd.DataFrame, path: Path, reader: DateReader, image_column: str, image_root: str | None
) -> pd.DataFrame:
    check_columns(table, ["date"], path, "its header")
    own = {name: f"image_{name}" for name in ("label", "split") if name in table}
    found = table_images(table.rename(columns=own), path, image_column, image_root).rename(columns=PATH)
    repeated = found["path_in_table"].duplicated(keep=False)
    names = listed(found.loc[repeated, "path_in_table"].unique())
    checks.refuse(repeated, path, f"list an image that another row lists too ({names})")
    found["date"] = reader.read(table["date"], f"the date of {path}")
    checks.refuse(found["date"].isna(), path, "have no date")
    found["eye"] = read_eyes(table, path, both=False)
    return found


def _events(table: pd.DataFrame, name: str, reader: DateReader) -> pd.DataFrame:
    check_columns(table, ["event", "date"], name, "its header")
    event = as_text(table["event"]).replace("", None)
    found = pd.DataFrame({"patient_id": table["patient_id"], "eye": read_eyes(table, name, both=True), "event": event})
    found["date"] = reader.read(table["date"], f"the date of {name}")
    checks.refuse(event.notna() & found["date"].isna(), name, "have an event without a date")
    checks.refuse(event.isna() & found["date"].notna(), name, "have a date without an event")
    empty = event.isna()
    if not set(FACTS) & set(table.columns):
        checks.refuse(empty, name, "have neither event nor date")
    return found[~empty]


def _told(table: pd.DataFrame, name: str, reader: DateReader) -> pd.DataFrame:
    """Long table (`patient_id`, `fact`, `value`, `source`) of the columns that hold for a patient as a whole."""
    parts = []
    for fact in FACTS:
        if fact in table:
            value = as_text(table[fact]).replace("", None)
            if fact != "sex":
                value = reader.read(table[fact], f"the {fact} of {name}")
            parts.append(pd.DataFrame({"patient_id": table["patient_id"], "fact": fact, "value": value}))
    long = pd.concat(parts) if parts else pd.DataFrame(columns=["patient_id", "fact", "value"])
    return long[long["value"].notna()].assign(source=name)


def known_events(registry: Registry, names: Sequence[str], *, need_one: bool = True) -> pd.DataFrame:
    """The events of a registry that are called one of `names`.

    Raises:
        RetFoundError: a name that does not occur, or of which the table has a spelling that is not among `names`; with
            `need_one` names that occur only after the registry was closed.
    """
    present = registry.first_dates.index.tolist()
    for name in names:
        if name not in present:
            others = f"its events are {listed(present, 20)}" if present else "it holds none at all"
            raise RetFoundError(f"the events table holds no event {name!r}{nearest(name, present)}; {others}")
        for other in present:
            if other not in names and bare_name(other) == bare_name(name):
                raise RetFoundError(
                    f"the events table: events {name!r} and {other!r} look like one event spelled in two ways; give "
                    "it one name in the table, or ask for both"
                )
    found = registry.events[registry.events["event"].isin(names)]
    if need_one and found.empty:
        first = registry.first_dates[list(names)].min()
        raise RetFoundError(
            f"all events {' or '.join(names)} lie after --follow_up_end {registry.closed:%Y-%m-%d}, the first on "
            f"{first:%Y-%m-%d}, and were not seen; give a later day, or leave it out"
        )
    return found
