"""Synthetic labelled sets and registries: files on disk, determined by the seed, with the planted effects."""

import json
from datetime import date

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from retfound_hf.data import synthetic_sets
from retfound_hf.data.cohort import Horizon, Question, build_cohort
from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.registry import read_registry
from retfound_hf.data.synthetic_sets import Plan, draw_registry, main, make_registry_command, make_synthetic
from retfound_hf.errors import BadArgumentError, RetFoundError
from retfound_hf.images.synthetic import CLASSES


@pytest.fixture(scope="module", params=["cfp", "oct"])
def made(request, tmp_path_factory):
    folder = make_synthetic(tmp_path_factory.mktemp("made") / "set", request.param, num_patients=24, image_size=64)
    return request.param, folder


def contents(folder):
    files = [path for path in folder.rglob("*.*") if path.name != "run.json"]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_folder_is_a_labelled_set_with_every_class_in_every_split(made):
    modality, folder = made
    found = read_labelled(str(folder))
    assert set(found.class_names) == set(CLASSES[modality])
    assert found.patients_known
    assert (found.counts() > 0).all(axis=None)
    patients = found.table.groupby("split")["patient_id"].nunique()
    assert patients[["train", "val", "test"]].tolist() == pytest.approx([13.2, 3.6, 7.2], abs=1.5)
    paths = list(folder.rglob("*.jpg" if modality == "cfp" else "*.png"))
    image = Image.open(paths[0])
    assert len(paths) == len(found.table) and image.height == 64
    assert image.mode == ("RGB" if modality == "cfp" else "L")


def test_metadata_describe_patients_eyes_and_photographs(made):
    modality, folder = made
    table = pd.read_csv(folder / "metadata.csv")
    assert list(table.columns) == ["image", "label", "patient_id", "eye", "split", "age", "sex", "camera", "severity"]
    assert (table["image"].str.split("/").str[:2].str.join("/") == table["split"] + "/" + table["label"]).all()
    by_patient = table.groupby("patient_id")
    assert (by_patient["eye"].nunique() == 2).all()
    assert (by_patient[["age", "sex", "camera"]].nunique() == 1).all(axis=None)
    assert table.groupby(["patient_id", "eye"]).size().isin([1, 2]).all()
    assert ((table["severity"] == 0) | (table["label"] != CLASSES[modality][0])).all()
    assert table.loc[table["label"] != CLASSES[modality][0], "severity"].between(0, 1).all()
    # Some patients have one healthy eye, so that the eye and not the person must be judged.
    assert (by_patient["label"].nunique() == 2).any()


def test_same_seed_same_bytes_and_another_seed_another_set(made, tmp_path):
    modality, folder = made
    again = contents(make_synthetic(tmp_path / "again", modality, num_patients=24, image_size=64))
    assert again == contents(folder)
    other = contents(make_synthetic(tmp_path / "other", modality, num_patients=13, image_size=64, seed=1))
    assert not set(other.values()) & set(again.values())


def test_a_patient_looks_the_same_in_a_larger_set(tmp_path):
    small = contents(make_synthetic(tmp_path / "small", num_patients=13, image_size=64))
    large = contents(make_synthetic(tmp_path / "large", num_patients=20, image_size=64))
    images = {name.split("/", 1)[1]: value for name, value in large.items() if name.endswith(".jpg")}
    assert all(images[name.split("/", 1)[1]] == value for name, value in small.items() if name.endswith(".jpg"))


def test_stage_and_camera_change_the_photographs_and_not_the_patients(tmp_path):
    usual = contents(make_synthetic(tmp_path / "usual", num_patients=13, image_size=64))
    main([
        str(tmp_path / "other"), "--num_patients", "13", "--image_size", "64", "--stage", "advanced",
        "--camera", "handheld",
    ])  # fmt: skip
    record = json.loads((tmp_path / "other/run.json").read_text())
    assert record["command"] == "make_synthetic" and record["arguments"]["camera"] == "handheld"
    other = contents(tmp_path / "other")
    assert usual.keys() == other.keys() and usual["metadata.csv"] == other["metadata.csv"]
    assert not any(usual[name] == other[name] for name in usual if name.endswith(".jpg"))


def patients_by_label(num_patients, seed=0):
    """Number of patients with photographs of each label, and shares of photographs."""
    rows = [
        row
        for number in range(num_patients)
        for _, row in synthetic_sets._photographs(number, np.random.default_rng([seed, number]), "cfp", seed)
    ]
    table = pd.DataFrame(rows)
    return table.groupby("label")["patient_id"].nunique(), table["label"].value_counts(normalize=True)


@pytest.mark.parametrize("seed", range(40))
def test_smallest_set_has_three_patients_of_every_class(seed):
    patients, _ = patients_by_label(13, seed)
    assert len(patients) == 3 and patients.min() >= 3


def test_prevalence_of_a_large_set():
    _, shares = patients_by_label(600)
    assert shares[list(CLASSES["cfp"])].tolist() == pytest.approx([0.45, 0.30, 0.25], abs=0.03)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.data.synthetic_sets.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_synthetic(tmp_path / "set", num_patients=13)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "field, options",
    [("modality", {"modality": "mri"}), ("num_patients", {"num_patients": 5}),
     ("stage", {"modality": "oct", "stage": "advanced"})],
)  # fmt: skip
def test_bad_requests(tmp_path, field, options):
    with pytest.raises(BadArgumentError) as error:
        make_synthetic(tmp_path / "set", **options)
    assert (error.value.field, error.value.value) == (field, options[field])


def test_a_folder_that_is_in_use_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(RetFoundError):
        make_synthetic(tmp_path, num_patients=13)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


@pytest.fixture(scope="module", params=["cfp", "oct"])
def registry_made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "registry"
    make_registry_command([str(folder), "--modality", request.param, "--num_patients", "12", "--image_size", "64"])
    return request.param, folder


def cohort_of(registry, folder, event, unit, **options):
    """The three-year cohort, without splits, joined with the truth of each eye."""
    for name in ("images", "events"):
        getattr(registry, name).to_csv(folder / f"{name}.csv", index=False)
    found = read_registry(folder / "images.csv", folder / "events.csv")
    question = Question((event,), Horizon.parse("3y"), unit)
    table = build_cohort(found, question, split_fractions=(1, 0, 0), **options).table
    return table.merge(registry.truth, on=["patient_id", "eye"])


def test_tables_of_a_registry(registry_made):
    modality, folder = registry_made
    images, events, truth = (pd.read_csv(folder / f"{name}.csv") for name in ("images", "events", "truth"))
    assert list(images.columns) == [
        "image", "patient_id", "eye", "date", "birth_date", "sex", "camera", "site",
    ]  # fmt: skip
    assert list(events.columns) == ["patient_id", "eye", "event", "date"]
    assert set(events["event"]) <= {
        synthetic_sets.EYE_EVENT[synthetic_sets.SIGNS[modality][0]], "stroke", "last_follow_up", "death",
    }  # fmt: skip
    assert (
        events["eye"].notna().eq(events["event"] == synthetic_sets.EYE_EVENT[synthetic_sets.SIGNS[modality][0]]).all()
    )
    ends = events[events["event"].isin(["last_follow_up", "death"])]
    assert ends["patient_id"].value_counts().eq(1).all() and set(ends["patient_id"]) == set(images["patient_id"])
    assert len(truth) == 24 and (images.groupby("patient_id")["eye"].nunique() == 2).all()
    assert all((folder / name).is_file() for name in images["image"])
    assert len(list((folder / "images").iterdir())) == len(images)
    image = Image.open(folder / images["image"][0])
    assert image.height == 64 and image.mode == ("RGB" if modality == "cfp" else "L")
    assert json.loads((folder / "run.json").read_text())["command"] == "make_registry"


def test_same_seed_same_registry(registry_made, tmp_path):
    modality, folder = registry_made
    make_registry_command(
        [str(tmp_path / "again"), "--modality", modality, "--num_patients", "12", "--image_size", "64"]
    )
    assert contents(tmp_path / "again") == contents(folder)
    make_registry_command(
        [str(tmp_path / "other"), "--modality", modality, "--num_patients", "2", "--image_size", "64", "--seed", "1"]
    )
    assert not set(contents(tmp_path / "other").values()) & set(contents(folder).values())


def test_a_patient_is_the_same_in_a_larger_registry():
    small, large = (draw_registry(number, Plan()) for number in (5, 9))
    for name in ("images", "events", "truth"):
        first = getattr(large, name)
        first = first[first["patient_id"].isin(small.images["patient_id"])]
        pd.testing.assert_frame_equal(getattr(small, name), first, check_dtype=False)


@pytest.mark.parametrize("modality", ["cfp", "oct"])
@pytest.mark.parametrize("effect", [0.0, 2.0])
def test_event_rate(modality, effect):
    registry = draw_registry(2500, Plan(modality, effect=effect, event_rate=0.2, seed=3))
    truth = registry.truth
    assert (1 - np.exp(-3 * truth["eye_hazard"])).mean() == pytest.approx(0.2, abs=0.02)
    assert (1 - np.exp(-3 * truth["patient_hazard"])).mean() == pytest.approx(0.2, abs=0.03)
    # At risk for four years by the third anniversary of the first visit, whatever came in between.
    first = registry.images.groupby("patient_id")["date"].min()
    own = registry.events[registry.events["event"] == synthetic_sets.EYE_EVENT[synthetic_sets.SIGNS[modality][0]]]
    before = (own["date"] <= own["patient_id"].map(first)).sum() / (2 * 2500)
    assert before == pytest.approx((1 - np.exp(-truth["eye_hazard"])).mean(), abs=0.015)


def test_the_planted_effect_is_in_the_cohort(tmp_path):
    registry = draw_registry(600, Plan("oct", "amd", effect=1.5, seed=1))
    for event, unit in (("stroke", "patient"), ("wet AMD", "eye")):
        table = cohort_of(registry, tmp_path, event, unit)
        assert roc_auc_score(table["label"], table["severity"]) > 0.75, event
    none = draw_registry(600, Plan("oct", "amd", effect=0.0, seed=1))
    table = cohort_of(none, tmp_path, "wet AMD", "eye")
    assert roc_auc_score(table["label"], table["severity"]) == pytest.approx(0.5, abs=0.08)
    # Age foretells stroke in either, so that matching has something to do.
    table = cohort_of(none, tmp_path, "stroke", "patient").drop_duplicates("patient_id")
    assert roc_auc_score(table["label"], table["age"]) > 0.55


def test_a_registry_that_is_closed_early_shows_what_open_horizons_do_to_labels(tmp_path):
    """Positives whose horizon is not over tell their date; without them the date tells nothing."""
    registry = draw_registry(900, Plan("oct", effect=0.0, follow_up_end=date(2015, 6, 30), seed=1))
    first = registry.images.drop_duplicates("patient_id").set_index("patient_id")["date"].map(pd.Timestamp)
    stroke = registry.events[registry.events["event"] == "stroke"].set_index("patient_id")["date"].map(pd.Timestamp)
    last = registry.events[registry.events["eye"].isna()].groupby("patient_id")["date"].max().map(pd.Timestamp)
    horizon = first + pd.DateOffset(years=3)
    positive = first.lt(stroke.reindex(first.index)) & stroke.reindex(first.index).le(horizon)
    kept = positive | (last.reindex(first.index) >= horizon)
    assert roc_auc_score(positive[kept], first[kept].astype("int64")) > 0.6
    table = cohort_of(registry, tmp_path, "stroke", "patient").drop_duplicates("patient_id")
    dates = pd.to_datetime(table["date"]).astype("int64")
    assert roc_auc_score(table["label"], dates) == pytest.approx(0.5, abs=0.08)


@pytest.mark.slow
def test_no_effect_is_found_in_five_of_a_hundred(tmp_path):
    small = 0
    for seed in range(400):
        table = cohort_of(draw_registry(100, Plan("oct", effect=0.0, seed=seed)), tmp_path, "stroke", "patient")
        by_patient = table.groupby("patient_id")[["label", "severity"]].mean()
        one, other = (by_patient.loc[by_patient["label"] == label, "severity"] for label in (0, 1))
        small += mannwhitneyu(one, other).pvalue < 0.05
    assert 8 <= small <= 32  # 99.8% of binomial draws at 5%


def test_a_poorer_camera(tmp_path):
    options = ["--modality", "oct", "--num_patients", "12", "--num_visits", "1", "--image_size", "64"]
    make_registry_command([str(tmp_path / "alike"), *options])
    make_registry_command([str(tmp_path / "poor"), *options, "--poor_camera_contrast", "0.3"])
    images = pd.read_csv(tmp_path / "alike/images.csv")
    alike, poor = contents(tmp_path / "alike"), contents(tmp_path / "poor")
    changed = {name for name in alike if alike[name] != poor[name]}
    assert changed == set(images.loc[images["camera"] == "C", "image"]) and changed
    assert changed != set(images["image"])


@pytest.mark.parametrize(
    "field, value",
    [("event_rate", 1), ("num_patients", 0), ("sign", "dme"), ("num_visits", 0), ("poor_camera_contrast", 0),
     ("image_size", 10), ("follow_up_end", "soon")],
)  # fmt: skip
def test_bad_registries_leave_nothing(tmp_path, field, value):
    with pytest.raises(BadArgumentError) as error:
        make_registry_command([str(tmp_path / "out"), f"--{field}", str(value)])
    assert error.value.field == field and error.value.value == value
    assert not (tmp_path / "out").exists()
