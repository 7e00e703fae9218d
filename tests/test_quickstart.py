"""The quickstart as a user runs it, and the README's figure for it."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

ROOT = Path(__file__).parents[1]
# Other machines and versions round differently; a chance result would be 0.3 away.
MARGIN = 0.03


def quickstart(out: Path, patients: int) -> str:
    """Run the script to its end; what it printed."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"SKIP_SETUP": "1", "PATH": path, "OMP_NUM_THREADS": "2", "NUM_PATIENTS": str(patients)}
    words = ["bash", str(ROOT / "scripts" / "quickstart.sh"), str(out)]
    done = subprocess.run(
        words, env={**os.environ, **own}, cwd=out.parent, capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("quickstart") / "out"
    return out, quickstart(out, 40)


STATED = re.compile(
    r"The test AUROC is \*\*(0\.\d+)\*\*.*?reach\s+\*\*(0\.\d+)\*\*.*?sets: (0\.\d+) and (0\.\d+)", re.S
)


@pytest.mark.slow
def test_the_readme_says_the_figure_that_comes_out(tmp_path):
    quickstart(tmp_path / "out", 200)
    stated = float(STATED.search((ROOT / "README.md").read_text())[1])
    found = json.loads((tmp_path / "out" / "classifier" / "metrics.json").read_text())["auroc"]
    assert abs(found - stated) < MARGIN


def test_the_readme_says_what_was_measured():
    record = json.loads((ROOT / "scripts/benchmarks/results/mini_weights.json").read_text())
    first, rows = record["auroc"][0], record["auroc"]
    measured = [first["learned"], first["random"], record["learned_mean"], record["random_mean"]]
    assert [float(text) for text in STATED.search((ROOT / "README.md").read_text()).groups()] == [
        round(value, 3) for value in measured
    ]
    assert min(row["learned"] - row["random"] for row in rows) > 0
    assert 1001 not in {row["seed"] for row in rows} and "--seed 1001" in record["pretraining"]["images"]


def test_one_page_holds_the_pictures(finished):
    out, _ = finished
    page = (out / "index.html").read_text(encoding="utf-8")
    assert not re.findall(r"(?:src|href)=\"(?!data:|#)[^\"]*", page)
    for name, pictures in (("performance", 0), ("plots", 2), ("maps", 4), ("reconstructions", 4)):
        section = re.search(rf'<section id="{name}">(.*?)</section>', page, re.S)[1]
        assert section.count("<img") == pictures


def test_evaluation_repeats_the_metrics(finished):
    out, _ = finished
    assert (out / "evaluation" / "metrics.json").read_bytes() == (out / "classifier" / "metrics.json").read_bytes()


def test_what_is_printed_leads_on(finished):
    out, printed = finished
    for path in re.findall(rf"{re.escape(str(out))}[^\s:]+", printed):
        assert Path(path).exists(), path
    assert "auroc" in printed
    for command in re.findall(r"scripts/\w+\.py", printed):
        assert (ROOT / command).is_file()


def test_features_are_there_for_every_test_image(finished):
    out, _ = finished
    features = pd.read_parquet(out / "features" / "features.parquet")
    images = [path for path in (out / "data" / "test").rglob("*") if path.is_file()]
    assert len(features) == len(images)
    assert features["vector"].map(len).eq(192).all()


def test_an_existing_folder_is_not_touched(finished):
    out, _ = finished
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "quickstart.sh"), str(out)],
        env={**os.environ, "SKIP_SETUP": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "exists" in done.stderr
