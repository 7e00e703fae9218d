"""From a registry and a question to a labelled cohort."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from ...runs.errors import RetFoundError
from ..splits import PAPER_FRACTIONS, assign_splits
from .facts import DEATH, LAST_FOLLOW_UP
from .flow import Flow
from .matching import Matching, match_controls
from .outcomes import Question, find_outcomes
from .registry import Registry
from .selection import further_images, other_visits

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
