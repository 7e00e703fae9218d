"""A full run: it learns, writes what the design promises, and its folder can be used anywhere."""

import json
import re
from importlib import metadata

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, pipeline

from retfound_hf import RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.inference.evaluate import main as evaluate_main
from retfound_hf.inference.predict import Classifier
from retfound_hf.models.cards import title

OVERALL = {
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro", "kappa",
    "quadratic_kappa", "mcc", "hamming", "jaccard", "ece", "brier", "loss",
}  # fmt: skip
CLASSES = ("amd", "healthy")


def test_learns_the_planted_signal(finished_run):
    assert finished_run.metrics["auroc"] > 0.9
    assert finished_run.validation_metrics["auroc"] > 0.9


def test_metrics_are_flat_and_bear_the_promised_names(finished_run):
    per_class = {f"{metric}/{name}" for metric in ("auroc", "auprc") for name in CLASSES}
    assert set(finished_run.stored_metrics) == OVERALL | per_class
    assert all(isinstance(value, float) for value in finished_run.stored_metrics.values())
    assert finished_run.stored_metrics == finished_run.metrics


def test_metrics_follow_from_the_predictions(finished_run):
    from sklearn.metrics import accuracy_score, roc_auc_score

    table = finished_run.predictions
    assert finished_run.metrics["accuracy"] == pytest.approx(accuracy_score(table["label"], table["prediction"]))
    auroc = roc_auc_score(table["label"] == "healthy", table["prob/healthy"])
    assert finished_run.metrics["auroc"] == pytest.approx(auroc)


def test_predictions_have_a_row_per_test_image_in_order(finished_run, planted):
    table = finished_run.predictions
    assert list(table.columns) == ["id", "label", "prediction", "prob/amd", "prob/healthy", "patient_id", "eye"]
    files = sorted(path.relative_to(planted).as_posix() for path in (planted / "test").rglob("*.png"))
    assert list(table["id"]) == files
    assert list(table["label"]) == [name.split("/")[1] for name in files]
    patients = pd.read_csv(planted / "metadata.csv").set_index("image")["patient_id"]
    assert list(table["patient_id"]) == list(patients[files])
    assert table[["prob/amd", "prob/healthy"]].sum(axis=1).to_numpy() == pytest.approx(np.ones(24), abs=1e-5)
    assert list(table["prediction"]) == [CLASSES[i] for i in table[["prob/amd", "prob/healthy"]].to_numpy().argmax(1)]


def test_validation_has_a_report_of_its_own(finished_run, planted):
    table = pd.read_csv(finished_run.folder / "validation" / "predictions.csv")
    assert len(table) == 16
    assert table["id"].str.startswith("val/").all()
    assert list((finished_run.folder / "validation" / "plots").glob("*.png"))


@pytest.mark.parametrize("name", ["roc", "precision_recall", "confusion", "reliability"])
def test_plots_are_there(finished_run, name):
    found = [path for path in (finished_run.folder / "plots").glob("*.png") if name in path.stem]
    assert found, list((finished_run.folder / "plots").iterdir())
    assert min(Image.open(found[0]).size) >= 300


def test_run_record(finished_run, encoder_folder, planted):
    record = finished_run.record
    assert record["command"] == "finetune"
    assert record["seed"] == 0
    assert record["arguments"]["model_name_or_path"] == str(encoder_folder)
    assert record["arguments"]["data"] == str(planted)
    assert record["arguments"]["learning_rate"] == 5e-3
    assert record["arguments"]["label_smoothing_factor"] == 0.1
    assert record["arguments"]["layer_decay"] == 0.65
    assert record["arguments"]["augmentation"] == "recipe"
    assert record["versions"]["torch"] == metadata.version("torch")
    assert {"transformers", "retfound-hf", "python"} <= set(record["versions"])
    assert record["git_revision"] is None or re.fullmatch(r"[0-9a-f]{40}(-dirty)?", record["git_revision"])
    assert record["images"] == {"train": 48, "val": 16, "test": 24}
    assert record["rejected_images"] == []


def test_history_has_every_step_and_epoch(finished_run):
    assert [entry["step"] for entry in finished_run.history if "loss" in entry] == list(range(1, 19))
    assert [entry["epoch"] for entry in finished_run.history if "eval_auroc" in entry] == [1, 2, 3, 4, 5, 6]


def test_card_is_filled_from_the_run(finished_run):
    card = (finished_run.folder / "README.md").read_text(encoding="utf-8")
    assert "{{" not in card
    assert "}}" not in card
    assert "TODO" not in card
    numbers = dict(re.findall(r"^\| ([^|]+) \| (-?\d+\.\d+) \|$", card, flags=re.MULTILINE))
    said = {name: f"{value:.3f}" for name, value in finished_run.metrics.items()}
    assert numbers == {title(name): value for name, value in said.items() if "/" not in name}
    for label in CLASSES:
        assert f"| {label} | {said[f'auroc/{label}']} | {said[f'auprc/{label}']} |" in card
    assert "amd, healthy" in card
    assert "24 images" in card
    assert "by patient" in card
    assert "pipeline_tag: image-classification" in card


def test_no_checkpoint_is_left(finished_run):
    assert not list(finished_run.folder.glob("checkpoint-*"))
    assert {path.name for path in finished_run.folder.iterdir() if path.is_file()} >= {
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "metrics.json",
        "predictions.csv", "history.json", "run.json",
    }  # fmt: skip
    assert not [path for path in finished_run.folder.iterdir() if path.name.startswith(".")]


def test_checkpoints_can_be_kept(run):
    done = run(num_train_epochs=2, keep_checkpoints=True)
    assert list(done.folder.glob("checkpoint-*"))


def test_folder_loads_with_the_auto_classes(finished_run, planted):
    model = AutoModelForImageClassification.from_pretrained(finished_run.folder).eval()
    processor = AutoImageProcessor.from_pretrained(finished_run.folder)
    assert isinstance(model, RetFoundForImageClassification)
    assert isinstance(processor, RetFoundImageProcessor)
    assert model.config.id2label == {0: "amd", 1: "healthy"}
    files = [str(planted / name) for name in finished_run.predictions["id"]]
    with torch.no_grad():
        probabilities = model(**processor(files, return_tensors="pt")).logits.softmax(-1)
    stored = finished_run.predictions[["prob/amd", "prob/healthy"]].to_numpy()
    assert probabilities.numpy() == pytest.approx(stored, abs=1e-5)
    encoder = AutoModel.from_pretrained(finished_run.folder).eval()
    assert torch.equal(encoder.embeddings.cls_token, model.vit.embeddings.cls_token)


def test_pipeline_gives_the_stored_probabilities(finished_run, planted):
    classify = pipeline("image-classification", model=str(finished_run.folder))
    for row in finished_run.predictions.iloc[::5].to_dict("records"):
        found = {entry["label"]: entry["score"] for entry in classify(str(planted / row["id"]))}
        assert found["amd"] == pytest.approx(row["prob/amd"], abs=1e-5)
        assert found["healthy"] == pytest.approx(row["prob/healthy"], abs=1e-5)


def test_evaluate_reproduces_the_report(finished_run, planted, cache_dir, tmp_path):
    evaluate_main(
        ["--model_name_or_path", str(finished_run.folder), "--data", str(planted), "--cache_dir", str(cache_dir),
         "--output_dir", str(tmp_path / "again"), "--dataloader_num_workers", "0"]
    )  # fmt: skip
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "again" / name).read_bytes() == (finished_run.folder / name).read_bytes()


def test_same_seed_same_predictions_other_seed_others(run, tmp_path):
    contents = [
        (run(num_train_epochs=2, seed=seed, output_dir=str(tmp_path / name)).folder / "predictions.csv").read_bytes()
        for name, seed in (("a", 3), ("b", 3), ("c", 4))
    ]
    assert contents[0] == contents[1]
    assert contents[0] != contents[2]


def test_labels_without_signal_give_chance(job, noise_set):
    from sklearn.metrics import roc_auc_score

    made = job(data=str(noise_set), num_train_epochs=3, seed=1)
    model, _ = made.train()
    logits = Classifier(model, made.classifier.processor).logits(made.splits["test"].images)
    # The standard error of AUROC is 0.053 at 60 against 60.
    assert roc_auc_score(made.splits["test"].targets, logits[:, 1] - logits[:, 0]) == pytest.approx(0.5, abs=0.16)


def test_two_small_batches_equal_a_large_one(job):
    options = {"augmentation": "none", "drop_path": 0.0, "num_train_epochs": 2, "load_best_model_at_end": False}
    models = [
        job(per_device_train_batch_size=size, gradient_accumulation_steps=steps, **options).train()[0]
        for size, steps in ((16, 1), (8, 2))
    ]
    states = [model.state_dict() for model in models]
    for name in states[0]:
        assert torch.allclose(states[0][name], states[1][name], atol=1e-5), name


@pytest.mark.parametrize("options", [{"mixup": 0.8}, {"mixup": 0.8, "cutmix": 1.0, "class_weights": "balanced"}])
def test_mixing_works_in_training(job, options):
    model, history = job(**options).train()
    losses = [entry["loss"] for entry in history if "loss" in entry]
    assert np.isfinite(losses).all()
    assert model.classifier.weight.abs().max() > 1e-3


def test_mixing_works_with_several_findings(job, table_set):
    _, history = job(data=str(table_set), label_columns=["red", "bright"], mixup=0.8).train()
    assert np.isfinite([entry["loss"] for entry in history if "loss" in entry]).all()


def test_balanced_sampler_in_training(job):
    made = job(sampler="balanced", num_train_epochs=1)
    _, history = made.train()
    assert sum("loss" in entry for entry in history) == 3


def test_what_trainer_brings_works(job):
    """bfloat16, gradient checkpointing and clipping, by Trainer's own options."""
    made = job(bf16=True, gradient_checkpointing=True, max_grad_norm=0.5, num_train_epochs=1)
    model, history = made.train()
    assert np.isfinite([entry["loss"] for entry in history if "loss" in entry]).all()
    assert model.classifier.weight.dtype == torch.float32


def test_tensorboard(job, tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    job(report_to="tensorboard", num_train_epochs=1).train()
    assert list(tmp_path.rglob("events.out.tfevents*"))


def test_from_scratch(run):
    done = run(config_name="retfound-tiny", image_size=32, num_train_epochs=1, augmentation="none")
    config = json.loads((done.folder / "config.json").read_text())
    assert (config["hidden_size"], config["image_size"]) == (192, 32)
    assert "preset `retfound-tiny`" in (done.folder / "README.md").read_text()


def test_another_image_size(run):
    done = run(image_size=48, num_train_epochs=1)
    assert AutoImageProcessor.from_pretrained(done.folder).crop_size["height"] == 48
    assert len(done.predictions) == 24
