"""Pretraining learns: a small model's features tell synthetic diseases apart better than those it started with."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from retfound_hf.pretraining.objectives import OBJECTIVES

ROOT = Path(__file__).parents[2]
MODALITIES = ("cfp", "oct")


README = (ROOT / "retfound_hf" / "pretraining" / "README.md").read_text(encoding="utf-8")
PROSE = " ".join(README.split())


def stated_margin(modality: str) -> float:
    said = re.search(r"lifts the AUROC of a linear probe by at least (.*?) over the same model untrained", PROSE)
    return float(re.search(rf"(0\.\d+)\s+\({modality.upper()}\)", said[1])[1])


def recorded() -> dict:
    return json.loads((ROOT / "scripts/benchmarks/results/pretrain_learning.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("modality", MODALITIES)
def test_the_record_has_the_margin_that_the_readme_states(modality):
    curve = recorded()["modalities"][modality]["probe_auroc"]
    assert curve[0][0] == 0
    assert curve[-1][1] - curve[0][1] >= stated_margin(modality)


def test_the_table_is_the_record():
    table = re.search(r"<!-- learning -->(.*?)<!-- /learning -->", README, re.S)[1]
    for modality in MODALITIES:
        cells = re.search(rf"^\| {modality.upper()} \|(.*)\|$", table, re.M)[1].split("|")
        aurocs = [auroc for _, auroc in recorded()["modalities"][modality]["probe_auroc"]]
        assert [float(cell) for cell in cells] == pytest.approx(aurocs, abs=0.0006)


def test_what_is_said_of_default_photographs_is_the_record():
    record = json.loads((ROOT / "scripts/benchmarks/results/pretrain_lift.json").read_text(encoding="utf-8"))
    last = [entry["lift_ci95"] for entry in record["models"]["checkpoint-738"]]
    said = re.search(r"AUROC of retinopathy fell by (0\.\d+) to (0\.\d+) in 9 epochs", PROSE)
    ends = [-end for entry in last for end in entry["auroc/retinopathy"]]
    assert [float(end) for end in said.groups()] == pytest.approx([min(ends), max(ends)], abs=6e-3)
    assert all(entry["auroc/glaucoma"][0] < 0 < entry["auroc/glaucoma"][1] for entry in last)
    assert f"{record['images']['test']:,} test images" in PROSE


def recorded_objectives() -> dict:
    return json.loads((ROOT / "scripts/benchmarks/results/pretrain_objectives.json").read_text(encoding="utf-8"))


def stated_margins() -> tuple[float, float]:
    """Of every objective, and of masked autoencoding."""
    said = re.search(
        r"Every objective lifts the AUROC of the linear probe by at least (0\.\d+), "
        r"masked autoencoding by at least (0\.\d+)",
        PROSE,
    )
    return float(said[1]), float(said[2])


def assert_all_learned(record: dict) -> None:
    found, (of_all, of_mae) = record["objectives"], stated_margins()
    assert found.keys() == OBJECTIVES.keys()
    assert {name: entry["lift"] for name, entry in found.items() if entry["lift"] < of_all} == {}
    assert found["mae"]["lift"] >= of_mae
    assert len({entry["probe_auroc"][0][1] for entry in found.values()}) == 1, "all start from the same weights"
    spreads = {name: entry["signs"]["embedding_spread"] for name, entry in found.items() if name != "mae"}
    assert min(spreads.values()) > 0.2, spreads


def test_every_objective_has_the_margin_that_the_readme_states():
    assert_all_learned(recorded_objectives())


def test_the_table_of_objectives_is_the_record():
    record, table = recorded_objectives(), re.search(r"<!-- objectives -->(.*?)<!-- /objectives -->", README, re.S)[1]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.strip().splitlines()[2:]]
    assert [name.strip("`") for name, *_ in rows] == list(record["objectives"])
    for name, *cells in rows:
        entry = record["objectives"][name.strip("`")]
        aurocs = [auroc for _, auroc in entry["probe_auroc"]]
        assert [float(cell) for cell in cells[:-2]] == pytest.approx(aurocs, abs=6e-4)
        assert float(cells[-2]) == pytest.approx(entry["images_per_cpu_second"], abs=0.51)
        assert float(cells[-1]) == pytest.approx(entry["peak_gb"], abs=0.051)
    assert f"{record['test_images']} test" in PROSE


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
        assert found[modality]["lift"] >= stated_margin(modality), found[modality]["probe_auroc"]
        losses = [loss for _, loss in found[modality]["loss"]]
        assert losses[-1] < 0.5 * losses[0]


@pytest.mark.slow
def test_every_objective_lifts_the_probe(tmp_path):
    """The whole way by the commands, with the budget of the record: half an hour on one core."""
    words = [str(ROOT / "scripts/benchmarks/pretrain_objectives.py"), "--work_dir", str(tmp_path / "work")]
    done = subprocess.run(
        [sys.executable, *words, "--out", str(tmp_path / "found.json")], capture_output=True, text=True, timeout=7200
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert_all_learned(json.loads((tmp_path / "found.json").read_text()))
