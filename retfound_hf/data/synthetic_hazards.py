"""Severities of a sign in a population, and the hazards that go with them."""

from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np

HEALTHY, SPARED_EYE = 0.4, 0.15  # shares of patients without the sign, and of the others' eyes
RATE_YEARS = 3.0


def severities(rng: np.random.Generator) -> tuple[float, float]:
    """Severity of the sign in each eye, 0 where there is none; fellow eyes are alike."""
    healthy, common, noise, spared = rng.random(), rng.uniform(0.2, 1), rng.normal(0, 0.08, 2), rng.random(2)
    if healthy < HEALTHY:
        return 0.0, 0.0
    both = np.where(spared < SPARED_EYE, 0.0, np.clip(common + noise, 0.05, 1))
    return float(both[0]), float(both[1])


@cache
def population() -> np.ndarray:
    """Severities (4000 patients, 2 eyes), for what holds of the distribution."""
    rng = np.random.default_rng(0)
    return np.array([severities(rng) for _ in range(4000)])


def scales() -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """Functions that bring an eye's severity, and the mean of both eyes', to mean 0 and standard deviation 1."""
    eyes, both = population().ravel(), population().mean(axis=1)
    return (lambda value: (value - eyes.mean()) / eyes.std()), (lambda value: (value - both.mean()) / both.std())


def base_hazard(effect: float, event_rate: float, values: np.ndarray, ages: np.ndarray | float = 0.0) -> float:
    """The yearly hazard at mean severity that gives `event_rate` in three years over a whole population.

    Args:
        effect: logarithm of the hazard ratio for one unit of `values`, the standardised severities of the population.
        ages: their further logarithms of hazard ratios, by age.
    """
    from scipy.optimize import brentq

    ratio = np.exp(effect * values + ages)

    def excess(log_hazard: float) -> float:
        return float((1 - np.exp(-np.exp(log_hazard) * ratio * RATE_YEARS)).mean() - event_rate)

    return float(np.exp(brentq(excess, -40, 10)))
