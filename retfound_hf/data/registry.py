"""Registries: tables of images, events and follow-up with their dates, read and checked."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from zoneinfo import ZoneInfo

import pandas as pd

from ..errors import BadArgumentError, BadDataError, join_names, nearest
from .tables import as_text, bare_name, check_columns, read_table, table_images

ISO = re.compile(
    r"(?P<year>\d{4})(?P<dash>-?)(?P<month>\d{2})(?P=dash)(?P<day>\d{2})"
    r"(?:[T ]\d{2}:?\d{2}(?::?\d{2}(?:\.\d+)?)?\s*(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?)?"
)
YEARS = range(1850, 2200)  # others stand for "unknown" or "never", such as 1753, 1800 or 9999
DEATH, LAST_FOLLOW_UP = "death", "last_follow_up"
FACTS = ("birth_date", "sex", DEATH, LAST_FOLLOW_UP)
FACT_SPELLINGS = {"death": DEATH, "died": DEATH, "lastfollowup": LAST_FOLLOW_UP, "endoffollowup": LAST_FOLLOW_UP}
EYE_SPELLINGS = {
    "R": ("r", "re", "od", "right", "right eye"),
    "L": ("l", "le", "os", "left", "left eye"),
    "both": ("both", "both eyes", "ou", "b", "bilateral"),
}
EYES = {spelling: eye for eye, spellings in EYE_SPELLINGS.items() for spelling in spellings}


@dataclass(frozen=True)
class Registry:
    """Checked tables.

    Attributes:
        images: `image` (absolute path), `path_in_table` (as written), `patient_id`, `eye` ("R", "L" or None), `date`,
            and the table's other columns; its own `label` and `split` as `image_label` and `image_split`.
        events: `patient_id`, `eye` ("R", "L", "both", or None for the person), `event`, `date`; deaths are events too.
        patients: by patient: `birth_date`, `sex`, `death`, `follow_up_end` (the last day on which an event would have
            been seen), `follow_up_given` (false where it is the day of the patient's last record).
        first_dates: by event, also those after the registry was closed, the day of its first one.
        closed: the day on which the registry was closed, if one was given; later events are not in `events`.
        without_images: number of patients without an image in each of the tables `events` and `patients`.
    """

    images: pd.DataFrame
    events: pd.DataFrame
    patients: pd.DataFrame
    first_dates: pd.Series
    closed: pd.Timestamp | None
    without_images: dict[str, int]


@dataclass(frozen=True)
class DateReader:
    """Reader of date columns by one rule: the calendar day that was written, without the time.

    Attributes:
        date_format: of `strptime`, such as "%d/%m/%Y"; by default ISO 8601 ("2019-03-04", "20190304", with or
            without a time), since 03/04/2019 is two days of the year.
        time_zone: of the clinic, by name or object; times with an offset are converted to it. Without it all offsets
            must be alike.

    Raises:
        BadArgumentError: an unknown time zone, or one beside a format without an offset (`%z`), which cannot be
            converted.
    """

    date_format: str | None = None
    time_zone: tzinfo | str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.time_zone, str):
            try:
                object.__setattr__(self, "time_zone", ZoneInfo(self.time_zone))
            except (ValueError, KeyError, OSError) as error:
                raise BadArgumentError(
                    f"`time_zone={self.time_zone}` is unknown; give a name such as Europe/London or UTC",
                    field="time_zone", value=self.time_zone,
                ) from error  # fmt: skip
        if self.time_zone is not None and self.date_format and not re.search("%[zZ]", self.date_format):
            raise BadArgumentError(
                f"`time_zone` converts times with an offset, and `date_format={self.date_format}` has none; add %z, "
                "or leave out `time_zone`",
                field="date_format", value=self.date_format,
            )  # fmt: skip

    def read(self, values: pd.Series, name: str) -> pd.Series:
        """Days (datetime64) for `values`; missing values stay missing.

        Args:
            values: text, numbers such as 20190304, or dates.
            name: of the column, for errors: "the date of images.csv".

        Raises:
            BadDataError: no date, another format or another time zone; `.rows` lists the rows, counted from 1.
        """
        text = as_text(values)
        text = text.where(text.notna() & (text != ""), None)
        if self.date_format:
            days = self._formatted(text, name)
            wrong = days.isna() | ~days.dt.year.isin(YEARS)
            self._refuse(text, wrong, name, f"is not a date of format {self.date_format}")
            return days
        parts = [ISO.fullmatch(value) if value else None for value in text]
        found = pd.Series([part is not None for part in parts], index=text.index)
        self._refuse(text, ~found, name, "is not written as 2019-03-04 (year, month, day)")
        zones = pd.Series([part["zone"] if part else None for part in parts], index=text.index, dtype=object)
        days = [f"{part['year']}-{part['month']}-{part['day']}" if part else None for part in parts]
        days = pd.to_datetime(pd.Series(days, index=text.index, dtype=object), format="%Y-%m-%d", errors="coerce")
        self._refuse(text, days.isna() | ~days.dt.year.isin(YEARS), name, "is not a day of the calendar")
        if self.time_zone is not None:
            return self._converted(text, zones, days, name)
        timed = text.notna() & (text.str.len() > 10)
        kinds = zones[timed].fillna("none").unique()
        if len(kinds) > 1:
            first, other = ((zones.fillna("none") == kind) & timed for kind in kinds[:2])
            raise BadDataError(
                f"{name} mixes time zones ({_example(text, first)}, {_example(text, other)}), so that days may be off "
                "by one; name the clinic's with `time_zone`, such as Europe/London",
                rows=_row_numbers(timed),
            )
        return days

    def _formatted(self, text: pd.Series, name: str) -> pd.Series:
        try:
            days = pd.to_datetime(text, format=self.date_format, errors="coerce", utc=self.time_zone is not None)
            if self.time_zone is not None:
                days = days.dt.tz_convert(self.time_zone)
            return days.dt.tz_localize(None).dt.normalize()
        except (ValueError, AttributeError) as error:  # an invalid format, or offsets of several zones
            raise BadDataError(f"{name} cannot be read with `date_format={self.date_format}`: {error}") from error

    def _converted(self, text: pd.Series, zones: pd.Series, days: pd.Series, name: str) -> pd.Series:
        for row in zones.index[zones.notna()]:
            try:
                moment = datetime.fromisoformat(text[row].replace("Z", "+00:00"))
            except ValueError as error:
                message = f"{name}: {text[row]!r} in row {row + 1} is not a time: {error}"
                raise BadDataError(message, rows=[row + 1]) from error
            days[row] = pd.Timestamp(moment).tz_convert(self.time_zone).tz_localize(None).normalize()
        return days

    def _refuse(self, text: pd.Series, wrong: pd.Series, name: str, what: str) -> None:
        wrong = wrong & text.notna()
        if not wrong.any():
            return
        value = text[wrong].iloc[0]
        if self.date_format is None and re.match(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}", value):
            advice = "tell with `date_format` which number is the day, such as %d/%m/%Y or %m/%d/%Y"
        elif re.match(r"(9999|1[78]|0|2[2-9])", value):
            advice = "leave unknown dates empty"
        else:
            advice = "correct or remove it" + ("" if self.date_format else ", or give its format as `date_format`")
        raise BadDataError(f"{name}: {_example(text, wrong)} {what}; {advice}", rows=_row_numbers(wrong))


def read_registry(
    images: str | Path, events: str | Path, patients: str | Path | None = None, *, reader: DateReader | None = None,
    follow_up_end: str | None = None, image_column: str = "image", image_root: str | None = None,
) -> Registry:  # fmt: skip
    """Read and check the tables of a registry (CSV or parquet).

    Facts known once per patient (`birth_date`, `sex`, `death`, `last_follow_up`) may be a column of any of the tables;
    death and last follow-up may also be rows of `events`, whose `event` is "death" or "last_follow_up".

    Args:
        images: table with `image`, `patient_id`, `date`, optionally `eye`.
        events: table with `patient_id`, `event`, `date`, optionally `eye`. A row may have neither event nor date if it
            holds another fact of a patient.
        patients: table with one row per patient.
        reader: of dates; ISO 8601 by default.
        follow_up_end: the day on which the data were closed, such as that of a linkage with hospital records: the end
            of follow-up of all patients without an earlier one; later records are taken as unseen.
        image_column: column of `images` with the paths.
        image_root: folder at which relative paths start; by default that of the table.

    Raises:
        BadDataError: a table, date, eye or patient that cannot be true; `.rows` lists the rows, counted from 1.
        BadArgumentError: `follow_up_end` is not a date.
    """
    reader = reader or DateReader()
    tables = {str(path): _read_table(Path(path)) for path in (images, events, patients) if path is not None}
    for name, table in tables.items():
        check_columns(table, ["patient_id"], name)
        _refuse(table["patient_id"].isna(), name, "name no patient")
    photographs = _read_images(tables[str(images)], Path(images), reader, image_column, image_root)
    without_images = {
        kind: _count_without_images(tables[str(path)]["patient_id"], photographs["patient_id"], path, images)
        for kind, path in (("events", events), ("patients", patients))
        if path is not None
    }
    happened = _read_events(tables[str(events)], str(events), reader)
    if reader.time_zone is None and reader.date_format is None:
        _check_offsets({name: _offset(table["date"]) for name, table in list(tables.items())[:2]})
    repeated = happened.duplicated(["patient_id", "eye", "event", "date"], keep=False)
    _refuse(repeated, events, "are duplicates (patient, eye, event and date alike); keep one of each")
    fact = happened["event"].map(lambda event: FACT_SPELLINGS.get(re.sub(r"[\W_]", "", event.casefold())))
    told = [_read_facts(table, name, reader) for name, table in tables.items()]
    told.append(happened[["patient_id"]].assign(fact=fact, value=happened["date"], source=str(events))[fact.notna()])
    facts = _facts_by_patient(pd.concat(told, ignore_index=True))
    happened = happened[fact.isna()]
    everyone = pd.unique(pd.concat([photographs["patient_id"], happened["patient_id"]]))
    facts = facts.reindex(pd.Index(everyone, name="patient_id"))
    _check_order(photographs, happened, facts, images, events)
    deaths = facts[DEATH].dropna()
    rows = {"patient_id": deaths.index, "eye": None, "event": DEATH, "date": deaths.to_numpy()}
    happened = pd.concat([happened, pd.DataFrame(rows)], ignore_index=True)
    first_dates = happened.groupby("event")["date"].min()
    closed = _read_closing_day(follow_up_end, reader)
    seen = _as_seen_on(closed, photographs, happened, facts)
    return Registry(photographs, *seen, first_dates, closed, without_images)


def find_events(registry: Registry, names: Sequence[str], *, need_one: bool = True) -> pd.DataFrame:
    """The rows of `registry.events` whose event is one of `names`.

    Args:
        registry: of `read_registry`.
        names: as the events table writes them.
        need_one: refuse names that occur only after the registry was closed.

    Raises:
        BadArgumentError: a name that does not occur, or whose other spelling in the table is not among `names`.
    """
    present = registry.first_dates.index.tolist()
    for name in names:
        if name not in present:
            others = f"its events are {join_names(present, 20)}" if present else "it is empty"
            raise BadArgumentError(
                f"the events table has no event {name!r}{nearest(name, present)}; {others}",
                field="event", value=name, accepted=present,
            )  # fmt: skip
        for other in present:
            if other not in names and bare_name(other) == bare_name(name):
                raise BadArgumentError(
                    f"events {name!r} and {other!r} look like two spellings of one; give it one name in the table, or "
                    "ask for both",
                    field="event", value=name, accepted=(name, other),
                )  # fmt: skip
    found = registry.events[registry.events["event"].isin(names)]
    if need_one and found.empty:
        first = registry.first_dates[list(names)].min()
        raise BadArgumentError(
            f"all events {' or '.join(names)} lie after `follow_up_end={registry.closed:%Y-%m-%d}`, the first on "
            f"{first:%Y-%m-%d}, and were not seen; give a later day, or leave it out",
            field="follow_up_end", value=registry.closed,
        )  # fmt: skip
    return found


def _read_table(path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise BadDataError(f"table {path} does not exist; give a CSV or parquet file", source=path)
    table = read_table(path, ["event", "sex"])
    if "patient_id" in table:
        table["patient_id"] = as_text(table["patient_id"]).replace("", None)
    return table


def _read_images(
    table: pd.DataFrame, path: Path, reader: DateReader, image_column: str, image_root: str | None
) -> pd.DataFrame:
    check_columns(table, ["date"], path)
    own = {name: f"image_{name}" for name in ("label", "split") if name in table}
    found = table_images(table.rename(columns=own), path, image_column, image_root)
    found = found.rename(columns={"id": "path_in_table"})
    repeated = found["path_in_table"].duplicated(keep=False)
    names = join_names(found.loc[repeated, "path_in_table"].unique())
    _refuse(repeated, path, f"list an image that another row lists too ({names})")
    found["date"] = reader.read(table["date"], f"the date of {path}")
    _refuse(found["date"].isna(), path, "have no date")
    found["eye"] = _read_eyes(table, path, both=False)
    return found


def _read_events(table: pd.DataFrame, name: str, reader: DateReader) -> pd.DataFrame:
    check_columns(table, ["event", "date"], name)
    event = as_text(table["event"]).replace("", None)
    eye = _read_eyes(table, name, both=True)
    found = pd.DataFrame({"patient_id": table["patient_id"], "eye": eye, "event": event})
    found["date"] = reader.read(table["date"], f"the date of {name}")
    _refuse(event.notna() & found["date"].isna(), name, "have an event without a date")
    _refuse(event.isna() & found["date"].notna(), name, "have a date without an event")
    if not set(FACTS) & set(table.columns):
        _refuse(event.isna(), name, "have neither event nor date")
    return found[event.notna()]


def _read_eyes(table: pd.DataFrame, source: object, both: bool) -> pd.Series:
    """Column `eye` as "R", "L" or (where `both` accepts it) "both"; None where it is empty or absent."""
    if "eye" not in table:
        return pd.Series(None, index=table.index, dtype=object)
    text = as_text(table["eye"]).replace("", None)
    eyes = text.map(lambda value: EYES.get(value.casefold(), "?"), na_action="ignore").astype(object)
    wrong = (eyes == "?") | ((eyes == "both") & (not both))
    if wrong.any():
        accepted = "R, L (OD, OS, right, left)" + (", both (OU)" if both else "")
        message = f"the eye of {source}: {_example(text, wrong)}; accepted are {accepted} or no value"
        raise BadDataError(message, rows=_row_numbers(wrong), source=source)
    return eyes.where(eyes.notna(), None)


def _read_facts(table: pd.DataFrame, name: str, reader: DateReader) -> pd.DataFrame:
    """Long table (`patient_id`, `fact`, `value`, `source`) of the columns that hold for a patient as a whole."""
    parts = []
    for fact in FACTS:
        if fact in table:
            if fact == "sex":
                value = as_text(table[fact]).replace("", None)
            else:
                value = reader.read(table[fact], f"the {fact} of {name}")
            parts.append(pd.DataFrame({"patient_id": table["patient_id"], "fact": fact, "value": value}))
    long = pd.concat(parts) if parts else pd.DataFrame(columns=["patient_id", "fact", "value"])
    return long[long["value"].notna()].assign(source=name)


def _facts_by_patient(long: pd.DataFrame) -> pd.DataFrame:
    """One row per patient, one column per fact; refuses tables, or rows of one, that disagree about a patient."""
    key = ["patient_id", "fact"]
    long = long.drop_duplicates([*key, "value"])
    twice = long[long.duplicated(key, keep=False)].sort_values(["fact", "patient_id"], kind="stable")
    if len(twice):
        patient, fact = twice.iloc[0][key]
        rows = twice[(twice["patient_id"] == patient) & (twice["fact"] == fact)]
        values = [f"{v:%Y-%m-%d}" if isinstance(v, pd.Timestamp) else str(v) for v in rows["value"]]
        named = " and ".join(f"{value} in {source}" for value, source in zip(values, rows["source"], strict=True))
        more = twice.groupby(key).ngroups - 1
        raise BadDataError(
            f"patient {patient} has more than one {fact} ({named}){f', and so have {more} others' if more else ''}; "
            "keep the right one",
            rows=pd.unique(twice["patient_id"]),
        )
    wide = long.pivot(index="patient_id", columns="fact", values="value").reindex(columns=list(FACTS))
    return wide.assign(**{fact: pd.to_datetime(wide[fact]) for fact in FACTS if fact != "sex"})


def _count_without_images(told: pd.Series, photographed: pd.Series, source: object, image_source: object) -> int:
    """Number of patients of a table without an image; refuses all of them, and ids that lost their leading zeros."""
    known, here = set(photographed), set(told)
    absent = here - known
    padded = {name.lstrip("0"): name for name in known}
    for name in sorted(absent):
        if (other := padded.get(name.lstrip("0"))) is not None:
            raise BadDataError(
                f"{source}: patient_id {name!r} is not in {image_source}, which has {other!r}; write it alike in both "
                "tables (a spreadsheet drops leading zeros)",
                rows=[name], source=source,
            )  # fmt: skip
    if absent == here:
        raise BadDataError(
            f"{source}: none of its {len(here)} patients is in {image_source}, whose patient_id is such as "
            f"{min(known)!r} and here {min(here)!r}; write them alike in both tables",
            rows=sorted(absent), source=source,
        )  # fmt: skip
    return len(absent)


def _offset(values: pd.Series) -> str | None:
    """Offset from UTC of the first time in `values`, None for days without one."""
    parts = map(ISO.fullmatch, as_text(values).dropna())
    zone = next((part["zone"] for part in parts if part and part["zone"]), None)
    return "+00:00" if zone == "Z" else zone


def _check_offsets(offsets: dict[str, str | None]) -> None:
    """Refuse tables with times of different zones; days without a time go with any."""
    known = {name: offset for name, offset in offsets.items() if offset is not None}
    if len(set(known.values())) > 1:
        named = " and ".join(f"{offset} in {name}" for name, offset in known.items())
        raise BadDataError(
            f"time zones are mixed ({named}), so that days may be off by one; name the clinic's with `time_zone`, "
            "such as Europe/London",
            source=join_names(known),
        )


def _check_order(
    images: pd.DataFrame, events: pd.DataFrame, facts: pd.DataFrame, image_source: object, event_source: object
) -> None:
    """Refuse records before birth, after death, or after the last follow-up; `facts` by patient."""
    late = facts[LAST_FOLLOW_UP] > facts[DEATH]
    young = facts[DEATH] < facts["birth_date"]
    for wrong, what in ((late, "are followed up after their death"), (young, "die before their birth")):
        if wrong.any():
            names = facts.index[wrong]
            message = f"{len(names)} patients {what} ({', '.join(names[:5])}); correct their dates"
            raise BadDataError(message, rows=names)
    for table, source, noun in ((images, image_source, "an image"), (events, event_source, "an event")):
        own = facts.reindex(table["patient_id"]).set_axis(table.index)
        for wrong, when in (
            (table["date"] < own["birth_date"], "before the patient's birth"),
            (table["date"] > own[DEATH], "after the patient's death"),
            (table["date"] > own[LAST_FOLLOW_UP], "after the patient's last follow-up"),
        ):
            _refuse(wrong, source, f"have {noun} dated {when}")


def _read_closing_day(follow_up_end: str | None, reader: DateReader) -> pd.Timestamp | None:
    if follow_up_end is None:
        return None
    try:
        (day,) = reader.read(pd.Series([follow_up_end]), "`follow_up_end`")
    except BadDataError as error:
        raise BadArgumentError(str(error), field="follow_up_end", value=follow_up_end) from error
    if pd.isna(day):
        raise BadArgumentError(
            "`follow_up_end` is empty; give the day on which the data were closed, such as 2019-03-04, or none",
            field="follow_up_end", value=follow_up_end,
        )  # fmt: skip
    return day


def _as_seen_on(
    closed: pd.Timestamp | None, images: pd.DataFrame, events: pd.DataFrame, facts: pd.DataFrame
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """`events` and `patients` of `Registry` as they were known on the day `closed`."""
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


def _refuse(wrong: pd.Series, source: object, what: str) -> None:
    """Raise if `wrong` holds for any row; `what` is a verb with its object, in the plural."""
    if wrong.any():
        message = f"{source}: {int(wrong.sum())} of {len(wrong)} rows {what}: {_name_rows(wrong)}"
        raise BadDataError(message, rows=_row_numbers(wrong), source=source)


def _row_numbers(wrong: pd.Series) -> list[int]:
    """Numbers of the rows where `wrong` holds, counted from 1 below the table's header."""
    return [int(row) + 1 for row in wrong.index[wrong]]


def _name_rows(wrong: pd.Series) -> str:
    return f"row{'s' if wrong.sum() > 1 else ''} {join_names(_row_numbers(wrong))}"


def _example(text: pd.Series, wrong: pd.Series) -> str:
    return f"{text[wrong].iloc[0]!r} in {_name_rows(wrong)}"
