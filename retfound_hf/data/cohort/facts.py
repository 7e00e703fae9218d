"""What is known once per patient, from whichever table tells it."""

import re
from collections.abc import Sequence

import pandas as pd

from ...runs.errors import RetFoundError

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
