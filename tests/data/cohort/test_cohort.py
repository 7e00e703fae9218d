"""Labels, exclusions and matching: hand-worked boundaries, and a slow implementation on random registries."""

import itertools
from datetime import date, timedelta

import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.cohort import Matching, match_controls
from retfound_hf.data.splits import PAPER_FRACTIONS
from retfound_hf.errors import BadArgumentError, BadDataError

INDEX = date(2019, 3, 4)
# Two patients whose outcome is certain, so that both classes are always there.
CERTAIN = [("yes", "stroke", "2019-06-01"), ("no", "last_follow_up", "2029-01-01")]


def fate(registry, build, rows, day=INDEX, **options):
    """Label of the image of patient "p" with the events `rows`: 0, 1 or the name of an exclusion."""
    images = pd.DataFrame({"image": ["p.png", "yes.png", "no.png"], "patient_id": ["p", "yes", "no"],
                           "date": [str(day), "2019-03-04", "2019-03-04"]})  # fmt: skip
    events = pd.DataFrame([("p", *row) for row in rows] + CERTAIN, columns=["patient_id", "event", "date"])
    cohort = build(registry(images, events), **options)
    found = cohort.table.loc[cohort.table["patient_id"] == "p", "label"]
    if len(found):
        return int(found.iloc[0])
    lost = [part.name for stage in cohort.flow.stages for part in stage.excluded if part.counts["images"]]
    assert len(lost) == 1
    return lost[0]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("stroke", "2019-03-03")], "prevalent"),
        ([("stroke", "2019-03-04")], "prevalent"),
        ([("stroke", "2019-03-05")], 1),
        ([("stroke", "2020-03-04")], 1),
        ([("stroke", "2020-03-05")], 0),
        ([("last_follow_up", "2020-03-04")], 0),
        ([("last_follow_up", "2020-03-03")], "too_short_follow_up"),
        ([("Last follow-up", "2020-03-03")], "too_short_follow_up"),
        ([("death", "2020-03-04")], 0),
        ([("death", "2020-03-03")], "died"),
        ([("stroke", "2019-05-01"), ("death", "2019-05-01")], 1),
        ([("stroke", "2019-05-01"), ("stroke", "2018-05-01")], "prevalent"),
        ([("stroke", "2021-05-01"), ("stroke", "2019-05-01")], 1),
        # Known to have died later, but out of sight before.
        ([("last_follow_up", "2019-09-01"), ("death", "2022-01-01")], "too_short_follow_up"),
        ([("last_follow_up", "2019-09-01"), ("death", "2019-12-01")], "too_short_follow_up"),
        # Without a follow-up the last record ends it.
        ([("fracture", "2020-03-04")], 0),
        ([("fracture", "2020-03-03")], "too_short_follow_up"),
        ([], "too_short_follow_up"),
    ],
)
def test_boundaries_of_one_year(registry, build, rows, expected):
    assert fate(registry, build, rows) == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [([("stroke", "2021-02-28")], 1), ([("stroke", "2021-03-01")], 0), ([("last_follow_up", "2021-02-28")], 0),
     ([("last_follow_up", "2021-02-27")], "too_short_follow_up")],
)  # fmt: skip
def test_a_year_from_the_29th_of_february(registry, build, rows, expected):
    assert fate(registry, build, rows, day=date(2020, 2, 29)) == expected


def test_days_are_not_years(registry, build):
    rows = [("stroke", "2020-03-04")]  # 366 days later, over a 29th of February
    assert [fate(registry, build, rows, horizon=horizon) for horizon in ("1y", "366d", "365d")] == [1, 1, 0]


def test_death_as_the_event(registry, build):
    rows = [("death", "2019-09-01")]
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": ["a", "b"], "date": ["2019-03-04"] * 2})
    events = pd.DataFrame([("a", *rows[0]), ("b", "last_follow_up", "2021-01-01")],
                          columns=["patient_id", "event", "date"])  # fmt: skip
    assert build(registry(images, events), event="death").table["label"].tolist() == [1, 0]


def test_the_day_on_which_the_data_were_closed(registry, build):
    images = pd.DataFrame({"image": list("abcd"), "patient_id": list("abcd"), "date": ["2019-03-04"] * 4})
    rows = [("a", "stroke", "2019-09-01"), ("b", "stroke", "2019-11-01"), ("c", "last_follow_up", "2019-04-01")]
    events = pd.DataFrame(rows, columns=["patient_id", "event", "date"])
    cohort = build(registry(images, events, follow_up_end="2019-10-01"), horizon="6m")
    # The stroke of b was not seen before the data were closed, and d was followed like everybody.
    assert dict(zip(cohort.table["patient_id"], cohort.table["label"], strict=True)) == {"a": 1, "b": 0, "d": 0}
    cohort = build(registry(images, events, follow_up_end="2020-10-01"), horizon="1y")
    assert dict(zip(cohort.table["patient_id"], cohort.table["label"], strict=True)) == {"a": 1, "b": 1, "d": 0}


def eye_registry(registry, rows, ends="2025-01-01"):
    """Patients p, q, r with an image of each eye on the index day; `rows` are events."""
    images = pd.DataFrame(
        [(f"{p}{eye}.png", p, eye, str(INDEX)) for p in "pqr" for eye in "RL"],
        columns=["image", "patient_id", "eye", "date"],
    )
    events = [*rows, *[(p, None, "last_follow_up", ends) for p in "pqr"]]
    return registry(images, pd.DataFrame(events, columns=["patient_id", "eye", "event", "date"]))


EYE_ROWS = [
    ("p", "OD", "wet AMD", "2019-01-01"),  # right affected before, left converts in time
    ("p", "OS", "wet AMD", "2020-01-01"),
    ("q", "left", "wet AMD", "2019-03-04"),  # left affected on the day, right never
    ("r", "R", "wet AMD", "2019-09-01"),  # right converts, left never, none affected on the day
]


def labels(cohort):
    return {f"{row.patient_id}{row.eye}": row.label for row in cohort.table.itertuples()}


def test_events_of_eyes(registry, build):
    found = eye_registry(registry, EYE_ROWS)
    assert labels(build(found, "wet AMD")) == {"pL": 1, "qR": 0, "rR": 1, "rL": 0}
    assert labels(build(found, "wet AMD", unit="fellow_eye")) == {"pL": 1, "qR": 0}


def test_events_that_bar(registry, build):
    rows = [(patient, "stroke", "2019-09-01") for patient in "abc"]
    rows += [("b", "dementia", "2019-03-04"), ("c", "dementia", "2019-03-05"), ("d", "last_follow_up", "2021-01-01")]
    images = pd.DataFrame({"image": list("abcd"), "patient_id": list("abcd"), "date": ["2019-03-04"] * 4})
    events = pd.DataFrame(rows, columns=["patient_id", "event", "date"])
    cohort = build(registry(images, events), exclude_prior=("dementia",))
    assert cohort.table["patient_id"].tolist() == ["a", "c", "d"]


def test_one_image_of_each_eye_and_visit(registry, build):
    rows = [("z2.png", "p", "R", "2019-03-04", 1), ("z1.png", "p", "R", "2019-03-04", 3),
            ("y1.png", "p", "R", "2019-04-04", 2), ("z3.png", "p", "L", "2019-03-04", None),
            ("q.png", "q", "L", "2019-03-04", 1)]  # fmt: skip
    images = pd.DataFrame(rows, columns=["image", "patient_id", "eye", "date", "quality"])
    events = pd.DataFrame([("q", "stroke", "2019-09-01"), ("p", "last_follow_up", "2021-01-01")],
                          columns=["patient_id", "event", "date"])  # fmt: skip
    found = registry(images, events)

    def chosen(**options):
        return [path.split("/")[-1] for path in build(found, **options).table["image"] if "q.png" not in path]

    assert chosen() == ["z3.png", "z1.png"]
    assert chosen(visits="all") == ["z3.png", "z1.png", "y1.png"]
    assert chosen(images="all") == ["z3.png", "z1.png", "z2.png"]
    images["quality"] = [4, 3, 2, None, 1]
    found = registry(images, events)
    assert chosen(quality_column="quality") == ["z3.png", "z2.png"]
    with pytest.raises(BadArgumentError) as error:
        chosen(quality_column="sharpness")
    assert (error.value.field, error.value.value) == ("quality_column", "sharpness")


def random_registry(seed, patients=90):
    """Images and events with many ties, gaps and orders of events; every patient has birth date and sex."""
    rng = np.random.default_rng(seed)
    images, events, people = [], [], []
    for number in range(patients):
        name = f"p{number:03d}"
        first = date(2015, 1, 1) + timedelta(days=int(rng.integers(900)))
        born = first - timedelta(days=int(rng.integers(40 * 365, 80 * 365)))
        people.append({"patient_id": name, "birth_date": born, "sex": "FM"[rng.integers(2)]})
        end = first + timedelta(days=int(rng.integers(0, 2500)))
        for eye in "RL":
            if rng.random() < 0.75:
                day = first + timedelta(days=int(rng.integers(-400, 900)))
                if day <= end:
                    events.append((name, eye, "wet AMD", day))
        day = first + timedelta(days=int(rng.integers(-800, 2500)))
        if day <= end and rng.random() < 0.7:
            events.append((name, None, "stroke", day))
        if rng.random() < 0.9:
            events.append((name, None, "death" if rng.random() < 0.3 else "last_follow_up", end))
        for visit in range(int(rng.integers(1, 4))):
            day = min(first + timedelta(days=visit * int(rng.integers(1, 500))), end)
            for eye in "RL"[: int(rng.integers(1, 3))]:
                for repeat in range(int(rng.integers(1, 3))):
                    images.append((f"{name}{eye}{visit}{repeat}.png", name, eye, day))
    return (
        pd.DataFrame(images, columns=["image", "patient_id", "eye", "date"]),
        pd.DataFrame(events, columns=["patient_id", "eye", "event", "date"]).drop_duplicates(),
        pd.DataFrame(people),
    )


def slow(images, events, event, days, unit):
    """Label, or reason for exclusion, of every image, by loops over plain dates (first visits, one image each)."""
    ends = {}
    for name in set(images["patient_id"]):
        own = events[events["patient_id"] == name]
        given = own.loc[own["event"].isin(("death", "last_follow_up")), "date"].tolist()
        records = own["date"].tolist() + images.loc[images["patient_id"] == name, "date"].tolist()
        ends[name] = given[0] if given else max(records)
    histories = {name: list(own.itertuples()) for name, own in events.groupby("patient_id")}
    dead = set(events.loc[events["event"] == "death", "patient_id"])

    def first(name, eye):
        found = [
            row.date for row in histories.get(name, []) if row.event == event and (unit == "patient" or row.eye == eye)
        ]
        return min(found) if found else None

    fates, at_risk = {}, []
    for row in images.itertuples():
        own, fellow = first(row.patient_id, row.eye), first(row.patient_id, "L" if row.eye == "R" else "R")
        if own is not None and own <= row.date:
            fates[row.image] = "prevalent"
        elif unit == "fellow_eye" and (fellow is None or fellow > row.date):
            fates[row.image] = "fellow_eye_healthy"
        else:
            at_risk.append(row)
    for row in at_risk:
        mine = [other for other in at_risk if other.patient_id == row.patient_id
                and (unit == "patient" or other.eye == row.eye)]  # fmt: skip
        same = [other.image for other in mine if other.date == row.date and other.eye == row.eye]
        own, last = first(row.patient_id, row.eye), row.date + timedelta(days=days)
        if row.date != min(other.date for other in mine):
            fates[row.image] = "other_visits"
        elif row.image != min(same):
            fates[row.image] = "further_images"
        elif last > max(ends.values()):
            fates[row.image] = "horizon_not_over"
        elif own is not None and own <= last:
            fates[row.image] = 1
        elif ends[row.patient_id] >= last:
            fates[row.image] = 0
        else:
            fates[row.image] = "died" if row.patient_id in dead else "too_short_follow_up"
    return fates


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(2, 6))])
@pytest.mark.parametrize(("event", "unit"), [("stroke", "patient"), ("wet AMD", "eye"), ("wet AMD", "fellow_eye"),
                                             ("wet AMD", "patient")])  # fmt: skip
def test_equal_to_a_slow_implementation(registry, build, seed, event, unit):
    images, events, people = random_registry(seed)
    expected = slow(images, events, event, 400, unit)
    cohort = build(registry(images, events, people), event, "400d", unit)
    names = [path.split("/")[-1] for path in cohort.table["image"]]
    found = dict(zip(names, cohort.table["label"], strict=True))
    assert found == {name: fate for name, fate in expected.items() if fate in (0, 1)}
    reasons = pd.Series(list(expected.values()), dtype=object).value_counts()
    for stage in cohort.flow.stages:
        for part in stage.excluded:
            assert part.counts["images"] == reasons.get(part.name, 0), part.name


@pytest.mark.parametrize("seed", range(3))
def test_counts_add_up(registry, build, seed):
    rng = np.random.default_rng(seed)
    event, unit = [("stroke", "patient"), ("wet AMD", "eye"), ("wet AMD", "fellow_eye")][rng.integers(3)]
    options = {"visits": ["first", "random", "all"][rng.integers(3)], "images": ["one", "all"][rng.integers(2)]}
    if rng.random() < 0.6:
        options["matching"] = Matching(int(rng.integers(1, 4)), float(rng.integers(1, 9)))
    cohort = build(
        registry(*random_registry(seed, patients=400)), event, "1y", unit, split_fractions=PAPER_FRACTIONS, **options
    )
    flow = cohort.flow.as_dict()
    for counted in ("patients", "eyes", "images"):
        left = flow["stages"][0][counted]
        for stage in flow["stages"]:
            left -= sum(part[counted] for part in stage["excluded"])
            assert stage[counted] == left
        assert left == sum(split[counted] for split in flow["splits"].values())
    table = cohort.table
    assert flow["stages"][-1]["images"] == len(table) == sum(part["images"] for part in flow["labels"].values())
    assert flow["stages"][-1]["patients"] == table["patient_id"].nunique()
    assert flow["stages"][-1]["eyes"] == len(table[["patient_id", "eye"]].drop_duplicates())
    assert (table.groupby("patient_id")["split"].nunique() == 1).all()
    shares = table.drop_duplicates("patient_id")["split"].value_counts(normalize=True)
    assert shares[["train", "val", "test"]].tolist() == pytest.approx([0.55, 0.15, 0.30], abs=0.06)


@pytest.mark.parametrize("options", [{}, {"visits": "random"}, {"matching": Matching(2, 5.0)}, {"visits": "all"}])
def test_the_order_of_rows_does_not_matter(registry, build, options):
    images, events, people = random_registry(3)
    options = options | {"split_fractions": PAPER_FRACTIONS}
    expected = build(registry(images, events, people), **options)
    mixed = [table.sample(frac=1, random_state=7) for table in (images, events, people)]
    found = build(registry(*mixed), **options)
    pd.testing.assert_frame_equal(found.table, expected.table)
    assert found.flow.as_dict() == expected.flow.as_dict()


def test_seeds_change_random_choices_only(registry, build):
    found = registry(*random_registry(4))
    first, second = (build(found, visits="random", seed=seed).table for seed in (0, 1))
    assert first["image"].tolist() != second["image"].tolist()
    first, second = (build(found, seed=seed, split_fractions=PAPER_FRACTIONS).table for seed in (0, 1))
    pd.testing.assert_frame_equal(first.drop(columns="split"), second.drop(columns="split"))
    assert (first["split"] != second["split"]).any()


def test_random_visits_are_drawn_evenly(registry, build):
    rows = [(f"{p}-{visit}.png", f"p{p}", f"2019-0{visit}-01") for p in range(600) for visit in (1, 2, 3)]
    images = pd.DataFrame(rows, columns=["image", "patient_id", "date"])
    events = pd.DataFrame([(f"p{p}", "stroke" if p % 2 else "last_follow_up", "2019-12-01" if p % 2 else "2024-01-01")
                           for p in range(600)], columns=["patient_id", "event", "date"])  # fmt: skip
    months = build(registry(images, events), visits="random").table["date"].dt.month.value_counts()
    assert months.between(160, 240).all() and months.sum() == 600


def test_ages_and_days_in_the_table(registry, build):
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": ["a", "b"], "date": ["2019-03-04"] * 2})
    images = images.assign(label=["cloudy", "clear"], split=["train", "test"], camera=["X", "Y"])
    events = pd.DataFrame([("a", "stroke", "2019-03-14"), ("b", "last_follow_up", "2020-03-04")],
                          columns=["patient_id", "event", "date"])  # fmt: skip
    people = pd.DataFrame({"patient_id": ["a", "b"], "birth_date": ["1959-03-04", "1949-09-03"], "sex": ["F", "M"]})
    table = build(registry(images, events, people)).table
    assert list(table.columns) == [
        "image", "label", "patient_id", "eye", "date", "split", "age", "sex", "image_label", "image_split", "camera",
        "event_date", "days_to_event", "days_of_follow_up",
    ]  # fmt: skip
    assert table["age"].tolist() == [60.0, 69.5] and table["sex"].tolist() == ["F", "M"]
    assert table["days_to_event"].tolist() == [10, pd.NA] and table["days_of_follow_up"].tolist() == [10, 366]
    assert table["image_label"].tolist() == ["cloudy", "clear"]


def test_a_cohort_of_one_class_is_refused_with_its_exclusions(registry, build):
    images = pd.DataFrame({"image": list("abc"), "patient_id": list("abc"), "date": ["2019-03-04"] * 3})
    rows = [("a", "stroke", "2019-06-01"), ("b", "stroke", "2018-06-01"), ("b", "fracture", "2021-01-01")]
    events = pd.DataFrame(rows, columns=["patient_id", "event", "date"])
    with pytest.raises(BadDataError, match=r"no image without stroke is left of 3; excluded: 1 stroke .*, 1 followed"):
        build(registry(images, events))
    with pytest.raises(BadDataError, match=r"no image is left of 3; excluded: .*, 2 1 year not over on 2019-06-01"):
        build(registry(images, events[:2]))


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


def constant_hazard(patients, seed, loss=0.0):
    """One image of each patient on any day of 2015 to 2019, and nothing but a hazard of 0.15 a year and leaving."""
    rng = np.random.default_rng(seed)
    days = pd.Timestamp("2015-01-01") + pd.to_timedelta(rng.integers(5 * 365, size=patients), "D")
    events = days + pd.to_timedelta(1 + (365 * rng.exponential(1 / 0.15, patients)).astype(int), "D")
    names = [f"p{number}" for number in range(patients)]
    images = pd.DataFrame({"image": names, "patient_id": names, "date": days.strftime("%Y-%m-%d")})
    happened = images.assign(event="stroke", date=events.strftime("%Y-%m-%d"))
    if loss:
        left = days + pd.to_timedelta(1 + (365 * rng.exponential(1 / loss, patients)).astype(int), "D")
        happened = happened[events <= left]
        ends = images.assign(event="last_follow_up", date=left.strftime("%Y-%m-%d"))
        happened = pd.concat([happened, ends])
    return images, happened.drop(columns="image")


@pytest.mark.parametrize("given", [True, False])
def test_the_calendar_tells_nothing_of_labels_at_a_constant_hazard(registry, build, given):
    """Images whose horizon is not over on the closing day are out, be it an option or the last follow-up of all."""
    images, events = constant_hazard(3000, 0)
    options = {"follow_up_end": "2019-12-31"}
    if not given:
        ends = images.drop(columns="image").assign(event="last_follow_up", date="2019-12-31")
        events, options = pd.concat([events[events["date"] <= "2019-12-31"], ends]), {}
    cohort = build(registry(images, events, **options))
    checks, late = cohort.checks, cohort.table["date"] > "2018-12-31"
    assert not late.any() and checks["date_auroc"].low <= 0.5 <= checks["date_auroc"].high
    assert checks["risk"].low <= 1 - np.exp(-0.15) <= checks["risk"].high
    assert checks["risk"].value == cohort.table["label"].mean() == pytest.approx(checks["kaplan_meier_risk"].value)


def test_patients_who_leave_raise_the_cohorts_risk_above_kaplan_meiers(registry, build):
    from statsmodels.duration.survfunc import SurvfuncRight

    images, events = constant_hazard(3000, 1, loss=0.5)
    checks = build(registry(images, events)).checks
    true = 1 - np.exp(-0.15)
    assert checks["risk"].low > true and checks["kaplan_meier_risk"].value == pytest.approx(true, abs=0.02)
    wide = events.pivot(index="patient_id", columns="event", values="date").apply(pd.to_datetime)
    first = pd.to_datetime(images.set_index("patient_id")["date"])
    days = (wide.min(axis=1) - first).dt.days
    expected = SurvfuncRight(days.clip(upper=365), (wide["stroke"].notna() & (days <= 365)).astype(int))
    assert checks["kaplan_meier_risk"].value == pytest.approx(1 - expected.surv_prob[-1], abs=0.002)
