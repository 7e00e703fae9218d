"""The comparison of models finds what is there, and what is not there in about 5% of all cases."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from retfound_hf.evaluation.comparisons import compare_over_both
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.study.config import Study
from retfound_hf.study.results import JobResult, with_t_over_seeds
from retfound_hf.study.tables import resample, summarise
from retfound_hf.vocabulary import SINGLE_LABEL


@dataclass(frozen=True)
class World:
    """Two models that are trained with some seeds and tested on patients with two images each.

    A model's score of an image is `signal` for the ill, plus noise that all models share (`shared`), noise of the
    model that all its seeds share (`own`), and noise of each seed. The signal of a seed varies by `training`.
    """

    signal: tuple[float, float] = (1.0, 1.0)
    seeds: int = 3
    training: float = 0.0
    own: float = 0.7
    shared: float = 0.7
    patients: int = 100

    def draw(self, rng: np.random.Generator) -> dict[str, list[Predictions]]:
        """Predictions of both models, by model and seed."""
        ill = np.arange(self.patients) % 2
        rows = np.repeat(np.arange(self.patients), 2)

        def noise(scale: float) -> np.ndarray:
            return scale * (rng.normal(size=self.patients)[rows] + rng.normal(size=len(rows))) / 2**0.5

        shared = noise(self.shared)
        found = {}
        for model, signal in zip("AB", self.signal, strict=True):
            own = noise(self.own)
            found[model] = []
            for _ in range(self.seeds):
                strength = signal + self.training * rng.normal()
                logits = strength * (2 * ill[rows] - 1) + shared + own + noise(0.3)
                probability = 1 / (1 + np.exp(-logits))
                scores = np.stack([1 - probability, probability], axis=1)
                patients = rows.astype(str)
                found[model].append(
                    Predictions(None, scores, ill[rows], ("healthy", "ill"), SINGLE_LABEL, patients=patients)
                )
        return found


def compare(world: World, seed: int, resamples: int = 200, metric: str = "auroc"):
    """Summary and comparisons of a study that came out as `world` draws it."""
    return compared(world.draw(np.random.default_rng(seed)), resamples, metric)


def compared(predictions: dict[str, list[Predictions]], resamples: int = 200, metric: str = "auroc"):
    """Summary and comparisons of models of such predictions."""
    study = Study(
        name="simulation", models={name: name for name in predictions}, methods=["full"], data={"D": "d"},
        fractions=[1.0], seeds=list(range(len(predictions["A"]))), metrics=[metric],
        reporting={"resamples": resamples},
    )  # fmt: skip
    jobs, table = [], {}
    for model, found in predictions.items():
        for number, one in enumerate(found):
            job = JobResult(f"{model}{number}", "D", model, "full", 1.0, number, "finished")
            jobs.append(job)
            metrics = resample(one, study.metrics, resamples)
            table |= {(job.id, name): metrics for name in ("val", "test")}
    return summarise(study, jobs, table)


def rate(world: World, repeats: int, column: str = "p_value") -> float:
    """Share of studies in which the two models differ at 5%."""
    found = [compare(world, seed)[1][column].iloc[0] for seed in range(repeats)]
    return float(np.mean([value < 0.05 for value in found]))


EQUAL = {
    "one seed": World(seeds=1),
    "seeds alike": World(training=0.0),
    "seeds differ": World(training=0.3, own=0.3),
    "seeds decide": World(signal=(0.5, 0.5), training=0.15, own=0.1, shared=0.5, seeds=5),
}


def test_equal_models_seldom_differ():
    """The quick form of the slow test below: 40 studies, of which 2 should find a difference and 7 hardly ever do."""
    assert sum(rate(world, 10) * 10 for world in EQUAL.values()) <= 6


def test_a_planted_difference_is_found():
    assert rate(World(signal=(1.3, 0.5), seeds=1), 10) >= 0.9
    assert rate(World(signal=(1.5, 0.3), training=0.2), 10) >= 0.8


@pytest.mark.slow
@pytest.mark.parametrize("name", EQUAL)
def test_equal_models_differ_in_about_5_percent_of_studies(name):
    """Of 1,000 studies 5% +- 2%, three standard errors; several seeds are a little on the safe side.

    The noise of a seed is in both of the variances that are added.
    """
    assert 0.03 <= rate(EQUAL[name], 1000) <= 0.07


@pytest.mark.slow
def test_seeds_taken_for_patients_find_differences_that_are_not_there():
    """The paper's t-test over seeds knows nothing of the patients: where models differ by those, it is wrong."""
    assert rate(EQUAL["seeds alike"], 200, "p_seeds") > 0.3


def test_variances_over_patients_and_seeds_are_added():
    drawn = np.random.default_rng(0).normal(0.02, 0.03, 100_000)
    first, second = [0.80, 0.84, 0.82], [0.79, 0.80, 0.81]
    found = compare_over_both(first, second, drawn, patients=200)
    seeds = (np.var(first, ddof=1) + np.var(second, ddof=1)) / 3
    error = (0.03**2 + seeds) ** 0.5
    assert found.difference.value == pytest.approx(0.02)
    assert found.difference.high - found.difference.low == pytest.approx(2 * 1.97 * error, rel=0.01)
    paired = compare_over_both(first, second, drawn, patients=200, paired=True)
    error = (0.03**2 + np.var([0.01, 0.04, 0.01], ddof=1) / 3) ** 0.5
    assert paired.difference.high - paired.difference.low == pytest.approx(2 * 1.98 * error, rel=0.01)


def test_where_only_seeds_vary_it_is_their_t_test():
    first, second = [0.80, 0.84, 0.82, 0.81], [0.79, 0.80, 0.81, 0.78]
    found = compare_over_both(first, second, np.zeros(1000), patients=50, paired=True)
    expected = stats.ttest_rel(first, second)
    assert found.p_value == pytest.approx(expected.pvalue)
    assert found.difference.low == pytest.approx(expected.confidence_interval().low)


def test_where_nothing_varies_there_is_no_test():
    found = compare_over_both([0.8, 0.8], [0.8, 0.8], np.zeros(100), patients=50)
    assert (found.p_value, found.difference.low, found.difference.value) == (None, None, 0.0)


def test_holm_is_over_all_competitors_and_the_best_one_is_named():
    summary, comparisons = compare(World(signal=(1.5, 0.3)), seed=0)
    assert list(comparisons["p_holm"]) == list(comparisons["p_value"])  # one comparison: nothing to correct
    row = summary[(summary["set"] == "test") & (summary["model"] == "A") & (summary["metric"] == "auroc")].iloc[0]
    assert row["competitor"] == "B"
    assert row["difference_low"] < row["difference"] < row["difference_high"]
    assert summary.loc[summary["model"] == "B", "competitor"].isna().all()


def test_of_equal_competitors_the_first_is_the_best_and_no_row_is_doubled():
    predictions = World(seeds=2).draw(np.random.default_rng(0))
    predictions["C"] = predictions["B"]
    summary, comparisons = compared(predictions)
    assert not summary.duplicated(["data", "set", "method", "fraction", "model", "metric"]).any()
    own = comparisons[(comparisons["set"] == "test") & (comparisons["metric"] == "auroc")]
    assert dict(zip(own["other"], own["best"], strict=True)) == {"B": True, "C": False}
    assert set(summary.loc[summary["competitor"].notna(), "competitor"]) == {"B"}


def test_cases_of_one_class_have_no_auroc_to_compare():
    predictions = World(seeds=2).draw(np.random.default_rng(0))
    alike = {model: [replace(one, targets=np.ones_like(one.targets)) for one in found]
             for model, found in predictions.items()}  # fmt: skip
    summary, comparisons = compared(alike)
    row = comparisons[comparisons["metric"] == "auroc"].iloc[0]
    assert row[["difference", "low", "high", "p_value", "p_holm", "p_seeds"]].isna().all() and not row["best"]
    assert summary["mean"].isna().all()


@pytest.mark.parametrize(("metric", "resamples"), [("ece", 200), ("auroc", 0)])
def test_where_no_patients_are_drawn_nothing_is_said_of_other_patients(metric, resamples):
    """The difference stands, with what the seeds alone say under its own name."""
    summary, comparisons = compare(World(training=0.2), 0, resamples, metric)
    assert comparisons[["low", "high", "p_value", "p_holm"]].isna().all(axis=None)
    assert comparisons["difference"].notna().all() and comparisons["p_seeds"].between(0, 1).all()
    own = summary[summary["metric"] == metric]
    assert own[["low", "high", "difference_low", "p_value"]].isna().all(axis=None)
    assert (own["seeds_low"] < own["mean"]).all()


def test_a_summary_of_before_gets_the_interval_of_students_t():
    """Its interval over seeds was the paper's; one seed has neither."""
    summary, _ = compare(World(training=0.2), 0, 200)
    old = summary.drop(columns=["seeds_low", "seeds_high"])
    old = old.rename(columns={"paper_low": "seeds_low", "paper_high": "seeds_high"})
    pd.testing.assert_frame_equal(with_t_over_seeds(old)[list(summary)], summary)
