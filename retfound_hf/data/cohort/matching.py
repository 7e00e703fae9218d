"""Controls like the cases: nearest in age within a caliper, of the same sex, without replacement."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from ...runs.errors import RetFoundError
from ..checks import listed


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
                f"({listed(unknown.unique())}); add {sources[name]}"
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
