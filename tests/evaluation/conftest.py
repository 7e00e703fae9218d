import numpy as np
import pytest
from scipy.special import expit, softmax


@pytest.fixture
def single_label():
    """(rows, classes, signal, seed) -> labels (N,), softmax probabilities (N, C) that lean to the label."""

    def make(rows: int, classes: int, signal: float = 1.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = np.arange(rows) % classes
        logits = rng.normal(size=(rows, classes))
        logits[np.arange(rows), labels] += signal
        return labels, softmax(logits, axis=1)

    return make


@pytest.fixture
def multi_label():
    """(rows, labels, signal, seed) -> labels (N, C) of 0 and 1, sigmoid probabilities (N, C)."""

    def make(rows: int, classes: int, signal: float = 2.0, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        labels = (rng.random((rows, classes)) < 0.4).astype(int)
        return labels, expit(rng.normal(size=labels.shape) + signal * (labels - 0.5))

    return make
