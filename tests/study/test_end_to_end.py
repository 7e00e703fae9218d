"""Whole studies on images: what was planted is found, what was not is not; the shipped example."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from retfound_hf import RetFoundForPreTraining
from retfound_hf.study.results import read_study
from retfound_hf.study.runner import StudyArguments, run_study

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_a_blind_model_is_found_and_a_twin_is_not(make_model, make_set, tmp_path):
    """`Blind` gets nothing of the pixels; `Twin` is `Seeing` with other random weights."""
    for seed, name in enumerate(("Seeing", "Twin", "Blind")):
        make_model(tmp_path / name, seed)
    blind = RetFoundForPreTraining.from_pretrained(tmp_path / "Blind")
    with torch.no_grad():
        blind.vit.embeddings.patch_embeddings.projection.weight.zero_()
    blind.save_pretrained(tmp_path / "Blind")
    make_set(tmp_path / "data", {"train": 40, "val": 20, "test": 80}, seed=3)
    path = tmp_path / "study.yaml"
    content = {
        "models": ["Seeing", "Twin", "Blind"], "methods": ["linear"], "data": ["data"], "fractions": [0.5],
        "seeds": [0, 1, 2],
        "finetune": {"dataloader_num_workers": 0, "cache_dir": str(tmp_path / "cache")}, "metrics": ["auroc"],
    }  # fmt: skip
    path.write_text(yaml.safe_dump(content))
    run_study(StudyArguments(str(path), str(tmp_path / "out"), jobs=2))
    found = read_study(tmp_path / "out").comparisons.query("set == 'test'").set_index("other")
    assert found.loc["Blind", "p_holm"] < 0.01
    assert found.loc["Blind", "low"] > 0.2
    assert found.loc["Twin", "p_holm"] > 0.05
    assert found["best"].to_dict() == {"Twin": True, "Blind": False}


@pytest.mark.slow
def test_the_shipped_example_runs_as_the_readme_says(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(python scripts/make_synthetic\.py study-data.*?)```", readme, re.S)[1]
    for line in block.replace("\\\n", " ").strip().splitlines():
        line = line.replace("scripts/", f"{ROOT}/scripts/").replace("python ", f"{sys.executable} ", 1)
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
    found = read_study(tmp_path / "my-study")
    assert len(found.finished) == found.planned == 40
    assert set(found.results["set"]) == {"val", "test", "Other clinic"}
    assert found.summary["mean"].between(0, 1).all()
    told = found.comparisons.query("data == 'Fundus diagnosis' and fraction == 1 and metric == 'auroc'")
    assert set(told["set"]) == {"test", "Other clinic"}
    assert (told["low"] > 0).all()  # 224 px are ahead of 48, which hide small lesions
    seconds = sum(job.facts["cpu_seconds"] for job in found.finished)
    assert seconds / 2 < 540  # on two cores, with a minute to spare for imports and tables
