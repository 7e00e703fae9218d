"""What `evaluate` reports beside the metrics: intervals, levels, subgroups, stored thresholds."""

import dataclasses
import json
import shutil

import numpy as np
import pandas as pd
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.bootstrap import metric_intervals
from retfound_hf.evaluation.metrics import compute_metrics
from retfound_hf.evaluation.report import ReportArguments, read_points, write_points, write_report
from retfound_hf.evaluation.thresholds import OperatingPoint, measure_threshold
from retfound_hf.inference.evaluate import main
from retfound_hf.options import run_command

SINGLE, CLASSES = "single_label_classification", ("mild", "none", "severe")


@pytest.fixture(scope="module")
def predicted():
    """Rows, targets and scores of 60 patients with two eyes, each with two images of one label."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 4)
    eye = np.tile(list("LLRR"), 60)
    targets = np.repeat(rng.integers(3, size=120), 2)
    logits = rng.normal(size=(240, 3)) + 1.5 * np.eye(3)[targets]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = pd.DataFrame({
        "id": [f"{number}.png" for number in range(240)], "image": "x", "patient_id": [f"p{n}" for n in patient],
        "eye": eye, "age": rng.integers(40, 80, size=60)[patient], "camera": rng.choice(["A", "B"], size=240),
    })  # fmt: skip
    return rows, targets, scores


def written(tmp_path, predicted, **options):
    points = options.pop("points", ())
    metrics = write_report(
        tmp_path, *predicted, SINGLE, CLASSES, plots=False, report=ReportArguments(**options), points=points
    )
    stored = json.loads((tmp_path / "metrics.json").read_text())
    assert stored == metrics
    return stored


def test_by_default_nothing_is_added(tmp_path, predicted):
    metrics = written(tmp_path, predicted)
    assert metrics == compute_metrics(SINGLE, *predicted[1:], CLASSES)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics.json", "predictions.csv"]
    columns = list(pd.read_csv(tmp_path / "predictions.csv").columns)
    assert columns == ["id", "label", "prediction", *(f"prob/{name}" for name in CLASSES), "patient_id", "eye"]


def test_intervals_are_over_patients(tmp_path, predicted):
    rows, targets, scores = predicted
    metrics = written(tmp_path, predicted, confidence_intervals=True, resamples=200)
    expected = metric_intervals(SINGLE, targets, scores, CLASSES, rows["patient_id"], 200)
    for name, estimate in expected.items():
        assert metrics[name] == estimate.value
        if name == "ece":
            assert "ece_ci95" not in metrics
        else:
            assert metrics[f"{name}_ci95"] == [estimate.low, estimate.high]
    table = pd.read_csv(tmp_path / "intervals.csv").set_index("metric")
    assert table.loc["auroc", "n"] == 60 and table.loc["auroc", "low"] == pytest.approx(expected["auroc"].low)
    calibration = pd.read_csv(tmp_path / "calibration.csv")
    assert list(calibration["class"]) == [*CLASSES, "all"]
    assert calibration["ece"].iloc[-1] == pytest.approx(metrics["ece"])
    inside = calibration[:-1]
    assert (inside["slope_low"] < inside["slope"]).all() and (inside["slope"] < inside["slope_high"]).all()


def test_metrics_at_the_level_of_the_eye(tmp_path, predicted):
    _, targets, scores = predicted
    metrics = written(tmp_path, predicted, level="eye")
    assert metrics == compute_metrics(SINGLE, targets[::2], (scores[::2] + scores[1::2]) / 2, CLASSES)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 240
    eyes = pd.read_csv(tmp_path / "predictions_eye.csv")
    assert list(eyes["id"][:3]) == ["p0/L", "p0/R", "p1/L"] and len(eyes) == 120
    highest = written(tmp_path, predicted, level="eye", aggregate="max")
    raised = np.maximum(scores[::2], scores[1::2])
    raised /= raised.sum(axis=1, keepdims=True)
    assert highest["auroc"] == pytest.approx(compute_metrics(SINGLE, targets[::2], raised, CLASSES)["auroc"])


def test_patients_whose_eyes_differ(tmp_path, predicted):
    with pytest.raises(RetFoundError, match="of 60 units have different labels"):
        written(tmp_path, predicted, level="patient")
    written(tmp_path, predicted, level="patient", label_conflicts="max")
    labels = pd.read_csv(tmp_path / "predictions_patient.csv")["label"]
    expected = predicted[1].reshape(60, 4).max(axis=1)
    assert list(labels) == [CLASSES[label] for label in expected]


def test_subgroups(tmp_path, predicted):
    rows, targets, scores = predicted
    written(tmp_path, predicted, subgroup_columns=["age:50,65", "camera"], resamples=200)
    table = pd.read_csv(tmp_path / "subgroups.csv")
    groups = table[table["p_value"].isna()]
    assert list(groups["group"].unique()) == ["<50", "50–<65", "≥65", "A", "B"]
    young = (rows["age"] < 50).to_numpy()
    row = groups[(groups["group"] == "<50") & (groups["metric"] == "auroc")].iloc[0]
    assert row["value"] == pytest.approx(compute_metrics(SINGLE, targets[young], scores[young], CLASSES)["auroc"])
    assert (row["rows"], row["n"]) == (young.sum(), rows["patient_id"][young].nunique())
    gaps = table[table["p_value"].notna()]
    assert set(gaps["column"]) == {"age", "camera"} and gaps["p_value"].between(0, 1).all()
    assert {"age", "camera"} <= set(pd.read_csv(tmp_path / "predictions.csv").columns)
    # At the level of eyes a camera that differs between an eye's images is unknown.
    written(tmp_path, predicted, subgroup_columns=["camera"], level="eye", resamples=200)
    assert "unknown" in set(pd.read_csv(tmp_path / "subgroups.csv")["group"])


def test_thresholds_are_stored_read_and_measured(tmp_path, predicted, caplog):
    rows, targets, scores = predicted
    report, point = ReportArguments(), OperatingPoint("none", "sensitivity", 0.9, 0.4)
    write_points(tmp_path, [point], report, images=50)
    assert read_points(tmp_path, CLASSES, report) == [point]
    assert read_points(tmp_path, CLASSES, ReportArguments(level="eye")) == []
    assert "chosen for the level image" in caplog.text
    (tmp_path / "without").mkdir()
    assert read_points(tmp_path / "without", CLASSES, report) == []
    written(tmp_path, predicted, points=[point])
    (row,) = pd.read_csv(tmp_path / "operating_points.csv").to_dict("records")
    expected = measure_threshold(targets == 1, scores[:, 1], 0.4, rows["patient_id"])
    assert row["sensitivity"] == pytest.approx(expected["sensitivity"].value)
    assert row["npv_low"] == pytest.approx(expected["npv"].low)
    assert row["positives"] + row["negatives"] == 240
    (tmp_path / "operating_points.json").write_text("{}")
    with pytest.raises(RetFoundError, match="is damaged"):
        read_points(tmp_path, CLASSES, report)


def test_the_command(classifier_folder, labelled_table, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(classifier_folder, folder)
    write_points(folder, [OperatingPoint("mild", "youden", None, 0.3)], ReportArguments(), images=15)
    words = [
        "--model_name_or_path", folder, "--data", labelled_table, "--output_dir", out, "--split", "all",
        "--dataloader_num_workers", "0", "--confidence_intervals", "--resamples", "100",
        "--subgroup_columns", "split",
    ]  # fmt: skip
    assert run_command(main, [str(word) for word in words]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"intervals.csv", "calibration.csv", "subgroups.csv", "operating_points.csv"} <= names
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["auroc_ci95"][0] < metrics["auroc"] < metrics["auroc_ci95"][1]
    assert json.loads((out / "run.json").read_text())["arguments"]["confidence_intervals"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subgroup_columns", "patient"], "has no such column; it has label, patient_id, split; did you mean"),
        (["--subgroup_columns", "patient_id"], "its groups are single patients or images"),
        (["--subgroup_columns", "image"], "its groups are single patients or images"),
        (["--subgroup_columns", "split", "id:1,2"], "--subgroup_columns id: its groups are single patients or images"),
        (["--subgroup_columns", "age:old"], "edges of bands are numbers, as in age:50,65"),
        (["--resamples", "10"], "--resamples 10 is too few for a 95% interval"),
        (["--level", "eye"], "--level eye needs eye for every image"),
        (["--level", "patient"], "have different labels; choose a level at which they agree"),
    ],
)
def test_requests_that_cannot_be_met(classifier_folder, labelled_table, tmp_path, capsys, options, message):
    words = ["--model_name_or_path", classifier_folder, "--data", labelled_table, "--output_dir", tmp_path / "out",
             "--dataloader_num_workers", "0", *options]  # fmt: skip
    assert run_command(main, [str(word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("known", [True, False])
def test_a_column_that_tells_who_somebody_is_makes_no_groups(predicted, known):
    rows, _, _ = predicted
    patients = rows["patient_id"]
    number = patients.str[1:].astype(int)
    table = rows.assign(
        name="N. " + number.astype(str), exam=[f"e{row}" for row in range(240)], weight=number + 0.5,
        pair="s" + (number // 2).astype(str), site=np.where(number < 30, "s" + number.astype(str), None),
        patient_id=patients if known else None,
    )  # fmt: skip
    patients = 60 if known else 240
    names = {"exam": patients} | ({"name": 60} if known else {})  # four images each: of one name, and four exams
    for name, alone in names.items():
        with pytest.raises(RetFoundError, match=rf"{name}: {alone} of the {patients} patients of set have a group of"):
            ReportArguments(subgroup_columns=[name]).check_columns(table, "set")
    # Numbers are cut into bands, half of the patients are unknown, and of a pair nobody is alone.
    for text in ("weight", "pair", "site", "camera", "age:50,65", "weight:10"):
        ReportArguments(subgroup_columns=[text]).check_columns(table, "set")
    if known:
        with pytest.raises(RetFoundError, match="weight: 60 of the 60 patients"):
            edges = ",".join(str(edge) for edge in range(1, 60))
            ReportArguments(subgroup_columns=[f"weight:{edges}"]).check_columns(table, "set")


def test_every_option_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(ReportArguments))
