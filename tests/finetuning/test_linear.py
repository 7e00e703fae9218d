"""The linear method: an untouched encoder, and the head that scikit-learn finds on the same features."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retfound_hf.inference.predict import Classifier, head_inputs, to_scores

LINEAR = {"method": "linear", "drop_path": 0.2}


def chosen_strength(history) -> float:
    """The penalty whose head was taken over, found by its score; ties are tried by the caller."""
    best = max(entry["val_score"] for entry in history)
    return [entry["strength"] for entry in history if entry["val_score"] >= best - 1e-3]


def closest(candidates: list[np.ndarray], found: np.ndarray) -> float:
    return min(float(np.abs(candidate - found).max()) for candidate in candidates)


def features_and_model(made):
    model, history = made.train()
    features = {
        split: head_inputs(model, made.splits[split].images, made.classifier.processor) for split in made.splits
    }
    logits = Classifier(model, made.classifier.processor).logits(made.splits["test"].images)
    return features, history, logits


def test_equals_scikit_learn_at_the_chosen_strength(job):
    made = job(**LINEAR)
    features, history, logits = features_and_model(made)
    targets = made.splits["train"].targets
    found = to_scores(logits, "single_label_classification")
    candidates = []
    for strength in chosen_strength(history):
        pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / strength, tol=1e-8, max_iter=10000))
        candidates.append(pipeline.fit(features["train"], targets).predict_proba(features["test"]))
    assert closest(candidates, found) < 1e-4


def test_regression_equals_ridge(job, table_set):
    made = job(data=str(table_set), label_columns=["level"], problem_type="regression", **LINEAR)
    features, history, logits = features_and_model(made)
    targets = made.splits["train"].targets
    best = max(history, key=lambda entry: entry["val_score"])["strength"]
    ridge = make_pipeline(StandardScaler(), Ridge(alpha=best)).fit(features["train"].astype(float), targets)
    assert logits[:, 0] == pytest.approx(ridge.predict(features["test"].astype(float)), abs=1e-3)
    test = made.splits["test"].targets
    assert np.abs(logits[:, 0] - test).mean() < 0.8 * np.abs(targets.mean() - test).mean()


def test_several_findings_equal_one_fit_each(job, table_set):
    made = job(data=str(table_set), label_columns=["red", "bright"], **LINEAR)
    features, history, logits = features_and_model(made)
    targets = made.splits["train"].targets
    found = to_scores(logits, "multi_label_classification")
    candidates = []
    for strength in chosen_strength(history):
        columns = []
        for column in targets.T:
            pipeline = make_pipeline(StandardScaler(), LogisticRegression(C=1 / strength, tol=1e-8, max_iter=10000))
            columns.append(pipeline.fit(features["train"], column).predict_proba(features["test"])[:, 1])
        candidates.append(np.stack(columns, axis=1))
    assert closest(candidates, found) < 1e-4


def test_encoder_stays_as_it_is_and_the_folder_is_an_ordinary_one(run, encoder_folder, planted):
    from transformers import pipeline

    done = run(**LINEAR)
    assert done.metrics["auroc"] > 0.9
    stored, own = (load_file(folder / "model.safetensors") for folder in (encoder_folder, done.folder))
    encoder = [name for name in own if name.startswith("vit.")]
    assert len(encoder) > 50
    assert all(torch.equal(own[name], stored[name]) for name in encoder)
    assert [set(entry) for entry in done.history] == [{"strength", "val_score"}] * len(done.history)
    classify = pipeline("image-classification", model=str(done.folder))
    row = done.predictions.iloc[0]
    found = {entry["label"]: entry["score"] for entry in classify(str(planted / row["id"]))}
    assert found["amd"] == pytest.approx(row["prob/amd"], abs=1e-5)


def test_the_same_whatever_the_seed(job):
    states = []
    for seed in (0, 1):
        made = job(seed=seed, **LINEAR)
        made.train()
        states.append(made.classifier.model.classifier.weight.detach().clone())
    assert torch.allclose(*states, atol=1e-5)


def test_class_weights_weigh_the_fit(job, tmp_path, planted):
    import shutil

    data = tmp_path / "unbalanced"
    shutil.copytree(planted, data)
    for path in sorted((data / "train" / "amd").glob("*.png"))[6:]:
        path.unlink()
    plain, balanced = job(data=str(data), **LINEAR), job(data=str(data), class_weights="balanced", **LINEAR)
    assert balanced.classifier.model.config.class_weights == pytest.approx([30 / 12, 30 / 48])
    scores = []
    for made in (plain, balanced):
        made.train()
        logits = made.classifier.logits(made.splits["test"].images)
        scores.append(to_scores(logits, "single_label_classification")[:, 0].mean())
    assert scores[1] > scores[0]


@pytest.mark.parametrize("kind", ["vit", "dinov2", "dinov3_vit"])
def test_stock_models(run, stock_folder, kind):
    assert run(model_name_or_path=str(stock_folder(kind)), **LINEAR).metrics["auroc"] > 0.9
