import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from retfound_hf.data.cohort import Question, build_cohort
from retfound_hf.data.dates import Horizon
from retfound_hf.data.registry import read_registry
from retfound_hf.data.synthetic_sets import (
    EYE_EVENT,
    SIGNS,
    Plan,
    draw_registry,
    fade,
    make_registry_command,
)
from retfound_hf.errors import RetFoundError


@pytest.fixture(scope="module", params=["cfp", "oct"])
def made(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("made") / "registry"
    make_registry_command([str(folder), "--modality", request.param, "--num_patients", "12", "--image_size", "64"])
    return request.param, folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")
            if path.name != "run.json"}  # fmt: skip


def cohort_of(registry, folder, event, unit, **options):
    """The three-year cohort, without splits, joined with the truth of each eye."""
    for name in ("images", "events"):
        getattr(registry, name).to_csv(folder / f"{name}.csv", index=False)
    found = read_registry(folder / "images.csv", folder / "events.csv")
    question = Question((event,), Horizon.parse("3y"), unit)
    table = build_cohort(found, question, split_fractions=(1, 0, 0), **options).table
    return table.merge(registry.truth, on=["patient_id", "eye"])


def test_tables_of_a_registry(made):
    modality, folder = made
    images, events, truth = (pd.read_csv(folder / f"{name}.csv") for name in ("images", "events", "truth"))
    assert list(images.columns) == [
        "image", "patient_id", "eye", "date", "birth_date", "sex", "camera", "site",
    ]  # fmt: skip
    assert list(events.columns) == ["patient_id", "eye", "event", "date"]
    assert set(events["event"]) <= {EYE_EVENT[SIGNS[modality][0]], "stroke", "last_follow_up", "death"}
    assert events["eye"].notna().eq(events["event"] == EYE_EVENT[SIGNS[modality][0]]).all()
    ends = events[events["event"].isin(["last_follow_up", "death"])]
    assert ends["patient_id"].value_counts().eq(1).all() and set(ends["patient_id"]) == set(images["patient_id"])
    assert len(truth) == 24 and (images.groupby("patient_id")["eye"].nunique() == 2).all()
    assert all((folder / name).is_file() for name in images["image"])
    assert len(list((folder / "images").iterdir())) == len(images)
    image = Image.open(folder / images["image"][0])
    assert image.height == 64 and image.mode == ("RGB" if modality == "cfp" else "L")
    assert json.loads((folder / "run.json").read_text())["command"] == "make_registry"


def test_same_seed_same_bytes(made, tmp_path):
    modality, folder = made
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
    own = registry.events[registry.events["event"] == EYE_EVENT[SIGNS[modality][0]]]
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


def test_fading_takes_contrast_and_leaves_brightness():
    rng = np.random.default_rng(0)
    stripes = np.repeat(np.tile([60, 180], 32)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.uint8)
    faded = fade(stripes, 0.25, rng).astype(float)
    columns = faded.mean(axis=(0, 2))
    assert faded.mean() == pytest.approx(120, abs=1)
    assert columns[1::2].mean() - columns[::2].mean() == pytest.approx(30, abs=1.5)
    assert faded[:, ::2].std() == pytest.approx(9, rel=0.15)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--event_rate", "1"], "event_rate 1.0 is out of range"),
        (["--num_patients", "0"], "num_patients 0 is too small"),
        (["--sign", "dme"], "sign 'dme' does not show on cfp; choose retinopathy or glaucoma"),
        (["--num_visits", "0"], "num_visits 0 is too small"),
        (["--poor_camera_contrast", "0"], "--poor_camera_contrast 0.0 is not above 0"),
        (["--image_size", "10"], "image_size 10 is too small"),
    ],
)
def test_bad_requests_leave_nothing(tmp_path, words, reason):
    with pytest.raises(RetFoundError, match=reason):
        make_registry_command([str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()
