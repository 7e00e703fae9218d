"""What became of each image's patient or eye within the horizon."""

from dataclasses import dataclass

import pandas as pd

from ...runs.errors import RetFoundError
from ..checks import listed
from .dates import Horizon
from .facts import DEATH
from .registry import Registry, known_events

UNITS = ("patient", "eye", "fellow_eye")
OTHER = {"R": "L", "L": "R"}


@dataclass(frozen=True)
class Question:
    """What is to be predicted.

    Attributes:
        events: the outcome: the first of these events counts.
        horizon: an image is positive if that falls after its day and not after the horizon's last day.
        unit: "patient" (events of the person), "eye" (of the photographed eye) or "fellow_eye" (of the photographed
            eye, if the patient's other eye had the event on or before the day of the image).
        exclude_prior: events, of the person, that bar images on or after their day.
    """

    events: tuple[str, ...]
    horizon: Horizon
    unit: str
    exclude_prior: tuple[str, ...] = ()

    @property
    def classes(self) -> dict[str, str]:
        """What the labels 0 and 1 stand for, in words."""
        positive = f"{' or '.join(self.events)} within {self.horizon}"
        return {"0": f"no {positive}", "1": positive}


def default_unit(registry: Registry, events: tuple[str, ...]) -> str:
    """ "eye" where all of the events name an eye, "patient" where none does.

    Raises:
        RetFoundError: some do and others do not.
    """
    chosen = known_events(registry, events)
    if chosen["eye"].notna().any():
        _need_eyes(chosen)
        return "eye"
    return "patient"


def find_outcomes(registry: Registry, question: Question) -> pd.DataFrame:
    """What is known of each image, by the index of `registry.images`.

    Returns:
        `event_date` (first event of the patient or eye, missing where none is known), `days_to_event`,
        `days_of_follow_up` (from the image to the event or the end of follow-up), and booleans: `prevalent` (event on
        or before the day), `prior` (a barring event), `fellow_healthy` (other eye without the event), `positive`,
        `died` (before the horizon's last day, without the event) and `short` (not followed to that day).
    """
    images, chosen = registry.images, known_events(registry, question.events)
    own = registry.patients.reindex(images["patient_id"]).set_axis(images.index)
    day, last = images["date"], question.horizon.after(images["date"])
    if question.unit == "patient":
        first = images["patient_id"].map(chosen.groupby("patient_id")["date"].min())
        fellow_healthy = pd.Series(False, images.index)
    else:
        if images["eye"].isna().any():
            unknown = images.loc[images["eye"].isna(), "path_in_table"]
            raise RetFoundError(f"unit {question.unit} needs the eye of {len(unknown)} images ({listed(unknown)})")
        by_eye = _first_by_eye(chosen)
        first = _look_up(by_eye, images["patient_id"], images["eye"])
        fellow = _look_up(by_eye, images["patient_id"], images["eye"].map(OTHER))
        fellow_healthy = ~(fellow <= day) & (question.unit == "fellow_eye")
    first = pd.to_datetime(first)
    positive = (first > day) & (first <= last)
    unseen = ~positive & (own["follow_up_end"] < last)
    died = unseen & (own[DEATH] == own["follow_up_end"])
    observed = first.where(first > day).fillna(own["follow_up_end"])
    found = {
        "event_date": first,
        "days_to_event": (first - day).dt.days.astype("Int64"),
        "days_of_follow_up": (observed - day).dt.days.clip(lower=0).astype("Int64"),
        "prevalent": first <= day,
        "prior": _had_before(registry, question, images),
        "fellow_healthy": fellow_healthy,
        "positive": positive,
        "died": died,
        "short": unseen & ~died,
    }
    return pd.DataFrame(found)


def _first_by_eye(events: pd.DataFrame) -> pd.Series:
    """First event by (patient, eye); one of both eyes counts for each."""
    _need_eyes(events)
    each = events.assign(eye=events["eye"].map({"R": ["R"], "L": ["L"], "both": ["R", "L"]})).explode("eye")
    return each.groupby(["patient_id", "eye"])["date"].min()


def _need_eyes(events: pd.DataFrame) -> None:
    unknown = events[events["eye"].isna()]
    if len(unknown):
        raise RetFoundError(
            f"{len(unknown)} of {len(events)} events {listed(unknown['event'].unique())} name no eye (patients "
            f"{listed(unknown['patient_id'].unique())}); give it (R, L or both), or choose --unit patient"
        )


def _look_up(by_eye: pd.Series, patients: pd.Series, eyes: pd.Series) -> pd.Series:
    keys = pd.MultiIndex.from_arrays([patients, eyes])
    return pd.Series(by_eye.reindex(keys).to_numpy(), index=patients.index)


def _had_before(registry: Registry, question: Question, images: pd.DataFrame) -> pd.Series:
    barring = known_events(registry, question.exclude_prior, need_one=False)
    if barring.empty:
        return pd.Series(False, images.index)
    return images["patient_id"].map(barring.groupby("patient_id")["date"].min()) <= images["date"]
