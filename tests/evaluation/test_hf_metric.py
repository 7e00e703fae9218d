"""`METRICS` as an `evaluate.Metric`."""

import numpy as np
import pytest

from retfound_hf.evaluation.report import compute_metrics, load_metric
from retfound_hf.vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL


@pytest.mark.parametrize("kind", PROBLEM_TYPES)
def test_batches_give_the_metrics_of_all_rows(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    rng = np.random.default_rng(0)
    scores = rng.dirichlet(np.ones(3), 40)
    labels = {
        SINGLE_LABEL: rng.integers(0, 3, 40),
        MULTI_LABEL: rng.integers(0, 2, (40, 3)),
        REGRESSION: rng.normal(size=(40, 3)),
    }[kind]  # fmt: skip
    metric = load_metric(kind, ("a", "b", "c"))
    for rows in (slice(0, 25), slice(25, 40)):
        metric.add_batch(predictions=scores[rows], references=labels[rows])
    assert metric.compute() == pytest.approx(compute_metrics(kind, labels, scores, ("a", "b", "c")))
