"""Whole runs: they learn, write what they promise, resume, and their folders work anywhere."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import accuracy_score, roc_auc_score
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    TrainerCallback,
    TrainerState,
)
from transformers import pipeline as make_pipeline
from two_processes import run_in_two

import retfound_hf as rf
from retfound_hf import RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.cli import command
from retfound_hf.errors import BadArgumentError, BadModelError, OutputError, RetFoundError
from retfound_hf.evaluation.calibration import LogitScaling
from retfound_hf.evaluation.metrics import METRICS
from retfound_hf.finetuning import finetune as finetuning
from retfound_hf.finetuning.finetune import checkpoint_to_resume, main
from retfound_hf.finetuning.methods import METHODS, build_classifier, fold_scaling
from retfound_hf.inference.evaluate import evaluate
from retfound_hf.inference.predict import load_classifier
from retfound_hf.models.loading import load_encoder
from retfound_hf.options import run_command

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"
CLASSES, COLUMNS = ("amd", "healthy"), ["prob/amd", "prob/healthy"]
QUIET = {"dataloader_num_workers": 0}


def test_it_learns_and_its_metrics_are_those_of_its_predictions(finished_run):
    assert finished_run.metrics["auroc"] > 0.9 and finished_run.validation_metrics["auroc"] > 0.9
    names = {row.name for row in METRICS.values() if "single_label_classification" in row.problem_types}
    per_class = {f"{metric}/{name}" for metric in ("auroc", "auprc", "f1", "precision", "recall") for name in CLASSES}
    assert set(finished_run.stored_metrics) == names | per_class
    assert finished_run.stored_metrics == finished_run.metrics
    table = finished_run.predictions
    assert finished_run.metrics["accuracy"] == pytest.approx(accuracy_score(table["label"], table["prediction"]))
    auroc = roc_auc_score(table["label"] == "healthy", table["prob/healthy"])
    assert finished_run.metrics["auroc"] == pytest.approx(auroc)


def test_predictions_have_a_row_per_image_in_order(finished_run, planted):
    table = finished_run.predictions
    assert list(table.columns) == ["id", "label", "prediction", *COLUMNS, "patient_id", "eye"]
    files = sorted(path.relative_to(planted).as_posix() for path in (planted / "test").rglob("*.png"))
    assert list(table["id"]) == files
    assert list(table["label"]) == [name.split("/")[1] for name in files]
    patients = pd.read_csv(planted / "metadata.csv").set_index("image")["patient_id"]
    assert list(table["patient_id"]) == list(patients[files])
    assert list(table["prediction"]) == [CLASSES[index] for index in table[COLUMNS].to_numpy().argmax(1)]
    validation = pd.read_csv(finished_run.folder / "validation" / "predictions.csv")
    assert len(validation) == 16 and validation["id"].str.startswith("val/").all()


def test_files_of_the_folder(finished_run):
    files = {path.name for path in finished_run.folder.iterdir()}
    assert files == {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json", "predictions.csv",
        "history.json", "run.json", "splits.csv", "operating_points.json", "operating_points.csv", "plots",
        "validation", "counts.csv", "net_benefit.csv", "characteristics.csv", "report.html",
    }  # fmt: skip
    for folder in (finished_run.folder, finished_run.folder / "validation"):
        plots = " ".join(path.stem for path in (folder / "plots").glob("*.png"))
        assert all(name in plots for name in ("roc", "precision_recall", "confusion", "reliability"))
    assert all(min(Image.open(path).size) >= 300 for path in (finished_run.folder / "plots").glob("*.png"))
    assert [entry["step"] for entry in finished_run.history if "loss" in entry] == list(range(1, 19))
    assert [entry["epoch"] for entry in finished_run.history if "eval_auroc" in entry] == [1, 2, 3, 4, 5, 6]


def test_run_record(finished_run, encoder_folder, planted):
    record = finished_run.record
    assert record["command"] == "finetune" and record["seed"] == 0
    expected = {
        "model_name_or_path": str(encoder_folder), "data": str(planted), "learning_rate": 5e-3,
        "label_smoothing_factor": 0.1, "layer_decay": 0.65, "augmentation": "recipe",
    }  # fmt: skip
    assert {name: record["arguments"][name] for name in expected} == expected
    assert record["versions"]["torch"] == metadata.version("torch")
    assert record["git_revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["git_revision"])
    assert record["images"] == {"train": 48, "val": 16, "test": 24}
    assert record["rejected_images"] == []


def test_folder_loads_anywhere_and_gives_the_stored_probabilities(finished_run, planted):
    model = AutoModelForImageClassification.from_pretrained(finished_run.folder).eval()
    processor = AutoImageProcessor.from_pretrained(finished_run.folder)
    assert isinstance(model, RetFoundForImageClassification) and isinstance(processor, RetFoundImageProcessor)
    assert model.config.id2label == {0: "amd", 1: "healthy"}
    table = finished_run.predictions
    files, stored = [str(planted / name) for name in table["id"]], table[COLUMNS].to_numpy()
    with torch.no_grad():
        assert model(**processor(files, return_tensors="pt")).logits.softmax(-1).numpy() == pytest.approx(
            stored, abs=1e-5
        )
    assert load_classifier(finished_run.folder).predict(files).scores == pytest.approx(stored, abs=1e-5)
    classify = make_pipeline("image-classification", model=str(finished_run.folder))
    found = {entry["label"]: entry["score"] for entry in classify(files[5])}
    assert [found[name] for name in CLASSES] == pytest.approx(stored[5], abs=1e-5)
    encoder = AutoModel.from_pretrained(finished_run.folder).eval()
    assert torch.equal(encoder.embeddings.cls_token, model.vit.embeddings.cls_token)


def test_evaluate_reproduces_the_report(finished_run, planted, cache_dir, tmp_path):
    options = {"cache_dir": str(cache_dir), **QUIET}
    done = evaluate(finished_run.folder, planted, tmp_path / "again", **options)
    for name in ("metrics.json", "predictions.csv", "operating_points.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (finished_run.folder / name).read_bytes()
    assert evaluate(finished_run.folder, planted, **options).metrics == done.metrics == finished_run.metrics


def test_the_function_is_silent_and_returns_what_it_writes(encoder_folder, planted, tmp_path, capsys):
    done = rf.finetune(
        encoder_folder, planted, tmp_path / "out", num_train_epochs=1, learning_rate=1e-3, use_cpu=True,
        level="patient", cache_dir=str(tmp_path / "cache"), logging_steps=1, **QUIET,
    )  # fmt: skip
    assert capsys.readouterr().out == ""
    assert done.metrics == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert done.output_dir == tmp_path / "out" and not done.model.training
    table = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(done.predictions["test"].ids) == list(table["id"]) and len(done.predictions["val"]) == 16
    assert done.predictions["test"].scores == pytest.approx(table[COLUMNS].to_numpy(), abs=1e-8)
    assert done.predictions["test"].at_level("patient").metrics() == done.metrics
    with pytest.raises(TypeError):
        rf.finetune(encoder_folder, planted, tmp_path / "other", num_epochs=3)
    with pytest.raises(BadArgumentError):
        rf.finetune(encoder_folder, planted, tmp_path / "other", push_to_hub=True)


def test_from_scratch_and_another_image_size(run, planted, cache_dir, tmp_path):
    options = {"cache_dir": str(cache_dir), **QUIET}
    done = rf.finetune("retfound-tiny", planted, tmp_path / "tiny", image_size=32, method="linear", **options)
    assert (done.model.config.hidden_size, done.model.config.image_size) == (192, 32)
    assert "preset `retfound-tiny`" in (tmp_path / "tiny" / "README.md").read_text()
    done = run(image_size=48, method="linear")
    assert AutoImageProcessor.from_pretrained(done.folder).size["height"] == 48
    assert AutoConfig.from_pretrained(done.folder).image_size == 48


def test_same_seed_same_predictions_other_seed_others(job, tmp_path):
    logits = []
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        made = job(num_train_epochs=2, seed=seed, output_dir=str(tmp_path / name))
        made.train()
        logits.append(made.classifier.logits(made.splits["test"].images))
    assert (logits[0] == logits[1]).all() and (logits[0] != logits[2]).any()


def test_labels_without_signal_give_chance(job, noise_set):
    made = job(data=str(noise_set), num_train_epochs=3, seed=1)
    made.train()
    logits = made.classifier.logits(made.splits["test"].images)
    # The standard error of AUROC is 0.053 at 60 against 60.
    assert roc_auc_score(made.splits["test"].targets, logits[:, 1] - logits[:, 0]) == pytest.approx(0.5, abs=0.16)


def test_a_failure_after_training_leaves_the_checkpoint_and_no_half_folder(run, monkeypatch, tmp_path):
    def fail(*args, **kwargs):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(finetuning, "write_finetuned_card", fail)
        with pytest.raises(OSError):
            run(num_train_epochs=1)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["checkpoint-3"]
    done = run(num_train_epochs=1, resume_from_checkpoint="latest", keep_checkpoints=True)
    assert done.metrics and (tmp_path / "out" / "checkpoint-3").is_dir()


@pytest.mark.parametrize("method", ["lora", "linear"])
def test_the_stored_head_holds_the_calibration(run, noise_set, cache_dir, tmp_path, method):
    """Two equal runs, one calibrated: log odds differ by the recorded change alone, from the stored folder too."""

    def log_odds(scores):
        return np.log(scores[:, 0] / scores[:, 1])

    few = {} if method == "linear" else {"num_train_epochs": 2, "learning_rate": 1e-2}
    options = {"data": str(noise_set), "method": method, **few}
    plain = run(**options, output_dir=str(tmp_path / "plain"))
    done = run(**options, output_dir=str(tmp_path / "calibrated"), calibrate=True)
    config = AutoConfig.from_pretrained(done.folder)
    slope, (first, second) = config.calibration_slope[0], config.calibration_intercept
    assert abs(np.log(slope)) > 0.05 and AutoConfig.from_pretrained(plain.folder).calibration_slope is None
    found, before = (log_odds(one.predictions[["prob/a", "prob/b"]].to_numpy()) for one in (done, plain))
    assert found == pytest.approx(before * slope + first - second, rel=1e-3, abs=1e-4)
    validation = pd.read_csv(done.folder / "validation" / "predictions.csv")
    assert validation["prob/a"].mean() == pytest.approx((validation["label"] == "a").mean(), abs=1e-4)
    assert done.metrics["auroc"] == pytest.approx(plain.metrics["auroc"], abs=0.01)  # float32 may tie some
    assert done.validation_metrics["loss"] < plain.validation_metrics["loss"]
    again = evaluate(done.folder, noise_set, cache_dir=str(cache_dir), **QUIET).predictions
    assert log_odds(again.scores) == pytest.approx(found, rel=1e-3, abs=1e-4)


def test_folded_changes_add_up_and_training_starts_uncalibrated(run, finished_run, tmp_path):
    model = AutoModelForImageClassification.from_pretrained(finished_run.folder).eval()
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        before = model(pixels).logits
        model.config.calibration_temperature = 0.5  # of a folder that was divided by a number alone
        fold_scaling(model, LogitScaling((0.5, 0.5), (1.0, -1.0)))
        fold_scaling(model, LogitScaling((0.6, 0.6), (0.25, -0.25)))
        assert torch.allclose(model(pixels).logits, 0.3 * before + torch.tensor([0.85, -0.85]), atol=1e-6)
    assert model.config.calibration_slope == pytest.approx([0.6, 0.6])
    assert model.config.calibration_intercept == pytest.approx([0.85, -0.85])
    model.save_pretrained(tmp_path / "calibrated")
    done = run(model_name_or_path=str(tmp_path / "calibrated"), method="linear")
    config = AutoConfig.from_pretrained(done.folder)
    assert config.calibration_temperature == 1 and config.calibration_slope is None


def test_thresholds_come_from_validation_images_alone(run):
    done = run(num_train_epochs=2, learning_rate=1e-2, target_sensitivity=0.8)
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


def test_a_report_by_patient(run):
    done = run(method="linear", level="patient", confidence_intervals=True, resamples=100)
    assert len(done.predictions) == 24
    assert len(pd.read_csv(done.folder / "predictions_patient.csv")) == 12
    assert json.loads((done.folder / "operating_points.json").read_text())["level"] == "patient"
    assert "24 images, metrics by patient" in (done.folder / "README.md").read_text()
    assert (done.folder / "validation" / "intervals.csv").is_file()


def test_requests_are_checked_before_training(run, table_set, tmp_path):
    numbers = {"data": str(table_set), "label_columns": ["level"], "problem_type": "regression"}
    for options in ({**numbers, "calibrate": True}, {"subgroup_columns": ["agee"]}):
        with pytest.raises(RetFoundError):
            run(**options)
        assert not (tmp_path / "out").exists()


def test_a_tracker_that_does_not_start_ends_the_run_before_its_first_step(run, tmp_path, monkeypatch):
    """As one without login or network."""
    pytest.importorskip("tensorboard")
    monkeypatch.setattr("retfound_hf.finetuning.trainer.FinetuneTrainer.training_step", None)
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "file/below"))
    (tmp_path / "file").write_text("x")
    with pytest.raises(BadArgumentError) as error:
        run(report_to=["tensorboard"])
    assert (error.value.field, error.value.value) == ("report_to", ["tensorboard"])
    assert not list(tmp_path.glob("out/*"))


def test_several_findings(run, table_set, cache_dir):
    data = {"data": str(table_set), "label_columns": ["red", "bright"]}
    done = run(**data, num_train_epochs=6, learning_rate=5e-3, calibrate=True)
    config = json.loads((done.folder / "config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "red", "1": "bright"}
    assert done.metrics["auroc"] > 0.9 and {"auroc/red", "auroc/bright", "auprc/red"} <= set(done.metrics)
    table = done.predictions.fillna({"label": "", "prediction": ""})
    assert list(table.columns) == ["id", "label", "prediction", "prob/red", "prob/bright", "patient_id"]
    source = pd.read_csv(table_set).set_index("image")
    for row in table.to_dict("records"):
        assert row["label"] == "|".join(name for name in ("red", "bright") if source.loc[row["id"], name] == 1)
        assert row["prediction"] == "|".join(name for name in ("red", "bright") if row[f"prob/{name}"] >= 0.5)
    again = evaluate(done.folder, table_set, cache_dir=str(cache_dir), **QUIET).metrics
    assert again == pytest.approx(done.metrics, rel=1e-5)
    validation = pd.read_csv(done.folder / "validation" / "predictions.csv")
    for index, name in enumerate(("red", "bright")):  # slope and intercept of each finding
        share = source.loc[validation["id"], name].mean()
        assert validation[f"prob/{name}"].mean() == pytest.approx(share, abs=1e-4)
        assert config["calibration_slope"][index] > 0
    assert not set(table["patient_id"]) & set(validation["patient_id"])
    assert (table.groupby("patient_id").size() == 2).all()


def test_numbers_are_learnt_and_a_trained_regression_goes_on(run, job, table_set, cache_dir, tmp_path):
    data = {"data": str(table_set), "label_columns": ["level"], "problem_type": "regression"}
    done = run(**data, num_train_epochs=20, learning_rate=5e-3, layer_decay=0.9)
    assert {"mae", "mse", "rmse", "r2", "pearson", "spearman", "loss"} == set(done.metrics)
    table = done.predictions
    assert list(table.columns) == ["id", "label", "prediction", "patient_id"]
    source = pd.read_csv(table_set).set_index("image")["level"]
    assert table["label"].to_numpy() == pytest.approx(source[table["id"]].to_numpy(), rel=1e-5)
    assert done.metrics["mae"] == pytest.approx(np.abs(table["label"] - table["prediction"]).mean(), rel=1e-4)
    trained = source[~source.index.isin(table["id"])].mean()
    assert done.metrics["mae"] < 0.7 * np.abs(table["label"] - trained).mean() and done.metrics["r2"] > 0.4
    assert not (done.folder / "operating_points.json").exists() and list((done.folder / "plots").glob("*.png"))
    options = {"label_columns": ["level"], "cache_dir": str(cache_dir), **QUIET}
    assert evaluate(done.folder, table_set, **options).metrics == done.metrics
    start = {"model_name_or_path": str(done.folder)}
    known = RetFoundForImageClassification.from_pretrained(done.folder)
    assert job(**data, **start).classifier.model.classifier.bias.item() == known.classifier.bias.item()
    again = run(**data, **start, num_train_epochs=1, learning_rate=1e-8, output_dir=str(tmp_path / "again"))
    assert again.metrics["mae"] == pytest.approx(done.metrics["mae"], rel=1e-3)


@pytest.mark.parametrize("method", ["full", "lora"])
def test_the_unit_of_a_number_changes_nothing(job, table_set, tmp_path, method):
    source = pd.read_csv(table_set)
    source["large"] = 1000 * source["level"] + 5e5
    source["image"] = [str(table_set.parent / image) for image in source["image"]]
    source.to_csv(tmp_path / "units.csv", index=False)
    found, losses = [], []
    for name in ("level", "large"):
        made = job(
            data=str(tmp_path / "units.csv"), label_columns=[name], problem_type="regression", method=method,
            output_dir=str(tmp_path / name),
        )  # fmt: skip
        trained = made.train()
        classifier = replace(made.classifier, model=trained.model.eval())
        found.append(classifier.logits(made.splits["test"].images)[:, 0])
        losses.append([entry["loss"] for entry in trained.history if "loss" in entry])
    plain, large = found
    assert plain.std() > 0.1  # the head has moved
    assert (large - 5e5) / 1000 == pytest.approx(plain, abs=0.02)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


class StopAt(TrainerCallback):
    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise InterruptedError


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({}, "retfound"),
        pytest.param(
            {
                "save_strategy": "steps",
                "save_steps": 2,
                "eval_strategy": "steps",
                "eval_steps": 2,
                "num_train_epochs": 4,
            },
            "retfound",
            marks=pytest.mark.slow,
        ),
        ({"mixup": 0.8, "gradient_accumulation_steps": 2, "per_device_train_batch_size": 4}, "retfound"),
        ({"method": "lora", "lora_dropout": 0.1}, "retfound"),
        ({"dataloader_num_workers": 1, "sampler": "balanced"}, "retfound"),
        ({}, "dinov2"),
    ],
    ids=["epochs", "by-steps", "mixup-accumulation", "lora", "worker-sampler", "dinov2"],
)
def test_resumed_equals_uninterrupted(job, stock_folder, tmp_path, options, kind):
    options = {"num_train_epochs": 3, "augmentation": "recipe", "drop_path": 0.3, "save_total_limit": None, **options}
    if kind != "retfound":
        options["model_name_or_path"] = str(stock_folder(kind))
    whole, history = job(output_dir=str(tmp_path / "whole"), **options).train()
    stopped = {**options, "output_dir": str(tmp_path / "stopped")}
    with pytest.raises(InterruptedError):
        job(**stopped).train(callback=StopAt(max(entry["step"] for entry in history) // 2 + 2))
    torch.manual_seed(123)  # whatever state the new process is in
    made = job(resume_from_checkpoint="latest", **stopped)
    resumed, resumed_history = made.train(checkpoint_to_resume(made.args, made.method))
    one, two = whole.state_dict(), resumed.state_dict()
    assert one.keys() == two.keys()
    for name in one:
        assert torch.allclose(one[name], two[name], atol=1e-6), name
    losses = [[e["loss"] for e in h if "loss" in e] for h in (history, resumed_history)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


@pytest.mark.slow
def test_a_killed_run_goes_on(encoder_folder, planted, cache_dir, tmp_path):
    """The command itself, killed as by a scheduler, then given again with --resume_from_checkpoint latest."""
    words = [
        sys.executable, str(SCRIPT), "--model_name_or_path", str(encoder_folder), "--data", str(planted),
        "--cache_dir", str(cache_dir), "--num_train_epochs", "30", "--use_cpu", "--dataloader_num_workers", "0",
        "--learning_rate", "1e-3", "--disable_tqdm", "true",
    ]  # fmt: skip
    folder = tmp_path / "killed"
    process = subprocess.Popen(
        [*words, "--output_dir", str(folder)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    for line in process.stdout:
        if "'epoch': '3'" in line and "eval_auroc" in line:
            break
    else:
        pytest.fail("the run ended before its third epoch")
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (folder / "config.json").exists() and list(folder.glob("checkpoint-*"))
    resumed = [*words, "--output_dir", str(folder), "--resume_from_checkpoint", "latest"]
    done = subprocess.run(resumed, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    whole = subprocess.run([*words, "--output_dir", str(tmp_path / "whole")], capture_output=True, timeout=120)
    assert whole.returncode == 0
    assert (folder / "predictions.csv").read_bytes() == (tmp_path / "whole" / "predictions.csv").read_bytes()


def test_checkpoint_to_resume(arguments, tmp_path):
    def found(**options):
        args = arguments(**options)
        return checkpoint_to_resume(args, METHODS[args.method](args))

    assert found() is None
    for options, error in (
        ({"resume_from_checkpoint": "latest"}, OutputError),
        ({"resume_from_checkpoint": str(tmp_path / "absent")}, BadArgumentError),
        ({"resume_from_checkpoint": "latest", "method": "linear"}, BadArgumentError),
    ):
        with pytest.raises(error):
            found(**options)
    # The state is written last: a checkpoint without it was cut off.
    for step in (9, 12):
        folder = tmp_path / "out" / f"checkpoint-{step}"
        folder.mkdir(parents=True)
        for name in ("model.safetensors", "optimizer.pt", "scheduler.pt"):
            (folder / name).touch()
    state = tmp_path / "out/checkpoint-9/trainer_state.json"
    TrainerState(global_step=9, max_steps=20, epoch=1.0).save_to_json(str(state))
    assert Path(found(resume_from_checkpoint="latest")).name == "checkpoint-9"
    whole = json.loads(state.read_text())
    for damaged in (
        "",
        "[" * 10**5,
        "[]",
        *(json.dumps({**whole, name: "x"}) for name in ("epoch", "log_history", "x")),
    ):
        state.write_text(damaged)
        with pytest.raises(BadModelError):
            found(resume_from_checkpoint="latest")
    state.write_text(json.dumps(whole))
    (state.parent / "optimizer.pt").unlink()  # Trainer would begin with another
    with pytest.raises(BadModelError):
        found(resume_from_checkpoint="latest")


class StopAtSave(TrainerCallback):
    def on_save(self, args, state, control, **kwargs):
        raise InterruptedError


def test_a_damaged_checkpoint_is_said_in_one_line(job, tmp_path):
    options = {"num_train_epochs": 2, "output_dir": str(tmp_path / "out")}
    with pytest.raises(InterruptedError):
        job(**options).train(callback=StopAtSave())
    made = job(resume_from_checkpoint="latest", **options)
    checkpoint = Path(checkpoint_to_resume(made.args, made.method))
    for name in ("rng_state.pth", "scheduler.pt", "optimizer.pt", "model.safetensors"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(BadModelError) as error:
            made.train(str(checkpoint))
        assert error.value.model == str(checkpoint) and "\n" not in str(error.value)


@pytest.mark.slow
def test_two_processes_equal_one(encoder_folder, planted, cache_dir, tmp_path):
    """At the same global batch, without randomness per image; 15 validation images do not divide by two."""
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    sorted((data / "val" / "amd").iterdir())[0].unlink()
    common = [
        "--model_name_or_path", str(encoder_folder), "--data", str(data),
        "--cache_dir", str(cache_dir), "--dataloader_num_workers", "0", "--augmentation", "none",
        "--drop_path", "0", "--num_train_epochs", "3", "--learning_rate", "3e-3", "--per_device_eval_batch_size", "4",
    ]  # fmt: skip
    common += ["--disable_tqdm", "true", "--output_dir"]
    main([*common, str(tmp_path / "one"), "--per_device_train_batch_size", "16"])
    run_in_two(SCRIPT, [*common, str(tmp_path / "two"), "--per_device_train_batch_size", "8"], tmp_path)
    tables = [pd.read_csv(tmp_path / name / "validation" / "predictions.csv") for name in ("one", "two")]
    assert len(tables[1]) == 15 and tables[1]["id"].is_unique
    assert list(tables[0]["id"]) == list(tables[1]["id"])
    assert tables[1]["prob/amd"].to_numpy() == pytest.approx(tables[0]["prob/amd"].to_numpy(), abs=1e-3)
    histories = [pd.read_json(tmp_path / name / "history.json") for name in ("one", "two")]
    for column in ("eval_auroc", "eval_brier"):
        one, two = (history[column].dropna().to_numpy() for history in histories)
        assert two == pytest.approx(one, abs=1e-3)


@pytest.fixture
def starts(stock_folder, tmp_path, monkeypatch):
    """A working directory with small models in the places of the large starting points."""
    monkeypatch.chdir(tmp_path)
    for name, kind in {"sl-imagenet": "vit", "ssl-imagenet": "vit_mae", "dinov3": "dinov3_vit"}.items():
        shutil.copytree(stock_folder(kind), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize(("name", "method"), [("sl-imagenet", "full"), ("dinov3", "lora"), ("ssl-imagenet", "linear")])
def test_from_the_name_of_a_starting_point(starts, planted, cache_dir, name, method):
    options = {"cache_dir": str(cache_dir), **QUIET}
    done = rf.finetune(
        name, planted, "out", method=method, num_train_epochs=2, learning_rate=1e-3, augmentation="light", **options
    )
    assert f"Started from `{name}`" in (starts / "out" / "README.md").read_text()
    found = evaluate("out", planted, **options).predictions
    assert found.scores == pytest.approx(done.predictions["test"].scores, abs=1e-5)
    assert rf.embed(name, planted / "test", **QUIET).vectors.shape == (24, 32)
    stored = json.loads((starts / "out" / "preprocessor_config.json").read_text())
    assert stored["image_mean"] == stored["image_std"] == [0.5, 0.5, 0.5]  # the normalisation is the weights' own
    assert stored["do_fundus_crop"] is True


@pytest.mark.parametrize(
    ("command_name", "name", "told"),
    [
        ("finetune", "sl-imagenet", "hf download google/vit-large-patch16-224-in21k"),
        ("embed", "ssl-retinal", "retfound pretrain --config_name retfound-cfp"),
        ("evaluate", "retfound-oct", "retfound fetch retfound-oct"),
    ],
)
def test_without_weights_one_line_says_how_to_bring_them(
    tmp_path, planted, monkeypatch, capsys, command_name, name, told
):
    monkeypatch.chdir(tmp_path)
    words = ["--model_name_or_path", name, "--data", str(planted), "--output_dir", "out"]
    assert run_command(command(command_name), words) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and told in error
    assert not (tmp_path / "out" / "config.json").exists()


def test_features_do_not_depend_on_the_head(starts):
    """The encoder that `embed` reads is the one that fine-tuning starts from."""
    labels = {"num_labels": 2, "id2label": {0: "a", 1: "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None}
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    for name in ("sl-imagenet", "ssl-imagenet", "dinov3"):
        with torch.no_grad():
            model = build_classifier(name, None, labels).eval()
            assert torch.equal(load_encoder(name)(pixels).patch_mean, model.vit(pixels).patch_mean)
