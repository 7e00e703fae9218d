"""Several findings at once, and numbers, through fine-tuning and evaluation."""

import json

import numpy as np
import pandas as pd
import pytest

from retfound_hf import RetFoundForImageClassification
from retfound_hf.inference.evaluate import main as evaluate_main


def evaluated(folder, data, out, *words) -> dict:
    evaluate_main(
        ["--model_name_or_path", str(folder), "--data", str(data), "--output_dir", str(out),
         "--dataloader_num_workers", "0", "--cache_dir", str(out.parent / "cache"), *words]
    )  # fmt: skip
    return json.loads((out / "metrics.json").read_text())


def test_several_findings(run, table_set, tmp_path):
    done = run(data=str(table_set), label_columns=["red", "bright"], num_train_epochs=6, learning_rate=5e-3)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "red", "1": "bright"}
    assert done.metrics["auroc"] > 0.9
    assert {"auroc/red", "auroc/bright", "auprc/red"} <= set(done.metrics)
    table = done.predictions
    assert list(table.columns) == ["id", "label", "prediction", "prob/red", "prob/bright", "patient_id"]
    source = pd.read_csv(table_set).set_index("image")
    for row in table.to_dict("records"):
        expected = [name for name in ("red", "bright") if source.loc[row["id"], name] == 1]
        assert (row["label"] if isinstance(row["label"], str) else "") == "|".join(expected)
        predicted = [name for name in ("red", "bright") if row[f"prob/{name}"] >= 0.5]
        assert (row["prediction"] if isinstance(row["prediction"], str) else "") == "|".join(predicted)
    assert evaluated(done.folder, table_set, tmp_path / "evaluation") == done.metrics
    assert (tmp_path / "evaluation" / "predictions.csv").read_bytes() == (done.folder / "predictions.csv").read_bytes()


def test_numbers(run, table_set, tmp_path):
    done = run(
        data=str(table_set), label_columns=["level"], problem_type="regression", num_train_epochs=20,
        learning_rate=5e-3, layer_decay=0.9,
    )  # fmt: skip
    assert {"mae", "mse", "rmse", "r2", "pearson", "spearman", "loss"} == set(done.metrics)
    table = done.predictions
    assert list(table.columns) == ["id", "label", "prediction", "patient_id"]
    source = pd.read_csv(table_set).set_index("image")["level"]
    assert table["label"].to_numpy() == pytest.approx(source[table["id"]].to_numpy(), rel=1e-5)
    assert done.metrics["mae"] == pytest.approx(np.abs(table["label"] - table["prediction"]).mean(), rel=1e-4)
    trained = source[~source.index.isin(table["id"])].mean()
    assert done.metrics["mae"] < 0.7 * np.abs(table["label"] - trained).mean()
    assert done.metrics["r2"] > 0.4
    assert evaluated(done.folder, table_set, tmp_path / "evaluation", "--label_columns", "level") == done.metrics
    assert list((done.folder / "plots").glob("*.png"))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_unit_of_a_number_changes_nothing(run, table_set, tmp_path, method):
    source = pd.read_csv(table_set)
    units = {"level": (1, 0), "small": (1e-3, 0), "large": (1000, 5e5)}
    for name, (factor, offset) in units.items():
        source[name] = factor * source["level"] + offset
    source["image"] = [str(table_set.parent / image) for image in source["image"]]
    source.to_csv(tmp_path / "units.csv", index=False)
    found = {}
    for name, (factor, offset) in units.items():
        done = run(
            data=str(tmp_path / "units.csv"), label_columns=[name], problem_type="regression", method=method,
            num_train_epochs=3, learning_rate=3e-3, output_dir=str(tmp_path / name),
        )  # fmt: skip
        found[name] = done, (done.predictions["prediction"] - offset) / factor, done.history
    _, plain, history = found["level"]
    assert plain.std() > 0.1  # the head has moved
    for done, back, other in (found["small"], found["large"]):
        assert back.to_numpy() == pytest.approx(plain.to_numpy(), abs=0.02)
        losses = [[entry["loss"] for entry in log if "loss" in entry] for log in (history, other)]
        assert losses[1] == pytest.approx(losses[0], rel=1e-3)
        assert done.metrics["r2"] == pytest.approx(found["level"][0].metrics["r2"], abs=0.01)


def test_a_trained_regression_goes_on_from_what_it_knows(run, job, table_set, tmp_path):
    data = {"data": str(table_set), "label_columns": ["level"], "problem_type": "regression"}
    first = run(**data, num_train_epochs=20, learning_rate=5e-3, layer_decay=0.9)
    model = job(**data, model_name_or_path=str(first.folder)).classifier.model
    known = RetFoundForImageClassification.from_pretrained(first.folder)
    assert model.classifier.bias.item() == known.classifier.bias.item()
    again = run(
        **data, model_name_or_path=str(first.folder), num_train_epochs=1, learning_rate=1e-8,
        output_dir=str(tmp_path / "again"),
    )  # fmt: skip
    assert again.metrics["mae"] == pytest.approx(first.metrics["mae"], rel=1e-3)


def test_several_numbers(run, table_set):
    done = run(
        data=str(table_set), label_columns=["level", "bright"], problem_type="regression", method="linear",
    )  # fmt: skip
    assert {"mae/level", "mae/bright", "mae"} <= set(done.metrics)
    assert {"label/level", "prediction/level", "label/bright", "prediction/bright"} <= set(done.predictions.columns)


def test_patients_of_a_table_are_never_split(run, table_set):
    done = run(data=str(table_set), label_columns=["red"], method="linear")
    validation = pd.read_csv(done.folder / "validation" / "predictions.csv")
    assert not set(done.predictions["patient_id"]) & set(validation["patient_id"])
    both_eyes = done.predictions.groupby("patient_id").size()
    assert (both_eyes == 2).all()
