"""The example study of the paper's ranking: its file and the weights that it names."""

import os
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.study.config import read_settings

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "scripts/studies/ranking.yaml"
WEIGHTS = ROOT / "scripts/studies/ranking_weights.sh"
MODELS = ("retfound", "sl-imagenet", "ssl-imagenet", "ssl-retinal", "simclr", "swav", "dino", "moco_v3")


def test_every_row_of_the_paper_is_a_model():
    study = read_settings(STUDY)
    assert tuple(study.models) == MODELS
    script = WEIGHTS.read_text(encoding="utf-8")
    assert f"for objective in {' '.join(OBJECTIVES)}; do" in script


@pytest.mark.slow
def test_the_ranking_runs_from_its_commands(tmp_path):
    """All rows, four steps of each (the first of a run has a rate of almost 0, so that one would change nothing)."""
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "STEPS": "4", "BATCH": "2", "SIDE": "32", "PATH": path}
    for words in (
        ["bash", str(WEIGHTS), str(tmp_path / "ranking")],
        [sys.executable, str(ROOT / "scripts/study.py"), str(tmp_path / "ranking/ranking.yaml"), "--output_dir",
         str(tmp_path / "study")],
    ):  # fmt: skip
        done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=3600)
        assert done.returncode == 0, done.stderr[-3000:]
    results = pd.read_csv(tmp_path / "study" / "results.csv")
    assert set(results["model"]) == set(MODELS)
    auroc = results[(results["metric"] == "auroc") & (results["set"] == "test")]
    assert len(auroc) == len(MODELS)
    assert (auroc["status"] == "finished").all()
    assert auroc["value"].between(0, 1).all()
