"""Coverage of 95% intervals with few patients of a class, and how often equal models seem to differ.

python scripts/benchmarks/coverage.py --sets 1000 --out scripts/benchmarks/results/coverage.json

Patients have two eyes; a quarter of the ill have one healthy eye. Scores are normal, with an effect of the patient.
Only samples with two patients of either class count. Cells that the file holds for as many samples are kept, with the
revision that they are of.
"""

import argparse
import itertools
from typing import Any

import numpy as np
from scipy.special import expit
from scipy.stats import norm

from retfound_hf.evaluation.bootstrap import rarer_side
from retfound_hf.evaluation.comparisons import compare_aurocs
from retfound_hf.evaluation.intervals import find_intervals
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.files import read_json, write_json
from retfound_hf.record import git_revision, hardware, versions
from retfound_hf.vocabulary import SINGLE_LABEL

PATIENTS, PREVALENCES, CORRELATIONS, AUROCS = (30, 100, 300, 1000), (0.02, 0.05, 0.5), (0.2, 0.9), (0.6, 0.8, 0.97)
METRICS = ("auroc", "balanced_accuracy", "accuracy")


def draw(
    rng: np.random.Generator, patients: int, prevalence: float, correlation: float, auroc: float, models: int = 1
) -> list[Predictions]:
    """Predictions of models that are equally good, whose scores correlate by 0.7 within outcomes."""
    shift = 2**0.5 * norm.ppf(auroc)
    eye = np.repeat(np.arange(patients), 2)
    ill = rng.random(patients) < prevalence
    truth = ill[eye]
    spared = np.flatnonzero(ill & (rng.random(patients) < 0.25))
    truth[2 * spared + rng.integers(2, size=len(spared))] = False

    def noise() -> np.ndarray:
        own = rng.normal(size=patients)[eye]
        return correlation**0.5 * own + (1 - correlation) ** 0.5 * rng.normal(size=2 * patients)

    shared, found = noise(), []
    for _ in range(models):
        score = shared if models == 1 else 0.7**0.5 * shared + 0.3**0.5 * noise()
        positive = expit(score + shift * truth - shift / 2)
        scores = np.c_[1 - positive, positive]
        found.append(Predictions(None, scores, truth.astype(int), ("no", "yes"), SINGLE_LABEL, eye))
    return found


def coverage(sets: int, seed: int, *cell: Any) -> dict[str, float]:
    """Share of samples whose intervals hold the true value, and of equal models that `compare_aurocs` tells apart."""
    *_, auroc = cell
    rng, held, alarms = np.random.default_rng(seed), {name: [] for name in METRICS}, []
    recall = float(norm.cdf(2**0.5 * norm.ppf(auroc) / 2))
    true = {"auroc": auroc, "balanced_accuracy": recall, "accuracy": recall}
    for _ in range(sets):
        first, second = draw(rng, *cell, models=2)
        if rarer_side(first.truth[:, 1:], first.patients) < 2:
            continue
        for name, estimate in find_intervals(first, first.values(METRICS), 100, 0).items():
            if estimate.interval is not None:
                held[name].append(estimate.low <= true[name] <= estimate.high)
        test = compare_aurocs(first.truth[:, 1], first.scores[:, 1], second.scores[:, 1], first.patients)
        alarms.append(test.p_value is not None and test.p_value < 0.05)
    rates = {name: round(float(np.mean(values)), 4) for name, values in held.items() if values}
    return {"samples": len(alarms), **rates, "false_alarms_auroc": round(float(np.mean(alarms)), 4)} if alarms else {}


def main() -> None:
    """Simulate every cell that the file lacks, and write the rates."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000, help="samples of each cell")
    parser.add_argument("--out", required=True, help="JSON file")
    args = parser.parse_args()
    what = "share of samples whose 95% interval holds the true value; share of equal models told apart by AUROC"
    names, before = ("patients", "prevalence", "correlation", "auroc"), read_json(args.out, absent={})
    facts = {"what": what, "sets": args.sets, "hardware": hardware(), "versions": versions()}
    facts["git_revision"] = git_revision()
    done = {
        tuple(row[name] for name in names): {"git_revision": before["git_revision"], **row}
        for row in before.get("cells", ()) if before["sets"] == args.sets
    }  # fmt: skip
    for seed, cell in enumerate(itertools.product(PATIENTS, PREVALENCES, CORRELATIONS, AUROCS)):
        if cell not in done:
            row = dict(zip(names, cell, strict=True)) | {"held": coverage(args.sets, seed, *cell)}
            done[cell] = {"git_revision": facts["git_revision"], **row}
            print(done[cell], flush=True)
            write_json(args.out, facts | {"cells": list(done.values())})


if __name__ == "__main__":
    main()
