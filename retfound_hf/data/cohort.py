"""Cohorts for prognosis: labels from dates for a horizon, matched controls, and the count of exclusions."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from ..errors import RetFoundError, join_names
from .dates import Horizon
from .registry import DEATH, LAST_FOLLOW_UP, Registry, known_events
from .splits import PAPER_FRACTIONS, SPLITS, assign_splits

Counts = dict[str, int | None]
UNITS = ("patients", "eyes", "images")


def count(table: pd.DataFrame) -> Counts:
    """Patients, eyes (None where an image names none) and images of a table."""
    eyes = None if table["eye"].isna().any() else table.groupby("patient_id")["eye"].nunique().sum()
    return {
        "patients": int(table["patient_id"].nunique()),
        "eyes": None if eyes is None else int(eyes),
        "images": len(table),
    }


def said(counts: Counts) -> str:
    """Such as "12 patients, 20 eyes, 31 images"."""
    known = {unit: value for unit, value in counts.items() if unit in UNITS and value is not None}
    return ", ".join(f"{value:,} {unit if value != 1 else unit[:-1]}" for unit, value in known.items())


@dataclass(frozen=True)
class Exclusion:
    """Images left out for one reason; patients and eyes are counted where their last image goes.

    Attributes:
        name: for programs, such as "too_short_follow_up".
        text: for readers.
    """

    name: str
    text: str
    counts: Counts


@dataclass
class Stage:
    """Some exclusions, and what is left after them."""

    name: str
    text: str
    counts: Counts
    excluded: list[Exclusion] = field(default_factory=list)


class Flow:
    """The way of a table of images through its exclusions.

    Args:
        images: columns `patient_id`, `eye`; all of them are in at the beginning.
    """

    def __init__(self, images: pd.DataFrame, text: str = "Images in the table") -> None:
        self._has_eyes = images["eye"].notna().all()
        self.table = images
        self.stages = [Stage("read", text, self._count())]

    def stage(self, name: str, text: str) -> None:
        """Begin a stage: the exclusions that follow belong to it."""
        self.stages.append(Stage(name, text, self._count()))

    def exclude(self, name: str, text: str, out: pd.Series) -> None:
        """Leave out the images for which `out` (by the table's index) holds."""
        before = self._count()
        self.table = self.table[~out.reindex(self.table.index)]
        after = self._count()
        lost = {unit: None if value is None else value - after[unit] for unit, value in before.items()}
        self.stages[-1].excluded.append(Exclusion(name, text, lost))
        self.stages[-1].counts = after

    def as_dict(self) -> dict[str, Any]:
        """For `flow.json`: the stages; with columns `label` and `split` of the table also its classes and splits."""
        stages = [
            {
                "name": stage.name,
                "text": stage.text,
                "excluded": [{"name": part.name, "text": part.text, **part.counts} for part in stage.excluded],
                **stage.counts,
            }
            for stage in self.stages
        ]
        found: dict[str, Any] = {"stages": stages}
        if "label" in self.table:
            found["labels"] = {str(label): self._count(part) for label, part in self.table.groupby("label")}
        if "split" in self.table:
            found["splits"] = {
                split: self._count(part) | {"labels": {str(k): self._count(v) for k, v in part.groupby("label")}}
                for split in SPLITS
                for part in (self.table[self.table["split"] == split],)
            }
        return found

    def _count(self, table: pd.DataFrame | None = None) -> Counts:
        counts = count(self.table if table is None else table)
        return counts if self._has_eyes else counts | {"eyes": None}


OUTCOMES_UNITS = ("patient", "eye", "fellow_eye")
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
            raise RetFoundError(f"unit {question.unit} needs the eye of {len(unknown)} images ({join_names(unknown)})")
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
            f"{len(unknown)} of {len(events)} events {join_names(unknown['event'].unique())} name no eye (patients "
            f"{join_names(unknown['patient_id'].unique())}); give it (R, L or both), or choose --unit patient"
        )


def _look_up(by_eye: pd.Series, patients: pd.Series, eyes: pd.Series) -> pd.Series:
    keys = pd.MultiIndex.from_arrays([patients, eyes])
    return pd.Series(by_eye.reindex(keys).to_numpy(), index=patients.index)


def _had_before(registry: Registry, question: Question, images: pd.DataFrame) -> pd.Series:
    barring = known_events(registry, question.exclude_prior, need_one=False)
    if barring.empty:
        return pd.Series(False, images.index)
    return images["patient_id"].map(barring.groupby("patient_id")["date"].min()) <= images["date"]


def other_visits(images: pd.DataFrame, unit: str, visits: str, seed: int) -> pd.Series:
    """True for the images of visits that are not chosen.

    No choice looks ahead: it knows nothing of the outcome.

    Args:
        images: at risk, sorted; columns `patient_id`, `eye`, `date`.
        unit: "patient" for one visit per patient, otherwise one per eye.
        visits: "first" or "random" (seeded).
    """
    key = ["patient_id"] if unit == "patient" else ["patient_id", "eye"]
    if visits == "first":
        return images["date"] != images.groupby(key)["date"].transform("min")
    place = images.groupby(key)["date"].rank("dense").astype(int)
    number = place.groupby([images[name] for name in key]).transform("max")
    group = images.groupby(key).ngroup()  # numbered in the order of the sorted keys
    drawn = np.random.default_rng(seed).random(int(group.max()) + 1 if len(group) else 0)
    return place != 1 + (drawn[group] * number).astype(int)


def further_images(images: pd.DataFrame, quality_column: str | None) -> pd.Series:
    """True for all but one image of each eye and day: the first by name, or the best by `quality_column`.

    Raises:
        RetFoundError: no such column, or one that holds no numbers.
    """
    order = images[["path_in_table"]].assign(quality=0.0)
    if quality_column is not None:
        if quality_column not in images or not pd.api.types.is_numeric_dtype(images[quality_column]):
            raise RetFoundError(f"the images table has no column {quality_column!r} of numbers (--quality_column)")
        order["quality"] = images[quality_column].fillna(-np.inf)
    order = images.loc[order.sort_values(["quality", "path_in_table"], ascending=[False, True]).index]
    return order.assign(eye=order["eye"].fillna("")).duplicated(["patient_id", "eye", "date"])


@dataclass(frozen=True)
class Matching:
    """How patients without the event are chosen for those with it.

    Attributes:
        ratio: controls per case; a case for whom there are fewer keeps those, one for whom there is none is excluded.
        age_caliper: largest difference in age, in years.
        same_sex: whether sex must agree.
    """

    ratio: int = 1
    age_caliper: float = 2.0
    same_sex: bool = True

    def __post_init__(self) -> None:
        if self.ratio < 1:
            raise RetFoundError(f"--match_controls {self.ratio} is too few; give at least 1")
        if self.age_caliper < 0:
            raise RetFoundError(f"--match_age_caliper {self.age_caliper} is below 0; give years, such as 2")


def match_controls(table: pd.DataFrame, matching: Matching, seed: int) -> pd.Series:
    """The case to which each image's patient was matched (a case to itself), None for the unmatched.

    Cases are dealt one control each in a random order, then a second one, and so on, so that the first cases do not
    take the controls of the others; each takes the free control nearest in age, of those equally near one at random.

    Args:
        table: labelled images; columns `patient_id`, `label`, `age`, `sex`. A patient with any positive image is a
            case. The age is that at the patient's first image.
        seed: orders cases and controls.

    Raises:
        RetFoundError: age or sex is not known of all.
    """
    wanted = ["age", "sex"] if matching.same_sex else ["age"]
    table = _with_known(table, wanted)
    by_patient = table.sort_values("date", kind="stable").groupby("patient_id")  # sorts the patients by name
    patients = by_patient[wanted].first().assign(case=by_patient["label"].max() == 1)
    patients = patients.sample(frac=1, random_state=np.random.default_rng(seed))
    matched: dict[str, str] = {}
    for _, alike in patients.groupby("sex") if matching.same_sex else [(None, patients)]:
        cases = alike[alike["case"]]
        controls = alike[~alike["case"]].sort_values("age", kind="stable")
        matched |= _deal(cases["age"], controls["age"], matching)
    return table["patient_id"].map(matched).astype(object).where(lambda found: found.notna(), None)


def _with_known(table: pd.DataFrame, wanted: list[str]) -> pd.DataFrame:
    sources = {"age": "a column age of the images, or birth_date of the patients", "sex": "a column sex"}
    table = table.assign(age=pd.to_numeric(table["age"], errors="coerce")) if "age" in table else table
    for name in wanted:
        unknown = table["patient_id"] if name not in table else table.loc[table[name].isna(), "patient_id"]
        if len(unknown):
            raise RetFoundError(
                f"matching needs the {name} of all patients, and {unknown.nunique()} have none "
                f"({join_names(unknown.unique())}); add {sources[name]}"
            )
    return table


def _deal(cases: pd.Series, controls: pd.Series, matching: Matching) -> dict[str, str]:
    """Case by patient, for controls and for the cases that got one; `controls` sorted by age, both by patient."""
    ages, names = controls.to_numpy(float), controls.index.to_numpy()
    # The tolerance lets 62.3 - 60.3 be 2.
    low = np.searchsorted(ages, cases.to_numpy(float) - matching.age_caliper - 1e-9)
    high = np.searchsorted(ages, cases.to_numpy(float) + matching.age_caliper + 1e-9, side="right")
    free = np.ones(len(ages), dtype=bool)
    matched: dict[str, str] = {}
    for _ in range(matching.ratio):
        for case, age, first, last in zip(cases.index, cases, low, high, strict=True):
            near = first + np.flatnonzero(free[first:last])
            if len(near) == 0:
                continue
            nearest = near[np.argmin(np.abs(ages[near] - age))]
            free[nearest] = False
            matched[names[nearest]] = matched[case] = case
    return matched


FIRST_COLUMNS = ("image", "label", "patient_id", "eye", "date", "split", "age", "sex")
LAST_COLUMNS = ("event_date", "days_to_event", "days_of_follow_up")
FACT_DATES = (DEATH, LAST_FOLLOW_UP)  # of the person, told by the last columns


@dataclass(frozen=True)
class Cohort:
    """A labelled cohort.

    Attributes:
        table: one row per image, sorted by patient, eye, day and name: `image` (absolute path), `label` (0, 1),
            `patient_id`, `eye`, `date`, `split`, `age` in years on that day and `sex` where known, the other columns
            of the images table, `event_date`, `days_to_event`, `days_of_follow_up`, and `matched_to` (the case's
            patient) after matching.
        question: what the labels answer.
        flow: the exclusions.
        facts: other counts worth keeping.
    """

    table: pd.DataFrame
    question: Question
    flow: Flow
    facts: dict[str, int]


def build_cohort(
    registry: Registry,
    question: Question,
    *,
    visits: str = "first",
    images: str = "one",
    quality_column: str | None = None,
    matching: Matching | None = None,
    split_fractions: Sequence[float] = PAPER_FRACTIONS,
    seed: int = 0,
) -> Cohort:
    """Label the images of a registry, leave out those that cannot be labelled, and split by patient.

    The order of the exclusions: images that are not at risk on their day, then other visits and further images of the
    same visit (neither choice looks ahead), then those whose outcome is unknown, then matching.

    Args:
        visits: "first" at-risk visit of the patient (or eye), a "random" one, or "all".
        images: "one" of each eye and visit, or "all".
        quality_column: the image with its highest number is the one; by default the first by name.
        matching: how controls are chosen; all by default.
        split_fractions: shares of patients of train, val and test.

    Raises:
        RetFoundError: nothing left, or nothing of one class.
    """
    found = find_outcomes(registry, question)
    photographs = registry.images.assign(**_person(registry), **{name: found[name] for name in LAST_COLUMNS})
    flow = Flow(photographs.sort_values(["patient_id", "eye", "date", "path_in_table"]))
    event = " or ".join(question.events)
    flow.stage("at_risk", "At risk on the day of the image")
    flow.exclude("prevalent", f"{event} on or before the day of the image", found["prevalent"])
    if question.unit == "fellow_eye":
        flow.exclude("fellow_eye_healthy", f"other eye without {event} on that day", found["fellow_healthy"])
    if question.exclude_prior:
        flow.exclude("prior", f"{' or '.join(question.exclude_prior)} on or before that day", found["prior"])
    flow.stage("chosen", "Index images")
    if visits != "all":
        others = other_visits(flow.table, question.unit, visits, seed)
        flow.exclude("other_visits", f"{'later' if visits == 'first' else 'other'} visits", others)
    if images != "all":
        further = further_images(flow.table, quality_column)
        flow.exclude("further_images", "further images of the same eye and visit", further)
    flow.stage("followed", f"Outcome known {question.horizon} later")
    flow.exclude("died", f"died within {question.horizon} without {event}", found["died"])
    flow.exclude("too_short_follow_up", f"followed for less than {question.horizon}", found["short"])
    flow.table = flow.table.assign(label=found["positive"].astype(int))
    _need_both_classes(flow, event)
    if matching is not None:
        flow.stage("matched", f"Cases with up to {matching.ratio} matched controls each")
        matched = match_controls(flow.table, matching, seed)
        is_case = flow.table.groupby("patient_id")["label"].transform("max") == 1
        flow.exclude("unmatched_cases", "cases without a control like them", matched.isna() & is_case)
        flow.exclude("unmatched_controls", "controls not needed", matched.isna() & ~is_case)
        flow.table = flow.table.assign(matched_to=matched)
        _need_both_classes(flow, event)
    table = flow.table
    split = assign_splits(table["patient_id"].to_numpy(str), table["label"].to_numpy(), split_fractions, seed)
    flow.table = table.assign(split=split)
    return Cohort(_tidy(flow.table), question, flow, _facts(registry, flow.table))


def _person(registry: Registry) -> dict[str, pd.Series]:
    """Columns `age` and `sex` of the images from the patients' facts, where the table has none."""
    images = registry.images
    own = registry.patients.reindex(images["patient_id"]).set_axis(images.index)
    person = {}
    if "sex" not in images and own["sex"].notna().any():
        person["sex"] = own["sex"]
    if "age" not in images and own["birth_date"].notna().any():
        person["age"] = ((images["date"] - own["birth_date"]).dt.days / 365.25).round(1)
    return person


def _need_both_classes(flow: Flow, event: str) -> None:
    labels = set(flow.table["label"])
    if labels == {0, 1}:
        return
    lost = [f"{part.counts['images']} {part.text}" for stage in flow.stages for part in stage.excluded]
    missing = "image" if not labels else f"image with {event}" if 1 not in labels else f"image without {event}"
    raise RetFoundError(
        f"no {missing} is left of {flow.stages[0].counts['images']}; excluded: {', '.join(lost)}; give the follow-up "
        "(rows last_follow_up or death, columns of that name, or --follow_up_end), or a shorter horizon"
    )


def _tidy(table: pd.DataFrame) -> pd.DataFrame:
    first = [name for name in FIRST_COLUMNS if name in table]
    last = [name for name in (*LAST_COLUMNS, "matched_to") if name in table]
    others = [name for name in table if name not in {*first, *last, "path_in_table", *FACT_DATES}]
    return table[[*first, *others, *last]].reset_index(drop=True)


def _facts(registry: Registry, table: pd.DataFrame) -> dict[str, int]:
    own = registry.patients.loc[table["patient_id"].unique()]
    return {
        "patients_with_follow_up_from_last_record": int((~own["follow_up_given"]).sum()),
        "patients_who_died": int(own[DEATH].notna().sum()),
        **{f"patients_without_images_in_{table}": count for table, count in registry.without_images.items()},
    }
