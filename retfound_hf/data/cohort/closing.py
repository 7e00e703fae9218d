"""The day on which a registry was closed: what is dated later was not seen."""

import pandas as pd

from ...runs.errors import RetFoundError
from .dates import DateReader
from .facts import DEATH, LAST_FOLLOW_UP


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
