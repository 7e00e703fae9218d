"""Registries: images, events and follow-up with their dates, read and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..errors import RetFoundError, join_names, nearest
from .dates import DateReader, offset_of, read_eyes, rows_of
from .tables import as_text, bare_name, check_columns, read_table, table_images

DEATH, LAST_FOLLOW_UP = "death", "last_follow_up"
FACTS = ("birth_date", "sex", DEATH, LAST_FOLLOW_UP)
DATES = tuple(fact for fact in FACTS if fact != "sex")
SPELLINGS = {"death": DEATH, "died": DEATH, "lastfollowup": LAST_FOLLOW_UP, "endoffollowup": LAST_FOLLOW_UP}


def fact_of_event(event: str) -> str | None:
    """`death` or `last_follow_up` for an event of such a name however spelled, else None."""
    return SPELLINGS.get(re.sub(r"[\W_]", "", event.casefold()))


def one_per_patient(told: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """One row per patient, one column per fact, from long tables of `patient_id`, `fact`, `value`, `source`.

    Raises:
        RetFoundError: tables, or rows of one, disagree about a patient.
    """
    long = pd.concat(list(told), ignore_index=True).drop_duplicates(["patient_id", "fact", "value"])
    twice = long[long.duplicated(["patient_id", "fact"], keep=False)].sort_values(
        ["fact", "patient_id"], kind="stable"
    )
    if len(twice):
        patient, fact = twice.iloc[0][["patient_id", "fact"]]
        rows = twice[(twice["patient_id"] == patient) & (twice["fact"] == fact)]
        said = " and ".join(f"{_plain(row.value)} in {row.source}" for row in rows.itertuples())
        more = twice.groupby(["patient_id", "fact"]).ngroups - 1
        raise RetFoundError(
            f"patient {patient} has more than one {fact} ({said}){f', and so have {more} others' if more else ''}; "
            "keep the right one"
        )
    wide = long.pivot(index="patient_id", columns="fact", values="value").reindex(columns=list(FACTS))
    for fact in DATES:
        wide[fact] = pd.to_datetime(wide[fact])
    return wide


def _plain(value: object) -> str:
    return f"{value:%Y-%m-%d}" if isinstance(value, pd.Timestamp) else str(value)


def with_deaths(events: pd.DataFrame, deaths: pd.Series) -> pd.DataFrame:
    """The events, and the deaths (day by patient) as further ones."""
    deaths = deaths.dropna()
    rows = {"patient_id": deaths.index, "eye": None, "event": DEATH, "date": deaths.to_numpy()}
    return pd.concat([events, pd.DataFrame(rows)], ignore_index=True)


def closing_day(follow_up_end: str | None, reader: DateReader) -> pd.Timestamp | None:
    """The day that `--follow_up_end` names.

    Raises:
        RetFoundError: an empty text, or no date.
    """
    if follow_up_end is None:
        return None
    if not follow_up_end.strip():
        raise RetFoundError(
            "--follow_up_end '' names no day; give the one on which the data were closed, such as 2019-03-04, or "
            "leave it out"
        )
    return reader.read(pd.Series([follow_up_end]), "--follow_up_end")[0]


def as_seen_on(
    closed: pd.Timestamp | None, images: pd.DataFrame, events: pd.DataFrame, facts: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Events up to the day `closed`, and the patients with the end of their follow-up, as in `registry.Registry`."""
    end = facts[LAST_FOLLOW_UP].fillna(facts[DEATH])
    given = end.notna()
    if closed is not None:
        end = end.fillna(closed).clip(upper=closed)
        given[:] = True
        events = events[events["date"] <= closed]
        facts[DEATH] = facts[DEATH].where(facts[DEATH] <= closed)
    seen = pd.concat([images[["patient_id", "date"]], events[["patient_id", "date"]]])
    last_record = seen.groupby("patient_id")["date"].max()
    patients = facts[["birth_date", "sex", DEATH]].assign(
        follow_up_end=end.fillna(last_record.reindex(facts.index)), follow_up_given=given
    )
    return events.reset_index(drop=True), patients


def refuse(wrong: pd.Series, source: object, what: str) -> None:
    """Raise if `wrong` holds of any row; `what` is a verb with its object, for several rows."""
    if wrong.any():
        raise RetFoundError(f"{source}: {int(wrong.sum())} of {len(wrong)} rows {what}: {rows_of(wrong)}")


def check_offsets(offsets: dict[str, str | None]) -> None:
    """Raise if two tables write their times in different zones.

    Args:
        offsets: from UTC, by table; None for days without a time or without an offset, which go with any.
    """
    known = {name: offset for name, offset in offsets.items() if offset is not None}
    if len(set(known.values())) > 1:
        said = " and ".join(f"{offset} in {name}" for name, offset in known.items())
        raise RetFoundError(
            f"time zones are mixed ({said}), so that days may be off by one; name the clinic's with --time_zone, such "
            "as Europe/London"
        )


def check_patients(told: pd.Series, photographed: pd.Series, source: object, image_source: object) -> int:
    """Number of patients of a table of whom there is no image.

    Raises:
        RetFoundError: that holds of all of them, or ids of the two tables differ in leading zeros alone, which a
            spreadsheet drops.
    """
    known, here = set(photographed), set(told)
    absent = here - known
    padded = {name.lstrip("0"): name for name in known}
    for name in sorted(absent):
        if (other := padded.get(name.lstrip("0"))) is not None:
            raise RetFoundError(
                f"{source}: patient_id {name!r} is not in {image_source}, which has {other!r}; write it alike in both "
                "tables (a spreadsheet drops leading zeros)"
            )
    if absent == here:
        raise RetFoundError(
            f"{source}: none of its {len(here)} patients is in {image_source}, whose patient_id is such as "
            f"{min(known)!r} and here {min(here)!r}; write them alike in both tables"
        )
    return len(absent)


def check_duplicates(events: pd.DataFrame, source: object) -> None:
    """Raise if an event of a patient and eye is listed twice for one day."""
    repeated = events.duplicated(["patient_id", "eye", "event", "date"], keep=False)
    refuse(repeated, source, "are duplicates (patient, eye, event and date alike); keep one of each")


def check_order(
    images: pd.DataFrame, events: pd.DataFrame, facts: pd.DataFrame, image_source: object, event_source: object
) -> None:
    """Raise if anything happens before birth, after death, or after the last follow-up.

    Args:
        facts: by patient; days of `birth_date`, `death`, `last_follow_up`.
    """
    late = facts[LAST_FOLLOW_UP] > facts[DEATH]
    young = facts[DEATH] < facts["birth_date"]
    for wrong, what in ((late, "are followed up after their death"), (young, "die before their birth")):
        if wrong.any():
            names = ", ".join(facts.index[wrong][:5])
            raise RetFoundError(f"{int(wrong.sum())} patients {what} ({names}); correct their dates")
    for table, source, noun in ((images, image_source, "an image"), (events, event_source, "an event")):
        own = facts.reindex(table["patient_id"]).set_axis(table.index)
        for wrong, when in (
            (table["date"] < own["birth_date"], "before the patient's birth"),
            (table["date"] > own[DEATH], "after the patient's death"),
            (table["date"] > own[LAST_FOLLOW_UP], "after the patient's last follow-up"),
        ):
            refuse(wrong, source, f"have {noun} dated {when}")


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
        check_columns(table, ["patient_id"], name)
        refuse(table["patient_id"].isna(), name, "name no patient")
    photographs = _images(tables[str(images)], Path(images), reader, image_column, image_root)
    without_images = {
        kind: check_patients(tables[str(path)]["patient_id"], photographs["patient_id"], path, images)
        for kind, path in (("events", events), ("patients", patients))
        if path is not None
    }
    happened = _events(tables[str(events)], str(events), reader)
    if reader.time_zone is None and reader.date_format is None:
        check_offsets({name: offset_of(table["date"]) for name, table in list(tables.items())[:2]})
    told = [_told(table, name, reader) for name, table in tables.items()]
    check_duplicates(happened, events)
    is_fact = happened["event"].map(fact_of_event).notna()
    rows = happened[is_fact]
    told.append(pd.DataFrame({"patient_id": rows["patient_id"], "fact": rows["event"].map(fact_of_event),
                              "value": rows["date"], "source": str(events)}))  # fmt: skip
    facts = one_per_patient(told)
    happened = happened[~is_fact]
    everyone = pd.Index(pd.unique(pd.concat([photographs["patient_id"], happened["patient_id"]])), name="patient_id")
    facts = facts.reindex(everyone)
    check_order(photographs, happened, facts, images, events)
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
    check_columns(table, ["date"], path)
    own = {name: f"image_{name}" for name in ("label", "split") if name in table}
    found = table_images(table.rename(columns=own), path, image_column, image_root).rename(columns=PATH)
    repeated = found["path_in_table"].duplicated(keep=False)
    names = join_names(found.loc[repeated, "path_in_table"].unique())
    refuse(repeated, path, f"list an image that another row lists too ({names})")
    found["date"] = reader.read(table["date"], f"the date of {path}")
    refuse(found["date"].isna(), path, "have no date")
    found["eye"] = read_eyes(table, path, both=False)
    return found


def _events(table: pd.DataFrame, name: str, reader: DateReader) -> pd.DataFrame:
    check_columns(table, ["event", "date"], name)
    event = as_text(table["event"]).replace("", None)
    found = pd.DataFrame({"patient_id": table["patient_id"], "eye": read_eyes(table, name, both=True), "event": event})
    found["date"] = reader.read(table["date"], f"the date of {name}")
    refuse(event.notna() & found["date"].isna(), name, "have an event without a date")
    refuse(event.isna() & found["date"].notna(), name, "have a date without an event")
    empty = event.isna()
    if not set(FACTS) & set(table.columns):
        refuse(empty, name, "have neither event nor date")
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
            others = f"its events are {join_names(present, 20)}" if present else "it holds none at all"
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
