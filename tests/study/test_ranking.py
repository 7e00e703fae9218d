"""The example study of the paper's ranking: its file, the weights that it names, and the times that it states."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf import RetFoundConfig
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.study.config import read_settings

ROOT = Path(__file__).parents[2]
STUDY = ROOT / "scripts/studies/ranking.yaml"
WEIGHTS = ROOT / "scripts/studies/ranking_weights.sh"
MODELS = ("retfound", "sl-imagenet", "ssl-imagenet", "ssl-retinal", "simclr", "swav", "dino", "moco_v3")
IMAGES, PUBLISHED_RATE = 904_170, 8 * 75  # photographs; images a second of the published run on 8 A100


def test_every_row_of_the_paper_is_a_model():
    study = read_settings(STUDY)
    assert tuple(model.label for model in study.models) == MODELS
    script = WEIGHTS.read_text(encoding="utf-8")
    assert f"for objective in {' '.join(OBJECTIVES)}; do" in script


def operations(tokens: float, width: int, depth: int) -> float:
    """Of a forward pass through `depth` blocks of `width` with an MLP four times as wide."""
    return 2 * depth * (12 * width**2 * tokens + 2 * tokens**2 * width)


def test_the_stated_hours_follow_from_the_published_rate():
    config = RetFoundConfig.from_preset("retfound-cfp")
    size = {"width": config.hidden_size, "depth": config.num_hidden_layers}
    large, small = operations(1 + 196, **size), operations(1 + 36, **size)  # 224 and 96 pixels
    decoder = operations(1 + 196, config.decoder_hidden_size, config.decoder_num_hidden_layers)
    # Forward passes; what is trained costs two more for the gradients.
    work = {
        "mae": 3 * (operations(1 + 49, **size) + decoder),
        "simclr": 3 * 2 * large,
        "swav": 3 * (2 * large + 6 * small),
        "dino": 3 * (2 * large + 8 * small) + 2 * large,
        "moco_v3": 3 * 2 * large + 2 * large,
    }
    hours = {name: IMAGES * cost / work["mae"] / PUBLISHED_RATE / 3600 for name, cost in work.items()}
    assert 800 * hours["mae"] / 24 == pytest.approx(14, abs=0.1)  # the paper's two weeks
    text = STUDY.read_text(encoding="utf-8")
    assert text.count(f"800 epochs, {800 * hours['mae']:.0f} hours") == 2
    for name in ("simclr", "swav", "dino", "moco_v3"):
        stated = re.search(rf"--objective {name} on .* weights: (\d+) hours per 100 epochs", text)
        assert int(stated[1]) == round(100 * hours[name])


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
