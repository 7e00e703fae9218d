"""Dates and eyes as registries write them, and horizons in calendar time."""

import re
from dataclasses import dataclass
from datetime import datetime, tzinfo

import pandas as pd

from ..errors import RetFoundError
from .tables import as_text

ISO = re.compile(
    r"(?P<year>\d{4})(?P<dash>-?)(?P<month>\d{2})(?P=dash)(?P<day>\d{2})"
    r"(?:[T ]\d{2}:?\d{2}(?::?\d{2}(?:\.\d+)?)?\s*(?P<zone>Z|[+-]\d{2}(?::?\d{2})?)?)?"
)
YEARS = range(1850, 2200)  # others are marks of "unknown" or "never", such as 1753, 1800 or 9999
HORIZON = re.compile(r"(\d+)\s*(d|w|m|y|days?|weeks?|months?|years?)", re.IGNORECASE)
UNITS = {"d": "days", "w": "weeks", "m": "months", "y": "years"}


@dataclass(frozen=True)
class DateReader:
    """Reads the date columns of several tables by one rule: the calendar day that was written, without the time.

    Attributes:
        date_format: of `strptime`, such as "%d/%m/%Y"; by default ISO 8601 ("2019-03-04", "20190304", with or
            without a time), since 03/04/2019 is two days of the year.
        time_zone: where the days are those of the clinic; times with an offset are converted to it. Without it all
            offsets must be alike.

    Raises:
        RetFoundError: a time zone beside a format without an offset (`%z`), which it could not change.
    """

    date_format: str | None = None
    time_zone: tzinfo | None = None

    def __post_init__(self) -> None:
        if self.time_zone is not None and self.date_format and not re.search("%[zZ]", self.date_format):
            raise RetFoundError(
                f"--time_zone converts times with an offset, and --date_format {self.date_format} has none; add %z, "
                "or leave out --time_zone"
            )

    def read(self, values: pd.Series, name: str) -> pd.Series:
        """Days (datetime64) for `values`; missing values stay missing.

        Args:
            values: text, numbers such as 20190304, or dates.
            name: of the column, for errors: "the date of images.csv".

        Raises:
            RetFoundError: names the rows that hold no date, another format, or another time zone.
        """
        text = as_text(values)
        text = text.where(text.notna() & (text != ""), None)
        if self.date_format:
            days = self._formatted(text, name)
            wrong = days.isna() | ~days.dt.year.isin(YEARS)
            self._refuse(text, wrong, name, f"is no date of format {self.date_format}")
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
            raise RetFoundError(
                f"{name} mixes time zones ({_said(text, first)}, {_said(text, other)}), so that days may be off by "
                "one; name the clinic's with --time_zone, such as Europe/London"
            )
        return days

    def _formatted(self, text: pd.Series, name: str) -> pd.Series:
        try:
            if self.time_zone is not None:
                days = pd.to_datetime(text, format=self.date_format, errors="coerce", utc=True)
                days = days.dt.tz_convert(self.time_zone)
            else:
                days = pd.to_datetime(text, format=self.date_format, errors="coerce")
            return days.dt.tz_localize(None).dt.normalize()
        except (ValueError, AttributeError) as error:  # a format that is none, or offsets of several zones
            raise RetFoundError(f"{name} cannot be read with --date_format {self.date_format}: {error}") from error

    def _converted(self, text: pd.Series, zones: pd.Series, days: pd.Series, name: str) -> pd.Series:
        days = days.copy()
        for row in zones.index[zones.notna()]:
            try:
                moment = datetime.fromisoformat(text[row].replace("Z", "+00:00"))
            except ValueError as error:
                raise RetFoundError(f"{name}: {text[row]!r} in row {row + 1} is no time: {error}") from error
            days[row] = pd.Timestamp(moment.astimezone(self.time_zone).date())
        return days

    def _refuse(self, text: pd.Series, wrong: pd.Series, name: str, what: str) -> None:
        wrong = wrong & text.notna()
        if wrong.any():
            raise RetFoundError(f"{name}: {_said(text, wrong)} {what}{_advice(text[wrong].iloc[0], self.date_format)}")


def offset_of(values: pd.Series) -> str | None:
    """The offset from UTC of the first time in `values`, None for days without one."""
    for value in as_text(values).dropna():
        part = ISO.fullmatch(value)
        if part and part["zone"]:
            return "+00:00" if part["zone"] == "Z" else part["zone"]
    return None


def rows_of(wrong: pd.Series, limit: int = 5) -> str:
    """`row 3`, or `rows 3, 7 and 12 more`: where `wrong` holds, counted from 1 below the table's header."""
    rows = [str(row + 1) for row in wrong.index[wrong]]
    more = f" and {len(rows) - limit} more" if len(rows) > limit else ""
    return f"row{'s' * (len(rows) > 1)} {', '.join(rows[:limit])}{more}"


@dataclass(frozen=True)
class Horizon:
    """A span of calendar time: `number` of `unit` ("days", "weeks", "months", "years")."""

    number: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Horizon":
        """From such as "3y", "18 months", "365d".

        Raises:
            RetFoundError: no such span, or one of no length.
        """
        match = HORIZON.fullmatch(str(text).strip())
        if match is None or int(match[1]) == 0:
            raise RetFoundError(f"horizon {text!r} is not a span of time; give such as 1y, 18m, 52w or 365d")
        return cls(int(match[1]), UNITS[match[2][0].lower()])

    def after(self, days: pd.Series) -> pd.Series:
        """The last day of the horizon for each index day: the same day of a later month.

        The 29th of February and the 31st give way to the last day of a shorter month.
        """
        return days + pd.DateOffset(**{self.unit: self.number})

    def __str__(self) -> str:
        return f"{self.number} {self.unit if self.number > 1 else self.unit[:-1]}"


def _said(text: pd.Series, wrong: pd.Series) -> str:
    return f"{text[wrong].iloc[0]!r} in {rows_of(wrong)}"


def _advice(value: str, date_format: str | None) -> str:
    if date_format is None and re.match(r"\d{1,2}[./-]\d{1,2}[./-]\d{2,4}", value):
        return "; say which of its numbers is the day with --date_format, such as %d/%m/%Y or %m/%d/%Y"
    if re.match(r"(9999|1[78]|0|2[2-9])", value):
        return "; leave unknown dates empty"
    return "; correct or remove it" + ("" if date_format else ", or name another format with --date_format")


SPELLINGS = {
    "R": ("r", "re", "od", "right", "right eye"),
    "L": ("l", "le", "os", "left", "left eye"),
    "both": ("both", "both eyes", "ou", "b", "bilateral"),
}
EYES = {spelling: eye for eye, spellings in SPELLINGS.items() for spelling in spellings}


def read_eyes(table: pd.DataFrame, source: object, both: bool) -> pd.Series:
    """Column `eye` as "R", "L" or "both"; None where it is empty, or where there is no such column.

    Args:
        both: whether "both" is accepted: an event may befall both eyes, a photograph shows one.

    Raises:
        RetFoundError: names the rows with another value.
    """
    if "eye" not in table:
        return pd.Series(None, index=table.index, dtype=object)
    text = as_text(table["eye"]).replace("", None)
    eyes = text.map(lambda value: EYES.get(value.casefold(), "?"), na_action="ignore").astype(object)
    wrong = (eyes == "?") | ((eyes == "both") & (not both))
    if wrong.any():
        accepted = "R, L (OD, OS, right, left)" + (", both (OU)" if both else "")
        raise RetFoundError(
            f"the eye of {source}: {text[wrong].iloc[0]!r} in {rows_of(wrong)}; accepted are {accepted} or no value"
        )
    return eyes.where(eyes.notna(), None)
