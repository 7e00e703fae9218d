import numpy as np
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.comparisons import compare_seeds, holm, over_seeds
from retfound_hf.evaluation.estimates import Estimate
from retfound_hf.evaluation.thresholds import proportion_interval


def test_the_papers_interval_by_hand():
    # Mean 0.8; squares of the deviations sum to 0.0010, SD = sqrt(0.0010 / 4), SE = SD / sqrt(5).
    found = over_seeds([0.78, 0.79, 0.8, 0.81, 0.82])
    half = 1.96 * (0.001 / 4) ** 0.5 / 5**0.5
    assert (found.value, found.low, found.high) == pytest.approx((0.8, 0.8 - half, 0.8 + half), abs=1e-5)
    assert found.n == 5 and str(found) == "0.800 (0.786 to 0.814)"


def test_few_or_undefined_seeds():
    assert over_seeds([0.7]) == Estimate(0.7, None, None, 1, "single seed")
    assert over_seeds([]).value is None
    assert over_seeds([0.7, None]).value is None
    assert str(over_seeds([0.7, None])) == "undefined"
    assert str(Estimate(-0.1, -0.2, 0.0, 3, "x")) == "−0.100 (−0.200 to 0.000)"


def test_t_test_by_hand():
    # Means 2 and 5, pooled variance 1, standard error sqrt(1/3 + 1/3): t = -3.674 on 4 degrees of freedom.
    found = compare_seeds([1, 2, 3], [4, 5, 6])
    assert found.difference.value == -3
    assert found.p_value == pytest.approx(0.02131, abs=1e-5)
    half = 2.776445 * (2 / 3) ** 0.5
    assert (found.difference.low, found.difference.high) == pytest.approx((-3 - half, -3 + half), abs=1e-5)
    # Differences -3, -2 and -4: standard error sqrt(1/3), t = -5.196 on 2 degrees of freedom.
    paired = compare_seeds([1, 2, 3], [4, 4, 7], paired=True)
    assert paired.p_value == pytest.approx(0.03510, abs=1e-5)


def test_seeds_that_do_not_vary_or_do_not_pair():
    assert compare_seeds([1, 1], [1, 1]).p_value is None
    assert compare_seeds([1], [2]).p_value is None and compare_seeds([1], [2]).difference.value == -1
    assert compare_seeds([1, None], [2, 3]).difference.value is None
    with pytest.raises(RetFoundError, match="3 and 2 values cannot be paired"):
        compare_seeds([1, 2, 3], [1, 2], paired=True)


def test_holm_by_hand():
    # 0.01 x 3, 0.02 x 2, 0.03 x 1 raised to the one before it; None is no comparison.
    assert holm([0.02, None, 0.03, 0.01]) == pytest.approx([0.04, None, 0.04, 0.03])
    assert holm([None]) == [None] and holm([]) == []
    assert holm([0.02, 0.03, float("nan"), None]) == [0.04, 0.04, None, None]


def test_proportions():
    # Wilson 1927 for 8 of 10: 0.4902 to 0.9433 (Newcombe 1998 gives the same method's values).
    found = proportion_interval(8, 10)
    assert (found.low, found.high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    normal = proportion_interval(8, 10, "normal")
    half = 1.96 * (0.8 * 0.2 / 10) ** 0.5
    assert (normal.low, normal.high) == pytest.approx((0.8 - half, min(0.8 + half, 1)), abs=1e-4)
    assert proportion_interval(0, 0).value is None
    assert proportion_interval(0, 20).low == pytest.approx(0, abs=1e-12)
    with pytest.raises(RetFoundError, match="11 of 10 is no share"):
        proportion_interval(11, 10)


def test_coverage_over_seeds_is_what_the_docstring_says():
    rng = np.random.default_rng(0)
    found = [over_seeds(rng.normal(size=5)) for _ in range(4000)]
    assert np.mean([e.low <= 0 <= e.high for e in found]) == pytest.approx(0.88, abs=0.015)
