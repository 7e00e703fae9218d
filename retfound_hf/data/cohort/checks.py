"""What cannot be true of a registry, said in one line that names the rows."""

import pandas as pd

from ...runs.errors import RetFoundError
from .dates import rows_of
from .facts import DEATH, LAST_FOLLOW_UP


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
