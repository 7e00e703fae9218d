"""The best epoch is the one of the highest validation AUROC, and the folder holds its weights."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageClassification, EvalPrediction

from retfound_hf.evaluation.metrics import compute_metrics
from retfound_hf.finetuning.arguments import FinetuneTrainingArguments
from retfound_hf.finetuning.trainer import selection_metrics
from retfound_hf.inference.predict import Classifier, to_scores

SINGLE = "single_label_classification"


def selected(logits, labels, problem_type=SINGLE, names=("a", "b")):
    prediction = EvalPrediction(predictions=np.asarray(logits, np.float32), label_ids=np.asarray(labels))
    with pytest.warns() if len(set(np.ravel(labels).tolist())) == 1 else np.errstate():
        return selection_metrics(prediction, problem_type, names)["selection"]


def test_auroc_decides_before_the_loss():
    labels = [0, 1, 0, 1]
    ranked = selected([[0, 0.0], [0, 0.2], [0, 0.1], [0, 0.3]], labels)
    confident_but_worse = selected([[0, -4.0], [0, 4.0], [0, 5.0], [0, 6.0]], labels)
    assert ranked == pytest.approx(1, abs=1e-5)
    assert confident_but_worse == pytest.approx(0.75, abs=1e-5)
    assert ranked > confident_but_worse


def test_of_equal_aurocs_the_lower_loss_is_better():
    labels = [0, 1, 0, 1]
    early, late = ([[0, 0.1 * scale * sign] for sign in (-1, 1, -2, 2)] for scale in (1, 20))
    assert selected(late, labels) > selected(early, labels)


def test_without_auroc_the_loss_decides():
    better, worse = ([[0, value]] * 3 for value in (3.0, 1.0))
    assert selected(better, [1, 1, 1]) > selected(worse, [1, 1, 1])


def test_regression_is_selected_by_its_error():
    near, far = ([[1.1], [2.0], [2.9]], [[1.5], [2.5], [2.5]])
    assert selected(near, [1.0, 2.0, 3.0], "regression", ("age",)) == pytest.approx(-(0.01 + 0 + 0.01) / 3, rel=1e-4)
    assert selected(near, [1.0, 2.0, 3.0], "regression", ("age",)) > selected(
        far, [1.0, 2.0, 3.0], "regression", ("age",)
    )


def test_trainer_is_told_to_select_by_it(tmp_path):
    args = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True)
    assert (args.metric_for_best_model, args.greater_is_better) == ("selection", True)
    other = FinetuneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, metric_for_best_model="loss")
    assert other.greater_is_better is False


def test_the_folder_holds_the_epoch_of_the_highest_auroc(run, noise_set):
    done = run(
        data=str(noise_set), num_train_epochs=6, seed=1, augmentation="none", drop_path=0.0, learning_rate=1e-2
    )  # fmt: skip
    aurocs = [entry["eval_auroc"] for entry in done.history if "eval_auroc" in entry]
    losses = [entry["eval_loss"] for entry in done.history if "eval_loss" in entry]
    # On noise AUROC goes up and down, so that the last epoch, or the one of the lowest loss, is another.
    assert aurocs[-1] < max(aurocs)
    assert aurocs[int(np.argmin(losses))] < max(aurocs)
    assert done.validation_metrics["auroc"] == pytest.approx(max(aurocs), abs=1e-6)


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("kind", ["retfound", "vit_mae", "vit", "dinov2"])
def test_weights_of_an_earlier_epoch_come_back(job, stock_folder, tmp_path, kind, method):
    """Highest calibration error: the first epoch. Every tensor must come back, whatever its name on disk."""
    folder = {} if kind == "retfound" else {"model_name_or_path": str(stock_folder(kind))}
    made = job(method=method, metric_for_best_model="ece", greater_is_better=True, save_total_limit=3, **folder)
    model, history = made.train()
    entries = [entry for entry in history if "eval_ece" in entry]
    assert entries[0]["eval_ece"] > entries[1]["eval_ece"] > entries[2]["eval_ece"]
    first = tmp_path / "out" / "checkpoint-3"
    if method == "full":
        stored = AutoModelForImageClassification.from_pretrained(first).state_dict()
        own = model.state_dict()
        assert stored.keys() == own.keys()
        assert all(torch.equal(stored[name], own[name]) for name in stored)
    validation = made.splits["val"]
    scores = to_scores(Classifier(model, made.classifier.processor).logits(validation.images), SINGLE)
    metrics = compute_metrics(SINGLE, validation.targets, scores, ("amd", "healthy"))
    assert metrics["ece"] == pytest.approx(entries[0]["eval_ece"], rel=1e-4)
    assert metrics["brier"] == pytest.approx(entries[0]["eval_brier"], rel=1e-4)
