"""Calibration that stays in the weights, and thresholds that validation chooses."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import logit
from transformers import AutoConfig, AutoModelForImageClassification

from retfound_hf.errors import BadArgumentError, RetFoundError
from retfound_hf.evaluation.report import ReportArguments
from retfound_hf.finetuning.arguments import DecisionArguments
from retfound_hf.finetuning.classifier import fold_temperature
from retfound_hf.inference.evaluate import main as evaluate
from retfound_hf.options import run_command

FEW = {"num_train_epochs": 2, "learning_rate": 1e-2}


def log_odds(predictions: pd.DataFrame) -> np.ndarray:
    return np.log(predictions["prob/a"] / predictions["prob/b"]).to_numpy()


@pytest.mark.parametrize("method", ["full", "lora", "linear"])
def test_the_stored_head_holds_the_temperature(run, noise_set, cache_dir, tmp_path, method):
    """Two equal runs, one calibrated: log odds differ by the recorded factor alone, from the stored folder too."""
    options = {"data": str(noise_set), "method": method, **(FEW if method != "linear" else {})}
    plain = run(**options, output_dir=str(tmp_path / "plain"))
    done = run(**options, output_dir=str(tmp_path / "calibrated"), calibrate=True)
    temperature = AutoConfig.from_pretrained(done.folder).calibration_temperature
    assert abs(np.log(temperature)) > 0.05
    assert AutoConfig.from_pretrained(plain.folder).calibration_temperature == 1
    assert log_odds(done.predictions) == pytest.approx(log_odds(plain.predictions) / temperature, rel=1e-3, abs=1e-4)
    assert done.metrics["accuracy"] == plain.metrics["accuracy"]
    assert done.validation_metrics["loss"] < plain.validation_metrics["loss"]
    words = ["--model_name_or_path", done.folder, "--data", noise_set, "--output_dir", tmp_path / "again",
             "--cache_dir", cache_dir, "--dataloader_num_workers", "0"]  # fmt: skip
    assert run_command(evaluate, [str(word) for word in words]) == 0
    again = pd.read_csv(tmp_path / "again" / "predictions.csv")
    assert log_odds(again) == pytest.approx(log_odds(done.predictions), rel=1e-3, abs=1e-4)


def test_folding_divides_logits_and_remembers(finished_run):
    model = AutoModelForImageClassification.from_pretrained(finished_run.folder).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(pixels).logits
        fold_temperature(model, 2.0)
        fold_temperature(model, 1.5)
        assert torch.allclose(model(pixels).logits, before / 3, atol=1e-6)
    assert model.config.calibration_temperature == pytest.approx(3)


def test_training_on_starts_uncalibrated(run, finished_run, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(finished_run.folder)
    fold_temperature(model, 2.0)
    model.save_pretrained(tmp_path / "calibrated")
    done = run(model_name_or_path=str(tmp_path / "calibrated"), method="linear")
    assert AutoConfig.from_pretrained(done.folder).calibration_temperature == 1


def test_thresholds_come_from_validation_images_alone(run, planted, cache_dir, tmp_path):
    done = run(method="full", **FEW, target_sensitivity=0.8)
    stored = json.loads((done.folder / "operating_points.json").read_text())
    assert (stored["chosen_on"], stored["images"], stored["level"]) == ("validation split", 16, "image")
    validation = pd.read_csv(done.folder / "validation" / "predictions.csv")
    assert not (done.folder / "validation" / "operating_points.csv").exists()
    table = pd.read_csv(done.folder / "operating_points.csv")
    assert list(table["criterion"]) == ["sensitivity", "specificity", "youden"] * 2
    for point in stored["points"]:
        truth = validation["label"] == point["label"]
        positive = validation[f"prob/{point['label']}"] >= point["threshold"]
        reached = {"sensitivity": positive[truth].mean(), "specificity": (~positive)[~truth].mean()}
        if point["target"] is not None:
            assert reached[point["criterion"]] >= point["target"]
        row = table[(table["class"] == point["label"]) & (table["criterion"] == point["criterion"])].iloc[0]
        truth = done.predictions["label"] == point["label"]
        positive = done.predictions[f"prob/{point['label']}"] >= point["threshold"]
        assert row["sensitivity"] == pytest.approx(positive[truth].mean())
        assert row["specificity"] == pytest.approx((~positive)[~truth].mean())
    assert {point["target"] for point in stored["points"]} == {0.8, 0.9, None}
    words = ["--model_name_or_path", done.folder, "--data", planted, "--output_dir", tmp_path / "again",
             "--cache_dir", cache_dir, "--dataloader_num_workers", "0"]  # fmt: skip
    assert run_command(evaluate, [str(word) for word in words]) == 0
    again = pd.read_csv(tmp_path / "again" / "operating_points.csv")
    pd.testing.assert_frame_equal(again, table, rtol=1e-5)


def test_a_report_by_patient(run):
    done = run(method="linear", level="patient", confidence_intervals=True, resamples=100)
    assert len(done.predictions) == 24
    patients = pd.read_csv(done.folder / "predictions_patient.csv")
    assert len(patients) == 12
    assert json.loads((done.folder / "operating_points.json").read_text())["level"] == "patient"
    assert "24 images, metrics by patient" in (done.folder / "README.md").read_text()
    assert (done.folder / "validation" / "intervals.csv").is_file()
    assert done.record["arguments"]["level"] == "patient" and done.record["arguments"]["calibrate"] is False


def test_several_labels_share_one_temperature(run, noise_set, tmp_path):
    table = pd.read_csv(noise_set)
    generator = np.random.default_rng(0)
    for name in ("red", "bright"):
        table[name] = generator.integers(2, size=len(table))
    table.drop(columns="label").to_csv(tmp_path / "findings.csv", index=False)
    options = {
        "data": str(tmp_path / "findings.csv"), "image_root": str(noise_set.parent), "method": "linear",
        "label_columns": ["red", "bright"],
    }  # fmt: skip
    plain = run(**options, output_dir=str(tmp_path / "plain"))
    done = run(**options, output_dir=str(tmp_path / "calibrated"), calibrate=True)
    temperature = AutoConfig.from_pretrained(done.folder).calibration_temperature
    columns = ["prob/red", "prob/bright"]
    expected = logit(plain.predictions[columns].to_numpy()) / temperature
    assert logit(done.predictions[columns].to_numpy()) == pytest.approx(expected, rel=1e-3, abs=1e-4)
    assert abs(np.log(temperature)) > 0.05 and (done.folder / "operating_points.csv").is_file()


def test_regression_has_neither(run, table_set):
    numbers = {"data": str(table_set), "label_columns": ["level"], "problem_type": "regression", "method": "linear"}
    with pytest.raises(BadArgumentError) as error:
        run(**numbers, calibrate=True)
    assert error.value.field == "calibrate"
    done = run(**numbers, confidence_intervals=True, resamples=100)
    assert not (done.folder / "operating_points.json").exists()
    assert done.metrics["mae_ci95"][0] < done.metrics["mae"] < done.metrics["mae_ci95"][1]


def test_requests_are_checked_before_training(run, tmp_path):
    with pytest.raises(RetFoundError):
        run(subgroup_columns=["agee"])
    assert not (tmp_path / "out").exists()
    with pytest.raises(BadArgumentError) as error:
        DecisionArguments(target_sensitivity=90.0)
    assert (error.value.field, error.value.value) == ("target_sensitivity", 90.0)
    assert ReportArguments(subgroup_columns=["age:50,65", "sex"]).subgroups == {"age": [50, 65], "sex": None}
