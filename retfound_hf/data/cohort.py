"""Cohorts for prognosis: labels from dates for a horizon, index images, matched controls, counted exclusions."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from ..errors import BadArgumentError, BadDataError, join_names, require, require_range
from ..evaluation.bootstrap import Estimate
from ..evaluation.comparisons import auroc_interval
from ..evaluation.intervals import share_interval
from .flow import Flow
from .registry import DEATH, LAST_FOLLOW_UP, Registry, find_events
from .splits import PAPER_FRACTIONS, assign_splits

UNITS = ("patient", "eye", "fellow_eye")
HORIZON = re.compile(r"(\d+)\s*(d|w|m|y|days?|weeks?|months?|years?)", re.IGNORECASE)
TIME_UNITS = {"d": "days", "w": "weeks", "m": "months", "y": "years"}
FIRST_COLUMNS = ("image", "label", "patient_id", "eye", "date", "split", "age", "sex")
LAST_COLUMNS = ("event_date", "days_to_event", "days_of_follow_up")


@dataclass(frozen=True)
class Horizon:
    """Span of calendar time: `number` of `unit` ("days", "weeks", "months", "years")."""

    number: int
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Horizon":
        """Read a span such as "3y", "18 months" or "365d".

        Raises:
            BadArgumentError: not a span, or an empty one.
        """
        match = HORIZON.fullmatch(str(text).strip())
        if match is None or int(match[1]) == 0:
            message = f"`horizon={text}` is not a span of time; give one such as 1y, 18m, 52w or 365d"
            raise BadArgumentError(message, field="horizon", value=text)
        return cls(int(match[1]), TIME_UNITS[match[2][0].lower()])

    def after(self, days: pd.Series) -> pd.Series:
        """Last day of the horizon for each index day: the same day of a later month.

        The 29th of February and the 31st give way to the last day of a shorter month.
        """
        return days + pd.DateOffset(**{self.unit: self.number})

    def __str__(self) -> str:
        return f"{self.number} {self.unit if self.number > 1 else self.unit[:-1]}"


@dataclass(frozen=True)
class Question:
    """The prediction target of a cohort.

    Attributes:
        events: the outcome: the first of these events counts.
        horizon: an image is positive if that falls after its day and not after the horizon's last day.
        unit: "patient" (events of the person), "eye" (of the photographed eye) or "fellow_eye" (of the photographed
            eye, if the patient's other eye had the event on or before the day of the image).
        exclude_prior: events of the person that exclude images on or after their day.
    """

    events: tuple[str, ...]
    horizon: Horizon
    unit: str
    exclude_prior: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        require("unit", self.unit, UNITS)

    @property
    def classes(self) -> dict[str, str]:
        """The labels 0 and 1 in words."""
        positive = f"{' or '.join(self.events)} within {self.horizon}"
        return {"0": f"no {positive}", "1": positive}


@dataclass(frozen=True)
class Matching:
    """Choice of patients without the event for those with it.

    Attributes:
        ratio: controls per case; a case with fewer keeps those, one without any is excluded.
        age_caliper: largest difference in age, in years.
        same_sex: whether sex must agree.
    """

    ratio: int = 1
    age_caliper: float = 2.0
    same_sex: bool = True

    def __post_init__(self) -> None:
        require_range("match_controls", self.ratio, 1)
        require_range("match_age_caliper", self.age_caliper, 0)


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
        facts: further counts.
        checks: see `check_labels`.
    """

    table: pd.DataFrame
    question: Question
    flow: Flow
    facts: dict[str, int]
    checks: dict[str, Estimate]


def build_cohort(
    registry: Registry, question: Question, *, visits: str = "first", images: str = "one",
    quality_column: str | None = None, matching: Matching | None = None,
    split_fractions: Sequence[float] = PAPER_FRACTIONS, seed: int = 0,
) -> Cohort:  # fmt: skip
    """Label the images of a registry, leave out those that cannot be labelled, and split by patient.

    The order of the exclusions: images not at risk on their day, then other visits and further images of the same
    visit (neither choice looks ahead), then images with an unknown outcome, then matching. An image whose horizon is
    not over when follow-up ends (when the registry is closed, or nobody is followed any longer) is excluded whatever
    its outcome: it can only be positive or unknown, never negative, and its date would tell the label.

    Args:
        registry: of `read_registry`.
        question: of the labels.
        visits: "first" at-risk visit of the patient (or eye), a "random" one, or "all".
        images: "one" of each eye and visit, or "all".
        quality_column: the image with its highest number is the one; by default the first by name.
        matching: choice of controls; all by default.
        split_fractions: shares of patients of train, val and test.
        seed: of random visits, controls and splits.

    Raises:
        BadDataError: nothing left, or nothing of one class.
        BadArgumentError: unknown events, or a missing quality column.
    """
    found = _find_outcomes(registry, question)
    photographs = registry.images.assign(**_personal_columns(registry), **{name: found[name] for name in LAST_COLUMNS})
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
        others = _other_visits(flow.table, question.unit, visits, seed)
        flow.exclude("other_visits", f"{'later' if visits == 'first' else 'other'} visits", others)
    if images != "all":
        further = _further_images(flow.table, quality_column)
        flow.exclude("further_images", "further images of the same eye and visit", further)
    flow.stage("followed", f"Outcome known {question.horizon} later")
    end = registry.patients["follow_up_end"].max()
    flow.exclude(
        "horizon_not_over", f"{question.horizon} not over on {end:%Y-%m-%d}, when follow-up ends", found["open"]
    )
    followed = flow.table
    flow.exclude("died", f"died within {question.horizon} without {event}", found["died"])
    flow.exclude("too_short_follow_up", f"followed for less than {question.horizon}", found["short"])
    flow.table = flow.table.assign(label=found["positive"].astype(int).reindex(flow.table.index))
    _need_both_classes(flow, event)
    checks = check_labels(flow.table, followed, question.horizon)
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
    own = registry.patients.loc[table["patient_id"].unique()]
    facts = {
        "patients_with_follow_up_from_last_record": int((~own["follow_up_given"]).sum()),
        "patients_who_died": int(own[DEATH].notna().sum()),
        **{f"patients_without_images_in_{name}": count for name, count in registry.without_images.items()},
    }
    return Cohort(_in_order(flow.table), question, flow, facts, checks)


def check_labels(labelled: pd.DataFrame, followed: pd.DataFrame, horizon: Horizon) -> dict[str, Estimate]:
    """Signs that labels depend on who was followed for how long, with 95% intervals over patients.

    Args:
        labelled: the images with a label, before matching.
        followed: the same and those whose patients died or left before the horizon was over.
        horizon: of the labels.

    Returns:
        `date_auroc`: AUROC of the image's date alone against the label; away from 0.5 the calendar tells the label.
        `risk`: share of positive images. `kaplan_meier_risk`: by the product-limit estimate (Kaplan and Meier 1958) of
        `followed`, to which those who died or left count until then; `risk`, which leaves them out unless they had the
        event before, is higher where many do.
    """
    last = (horizon.after(followed["date"]) - followed["date"]).dt.days
    event = (followed["days_to_event"] <= last).fillna(False)
    days = np.minimum(followed["days_of_follow_up"], last).to_numpy(int)
    times, events = np.unique(days[event.to_numpy(bool)], return_counts=True)
    survival = np.prod(1 - events / (len(days) - np.searchsorted(np.sort(days), times)))
    patients, count = labelled["patient_id"].to_numpy(), followed["patient_id"].nunique()
    return {
        "date_auroc": auroc_interval(labelled["label"] == 1, labelled["date"].astype("int64"), patients),
        "risk": share_interval(labelled["label"], patients),
        "kaplan_meier_risk": Estimate(1 - float(survival), None, None, count, "Kaplan-Meier"),
    }


def default_unit(registry: Registry, events: tuple[str, ...]) -> str:
    """ "eye" where all of the events name an eye, "patient" where none does.

    Raises:
        BadDataError: some do and others do not.
    """
    chosen = find_events(registry, events)
    if chosen["eye"].isna().all():
        return "patient"
    _need_eyes(chosen)
    return "eye"


def match_controls(table: pd.DataFrame, matching: Matching, seed: int) -> pd.Series:
    """The case to which each image's patient was matched (a case to itself), None for the unmatched.

    Cases are dealt one control each in a random order, then a second one, and so on, so that the first cases do not
    take the controls of the others; each takes the free control nearest in age, at random among equally near ones.

    Args:
        table: labelled images; columns `patient_id`, `label`, `age`, `sex`. A patient with any positive image is a
            case. The age is that at the patient's first image.
        matching: ratio and limits.
        seed: orders cases and controls.

    Raises:
        BadDataError: age or sex is not known for all; `.rows` lists the patients.
    """
    wanted = ["age", "sex"] if matching.same_sex else ["age"]
    table = table.assign(age=pd.to_numeric(table["age"], errors="coerce")) if "age" in table else table
    for name in wanted:
        unknown = table["patient_id"] if name not in table else table.loc[table[name].isna(), "patient_id"]
        if len(unknown):
            source = {"age": "a column age of the images, or birth_date of the patients", "sex": "a column sex"}[name]
            raise BadDataError(
                f"matching needs the {name} of all patients, and {unknown.nunique()} have none "
                f"({join_names(unknown.unique())}); add {source}",
                rows=unknown.unique(),
            )
    by_patient = table.sort_values("date", kind="stable").groupby("patient_id")  # sorts the patients by name
    patients = by_patient[wanted].first().assign(case=by_patient["label"].max() == 1)
    patients = patients.sample(frac=1, random_state=np.random.default_rng(seed))
    matched: dict[str, str] = {}
    for _, alike in patients.groupby("sex") if matching.same_sex else [(None, patients)]:
        controls = alike[~alike["case"]].sort_values("age", kind="stable")
        matched |= _deal(alike.loc[alike["case"], "age"], controls["age"], matching)
    return table["patient_id"].map(matched).astype(object).where(lambda found: found.notna(), None)


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
            if len(near):
                nearest = near[np.argmin(np.abs(ages[near] - age))]
                free[nearest] = False
                matched[names[nearest]] = matched[case] = case
    return matched


def _find_outcomes(registry: Registry, question: Question) -> pd.DataFrame:
    """Outcome of each image, by the index of `registry.images`.

    Returns:
        `event_date` (first event of the patient or eye, missing where none is known), `days_to_event`,
        `days_of_follow_up` (from the image to the event or the end of follow-up), and booleans: `prevalent` (event on
        or before the day), `prior` (an excluding event), `fellow_healthy` (other eye without the event), `positive`,
        `died` (before the horizon's last day, without the event) and `short` (not followed to that day).
    """
    images, chosen = registry.images, find_events(registry, question.events)
    own = registry.patients.reindex(images["patient_id"]).set_axis(images.index)
    day, last = images["date"], question.horizon.after(images["date"])
    if question.unit == "patient":
        first = images["patient_id"].map(chosen.groupby("patient_id")["date"].min())
        fellow_healthy = pd.Series(False, images.index)
    else:
        unknown = images.loc[images["eye"].isna(), "path_in_table"]
        if len(unknown):
            raise BadDataError(
                f"`unit={question.unit}` needs the eye of {len(unknown)} images ({join_names(unknown)})", rows=unknown
            )
        first = _first_events(chosen, images["patient_id"], images["eye"])
        fellow = _first_events(chosen, images["patient_id"], images["eye"].map({"R": "L", "L": "R"}))
        fellow_healthy = ~(fellow <= day) & (question.unit == "fellow_eye")
    first = pd.to_datetime(first)
    positive = (first > day) & (first <= last)
    unseen = ~positive & (own["follow_up_end"] < last)
    died = unseen & (own[DEATH] == own["follow_up_end"])
    observed = first.where(first > day).fillna(own["follow_up_end"])
    excluding = find_events(registry, question.exclude_prior, need_one=False)
    first_prior = excluding.groupby("patient_id")["date"].min().reindex(images["patient_id"]).set_axis(images.index)
    return pd.DataFrame({
        "event_date": first,
        "days_to_event": (first - day).dt.days.astype("Int64"),
        "days_of_follow_up": (observed - day).dt.days.clip(lower=0).astype("Int64"),
        "prevalent": first <= day, "prior": first_prior <= day, "fellow_healthy": fellow_healthy,
        "open": last > registry.patients["follow_up_end"].max(),
        "positive": positive, "died": died, "short": unseen & ~died,
    })  # fmt: skip


def _first_events(events: pd.DataFrame, patients: pd.Series, eyes: pd.Series) -> pd.Series:
    """Day of the first event of each patient and eye, by the index of `patients`; one of both eyes counts for each."""
    _need_eyes(events)
    each = events.assign(eye=events["eye"].map({"R": ["R"], "L": ["L"], "both": ["R", "L"]})).explode("eye")
    by_eye = each.groupby(["patient_id", "eye"])["date"].min()
    return pd.Series(by_eye.reindex(pd.MultiIndex.from_arrays([patients, eyes])).to_numpy(), index=patients.index)


def _need_eyes(events: pd.DataFrame) -> None:
    unknown = events[events["eye"].isna()]
    if len(unknown):
        raise BadDataError(
            f"{len(unknown)} of {len(events)} events {join_names(unknown['event'].unique())} name no eye (patients "
            f"{join_names(unknown['patient_id'].unique())}); give it (R, L or both), or choose `unit=patient`",
            rows=unknown["patient_id"].unique(),
        )


def _other_visits(images: pd.DataFrame, unit: str, visits: str, seed: int) -> pd.Series:
    """True for the images (at risk, sorted) of visits that are not chosen; neither choice sees an outcome."""
    key = ["patient_id"] if unit == "patient" else ["patient_id", "eye"]
    if visits == "first":
        return images["date"] != images.groupby(key)["date"].transform("min")
    place = images.groupby(key)["date"].rank("dense").astype(int)
    number = place.groupby([images[name] for name in key]).transform("max")
    group = images.groupby(key).ngroup()  # numbered in the order of the sorted keys
    drawn = np.random.default_rng(seed).random(int(group.max()) + 1 if len(group) else 0)
    return place != 1 + (drawn[group] * number).astype(int)


def _further_images(images: pd.DataFrame, quality_column: str | None) -> pd.Series:
    """True for all but one image of each eye and day: the first by name, or the best by `quality_column`."""
    order = images[["path_in_table"]].assign(quality=0.0)
    if quality_column is not None:
        if quality_column not in images or not pd.api.types.is_numeric_dtype(images[quality_column]):
            message = f"`quality_column={quality_column}`: the images table has no such column of numbers"
            raise BadArgumentError(message, field="quality_column", value=quality_column)
        order["quality"] = images[quality_column].fillna(-np.inf)
    order = images.loc[order.sort_values(["quality", "path_in_table"], ascending=[False, True]).index]
    return order.assign(eye=order["eye"].fillna("")).duplicated(["patient_id", "eye", "date"])


def _personal_columns(registry: Registry) -> dict[str, pd.Series]:
    """Columns `age` and `sex` of the images from the patients' facts, where the table has none."""
    images = registry.images
    own = registry.patients.reindex(images["patient_id"]).set_axis(images.index)
    columns = {}
    if "sex" not in images and own["sex"].notna().any():
        columns["sex"] = own["sex"]
    if "age" not in images and own["birth_date"].notna().any():
        columns["age"] = ((images["date"] - own["birth_date"]).dt.days / 365.25).round(1)
    return columns


def _need_both_classes(flow: Flow, event: str) -> None:
    labels = set(flow.table["label"])
    if labels == {0, 1}:
        return
    lost = [f"{part.counts['images']} {part.text}" for stage in flow.stages for part in stage.excluded]
    missing = "image" if not labels else f"image with {event}" if 1 not in labels else f"image without {event}"
    raise BadDataError(
        f"no {missing} is left of {flow.stages[0].counts['images']}; excluded: {', '.join(lost)}; give the follow-up "
        "(rows last_follow_up or death, columns of that name, or `follow_up_end`), or a shorter `horizon`"
    )


def _in_order(table: pd.DataFrame) -> pd.DataFrame:
    first = [name for name in FIRST_COLUMNS if name in table]
    last = [name for name in (*LAST_COLUMNS, "matched_to") if name in table]
    # The last columns tell what the dates of death and follow-up told.
    others = [name for name in table if name not in {*first, *last, "path_in_table", DEATH, LAST_FOLLOW_UP}]
    return table[[*first, *others, *last]].reset_index(drop=True)
