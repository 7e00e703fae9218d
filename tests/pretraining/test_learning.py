"""Pretraining learns: a small model's features tell synthetic diseases apart better than those it started with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MODALITIES = ("cfp", "oct")


def stated_margin() -> float:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    return float(re.search(r"lifts the AUROC of a linear probe\s+by at least (0\.\d+)", readme)[1])


def recorded() -> dict:
    return json.loads((ROOT / "scripts/benchmarks/results/pretrain_learning.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_record_has_the_margin_that_the_readme_states(modality):
    curve = recorded()["modalities"][modality]["probe_auroc"]
    assert curve[0][0] == 0
    assert curve[-1][1] - curve[0][1] >= stated_margin()


@pytest.mark.slow
def test_the_probe_rises_by_the_margin(tmp_path):
    """The whole way by the commands, with the budget of the record: half an hour on two cores."""
    words = [str(ROOT / "scripts/benchmarks/pretrain_learning.py"), "--work_dir", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "found")], capture_output=True, text=True, timeout=3 * 3600
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads((tmp_path / "found.json").read_text())["modalities"]
    for modality in MODALITIES:
        assert found[modality]["lift"] >= stated_margin(), found[modality]["probe_auroc"]
        losses = [loss for _, loss in found[modality]["loss"]]
        assert losses[-1] < 0.5 * losses[0]
