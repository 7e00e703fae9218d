import socket

import numpy as np
import pytest
import torch

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.hf_metric import load_metric
from retfound_hf.evaluation.metrics import compute_metrics

SINGLE, MULTI = "single_label_classification", "multi_label_classification"
NAMES = ["a", "b", "c"]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the network was touched")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "create_connection", refuse)


def files_below(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


def test_batches_give_what_the_function_gives(single_label, tmp_path):
    labels, scores = single_label(1003, 3)
    metric = load_metric(SINGLE, NAMES, cache_dir=str(tmp_path))
    for start in range(0, 1003, 100):
        batch = slice(start, start + 100)
        metric.add_batch(predictions=scores[batch], references=labels[batch])
    found = metric.compute()
    assert found == pytest.approx(compute_metrics(SINGLE, labels, scores, NAMES), abs=1e-6)
    assert not files_below(tmp_path)


def test_tensors_lists_and_single_rows_are_taken(single_label):
    labels, scores = single_label(30, 3)
    expected = pytest.approx(compute_metrics(SINGLE, labels, scores, NAMES), abs=1e-6)
    metric = load_metric(SINGLE, NAMES)
    assert metric.compute(predictions=torch.from_numpy(scores), references=torch.from_numpy(labels)) == expected
    assert metric.compute(predictions=scores.tolist(), references=labels.tolist()) == expected  # earlier rows are gone
    for score, label in zip(scores, labels, strict=True):
        metric.add(prediction=score, reference=label)
    assert metric.compute() == expected
    half = metric.compute(predictions=torch.from_numpy(scores).bfloat16(), references=labels)
    assert half["loss"] == pytest.approx(compute_metrics(SINGLE, labels, scores, NAMES)["loss"], abs=0.01)


def test_multi_label_and_regression(multi_label):
    labels, scores = multi_label(200, 3)
    expected = compute_metrics(MULTI, labels, scores, NAMES)
    # Trainer hands over multi-label references as floats.
    found = load_metric(MULTI, NAMES).compute(predictions=scores, references=labels.astype(np.float32))
    assert found == pytest.approx(expected, abs=1e-6)
    ages = np.random.default_rng(0).normal(60, 10, size=200)
    expected = compute_metrics("regression", ages, ages + 1, ["age"])
    for shape in ((200,), (200, 1)):
        found = load_metric("regression", ["age"]).compute(
            predictions=(ages + 1).reshape(shape), references=ages.reshape(shape)
        )
        assert found == pytest.approx(expected, rel=1e-6)


def test_undefined_is_none(single_label):
    _, scores = single_label(20, 3)
    with pytest.warns(UserWarning, match="undefined"):
        assert load_metric(SINGLE, NAMES).compute(predictions=scores, references=np.zeros(20, int))["auroc"] is None


def test_no_file_stays_not_even_after_an_error(single_label, tmp_path, monkeypatch):
    labels, scores = single_label(20, 3)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    metric = load_metric(SINGLE, NAMES)
    for _ in range(2):
        metric.add_batch(predictions=scores, references=labels)
        assert files_below(tmp_path)
        metric.compute()
        assert not list(tmp_path.iterdir())
    metric = load_metric(SINGLE, NAMES, cache_dir=str(tmp_path))
    with pytest.raises(RetFoundError, match="label 9 is not accepted"):
        metric.compute(predictions=scores, references=labels + 9)
    assert not files_below(tmp_path)
    assert metric.compute(predictions=scores, references=labels)["auroc"] > 0.5


def test_two_metrics_share_a_folder(single_label, tmp_path):
    labels, scores = single_label(40, 3)
    first, second = (load_metric(SINGLE, NAMES, cache_dir=str(tmp_path)) for _ in range(2))
    first.add_batch(predictions=scores, references=labels)
    second.add_batch(predictions=scores[:30], references=labels[:30])
    assert first.compute() == pytest.approx(compute_metrics(SINGLE, labels, scores, NAMES), abs=1e-6)
    assert second.compute() == pytest.approx(compute_metrics(SINGLE, labels[:30], scores[:30], NAMES), abs=1e-6)


def test_bad_input_is_refused(single_label):
    labels, scores = single_label(20, 3)
    metric = load_metric(SINGLE, NAMES)
    with pytest.raises(RetFoundError, match="20 predictions for 19 references; give one per row"):
        metric.add_batch(predictions=scores, references=labels[1:])
    with pytest.raises(RetFoundError, match=r"predictions have shape \(20, 2\); \(N, 3\) fits"):
        metric.add_batch(predictions=scores[:, :2], references=labels)
    with pytest.raises(RetFoundError, match="needs both predictions and references"):
        metric.add_batch(predictions=scores)
    with pytest.raises(RetFoundError, match="num_process > 1 needs cache_dir"):
        load_metric(SINGLE, NAMES, num_process=2)
    with pytest.raises(RetFoundError, match="problem_type='text' is not accepted"):
        load_metric("text", NAMES)
