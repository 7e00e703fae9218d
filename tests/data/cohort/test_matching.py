import itertools

import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.cohort import Matching, match_controls
from retfound_hf.errors import BadArgumentError, BadDataError


def population(seed, cases=40, controls=300):
    """One image per patient; cases are ten years older than controls."""
    rng = np.random.default_rng(seed)
    label = np.repeat([1, 0], [cases, controls])
    return pd.DataFrame({
        "patient_id": [f"p{number:03d}" for number in range(len(label))],
        "date": pd.Timestamp("2019-03-04"),
        "label": label,
        "age": np.round(rng.normal(60, 9, len(label)) + 10 * label, 1),
        "sex": rng.choice(["F", "M"], len(label)),
    })  # fmt: skip


def pairs(table, matched):
    """Case and control rows side by side."""
    table = table.assign(matched_to=matched).dropna(subset=["matched_to"])
    cases, controls = (table[table["label"] == label] for label in (1, 0))
    return controls.merge(cases, left_on="matched_to", right_on="patient_id", suffixes=("", "_case"))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ratio", [1, 3])
def test_matched_groups_are_alike(seed, ratio):
    table = population(seed)
    matched = match_controls(table, Matching(ratio, 2.0), seed)
    found = pairs(table, matched)
    assert (found["sex"] == found["sex_case"]).all()
    assert ((found["age"] - found["age_case"]).abs() <= 2.0 + 1e-9).all()
    assert found["patient_id"].is_unique  # without replacement
    per_case = found.groupby("patient_id_case").size()
    assert per_case.between(1, ratio).all()
    before = table.groupby("label")["age"].mean()
    assert before[1] - before[0] > 5 and abs(found["age"].mean() - found["age_case"].mean()) < 0.5
    kept_cases = set(table.loc[matched.notna() & (table["label"] == 1), "patient_id"])
    assert kept_cases == set(per_case.index)


def test_nobody_within_reach_is_left_free():
    """A case is short of controls only where no free control is like it."""
    table = population(1, cases=60, controls=100)
    matched = match_controls(table, Matching(2, 3.0), 0)
    counts = pairs(table, matched).groupby("patient_id_case").size()
    free = table[(table["label"] == 0) & matched.isna()]
    for case in table[table["label"] == 1].itertuples():
        if counts.get(case.patient_id, 0) < 2:
            assert not ((free["sex"] == case.sex) & ((free["age"] - case.age).abs() <= 3.0)).any()


def test_the_nearest_is_taken():
    table = population(0, 1, 0)
    controls = pd.concat([table] * 4).assign(label=0, patient_id=list("abcd"), sex=[table["sex"][0]] * 4)
    controls["age"] = table["age"][0] + np.array([1.5, -0.5, 0.7, 9])
    both = pd.concat([table, controls], ignore_index=True)
    for ratio, expected in ((1, {"b"}), (2, {"b", "c"}), (4, {"a", "b", "c"})):
        assert set(pairs(both, match_controls(both, Matching(ratio), 0))["patient_id"]) == expected


def test_every_case_gets_one_control_before_any_gets_two():
    table = pd.DataFrame({"patient_id": list("ABabcd"), "label": [1, 1, 0, 0, 0, 0], "age": [60.0, 60, 60, 60, 61, 70],
                          "sex": "F", "date": pd.Timestamp("2019-03-04")})  # fmt: skip
    for seed in range(10):
        matched = match_controls(table, Matching(2, 2.0), seed)
        assert sorted(pairs(table, matched).groupby("patient_id_case").size()) == [1, 2]


def test_sex_may_be_left_out():
    table = population(0).assign(sex=lambda table: np.where(table["label"] == 1, "F", "M"))
    assert match_controls(table, Matching(1), 0).isna().all()
    assert match_controls(table.drop(columns="sex"), Matching(1, same_sex=False), 0).notna().any()


def test_seeds_and_order_of_rows():
    table = population(2)
    expected = match_controls(table, Matching(1), 0)
    mixed = table.sample(frac=1, random_state=3)
    assert match_controls(mixed, Matching(1), 0).sort_index().equals(expected)
    found = [match_controls(table, Matching(1), seed) for seed in range(3)]
    assert any(not a.equals(b) for a, b in itertools.combinations(found, 2))


def test_a_patient_with_one_affected_eye_is_a_case():
    table = population(0, 1, 5)
    other_eye = table.iloc[[0]].assign(label=0)
    both = pd.concat([table.assign(age=60.0, sex="F"), other_eye.assign(age=60.0, sex="F")], ignore_index=True)
    matched = match_controls(both, Matching(5), 0)
    assert (matched == "p000").all() and len(matched) == 7


def test_unknown_ages_are_said():
    table = population(0)
    table.loc[[3, 4], "age"] = None
    with pytest.raises(BadDataError) as error:
        match_controls(table, Matching(), 0)
    assert error.value.rows == ("p003", "p004")
    with pytest.raises(BadDataError) as error:
        match_controls(population(0).drop(columns="sex"), Matching(), 0)
    assert len(error.value.rows) == 340
    with pytest.raises(BadArgumentError) as error:
        Matching(0)
    assert error.value.field == "match_controls"
