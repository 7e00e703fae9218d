import warnings

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as reference

from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.metrics import compute_metrics, regression_metrics


def test_by_hand():
    # Errors 1, 0, -1, 2: squares sum to 6; labels 1 2 3 4 have a total sum of squares of 5.
    found = regression_metrics([1, 2, 3, 4], [2, 2, 2, 6])
    assert found["mae"] == 1 and found["mse"] == found["loss"] == 1.5
    assert found["rmse"] == pytest.approx(1.5**0.5) and found["r2"] == pytest.approx(1 - 6 / 5)
    assert found["pearson"] == pytest.approx(6 / (5 * 12) ** 0.5)
    assert found["spearman"] == pytest.approx(3 / (5 * 3) ** 0.5)  # ranks 1 2 3 4 and 2 2 2 4


def test_equals_scikit_learn_and_scipy_per_target():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(50, 2))
    predictions = np.round(labels + rng.normal(size=(50, 2)), 1)
    found = compute_metrics("regression", labels, predictions, ["age", "bmi"])
    for column, name in enumerate(("age", "bmi")):
        pair = labels[:, column], predictions[:, column]
        assert found[f"mae/{name}"] == pytest.approx(reference.mean_absolute_error(*pair))
        assert found[f"r2/{name}"] == pytest.approx(reference.r2_score(*pair))
        assert found[f"pearson/{name}"] == pytest.approx(stats.pearsonr(*pair).statistic)
        assert found[f"spearman/{name}"] == pytest.approx(stats.spearmanr(*pair).statistic)
    assert found["rmse"] == pytest.approx(reference.root_mean_squared_error(labels, predictions))
    assert found["r2"] == pytest.approx(reference.r2_score(labels, predictions))


def test_one_target_has_the_same_metrics_as_a_vector_and_as_a_column():
    labels, predictions = np.arange(5.0), np.arange(5.0)[::-1]
    vector = compute_metrics("regression", labels, predictions, ["age"])
    assert compute_metrics("regression", labels, predictions[:, None], ["age"]) == vector
    assert set(vector) == {"mae", "mse", "rmse", "r2", "pearson", "spearman", "loss"}
    assert (vector["pearson"], vector["spearman"]) == pytest.approx((-1, -1))


@pytest.mark.parametrize("labels", [np.full(7, 0.1), np.array([3.0])])
def test_labels_that_do_not_vary_leave_correlations_undefined(labels):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = regression_metrics(labels, labels + np.arange(len(labels)), ["age"])
    assert [str(warning.message) for warning in caught] == [
        "r2, pearson, spearman are undefined for age: its labels or predictions do not vary"
    ]
    assert {name for name, value in found.items() if value is None} == {"r2", "pearson", "spearman"}


def test_constant_predictions_have_an_r2_but_no_correlation():
    with pytest.warns(UserWarning, match="pearson, spearman are undefined"):
        found = regression_metrics([1.0, 2.0, 3.0], [2.0, 2.0, 2.0])
    assert found["r2"] == 0 and found["pearson"] is None


def test_bad_input_is_refused():
    with pytest.raises(RetFoundError, match=r"labels have shape \(3,\) and predictions \(2,\)"):
        regression_metrics([1, 2, 3], [1, 2])
    with pytest.raises(RetFoundError, match="labels hold 1 values that are NaN"):
        regression_metrics([1, np.nan], [1, 2])
    with pytest.raises(RetFoundError, match=r"1 target names .* for 2 targets"):
        regression_metrics(np.ones((3, 2)), np.ones((3, 2)), ["age"])
