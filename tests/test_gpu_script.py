"""The script that waits for a GPU, at toy size on a CPU, so that it still runs when there is one."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STEPS = ("correct", "mae", "finetune", "loop", "embed", "objectives", "maps")


@pytest.fixture
def gpu(monkeypatch):
    """The module at toy size."""
    monkeypatch.setenv("TOY", "1")
    monkeypatch.delitem(sys.modules, "gpu", raising=False)
    module = importlib.import_module("gpu")
    yield module
    module.free()
    sys.modules.pop("gpu")


def lines_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


def run(gpu, step: str, folder: Path) -> list[dict]:
    """Lines of a step; all that it checks holds, and nothing in it failed."""
    gpu.STEPS[step](gpu.Results(step, folder))
    lines = [line for line in lines_of(folder) if line["step"] == step]
    assert lines and not [line for line in lines if "error" in line or line.get("holds") is False]
    return lines


def test_a_step_appends_its_lines(gpu, tmp_path):
    (tmp_path / "results.jsonl").write_text('{"step": "before"}\n')
    (line,) = run(gpu, "maps", tmp_path)
    assert line["passes"] > 0
    assert lines_of(tmp_path)[0] == {"step": "before"}
    assert set(STEPS) == set(gpu.STEPS)


def test_a_way_that_fails_is_a_line_and_not_the_end(gpu, tmp_path):
    def broken():
        raise MemoryError("none left")

    results = gpu.Results("any", tmp_path)
    speeds = gpu.turns(results, {"broken": broken, "works": lambda: lambda: None}, 4)
    assert set(speeds) == {"works"} and speeds["works"] > 0
    assert [line["error"] for line in lines_of(tmp_path) if line["what"] == "broken"] == ["MemoryError: none left"] * 2


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS[:-1])
def test_every_step_runs(gpu, tmp_path, step):
    if step == "objectives":
        pytest.importorskip("lightly")
    lines = run(gpu, step, tmp_path)
    checks = [line for line in lines if "holds" in line]
    assert len(checks) > 8 if step == "correct" else any("ratio" in line or "seconds" in line for line in lines)


@pytest.mark.slow
def test_the_script_runs_the_chosen_steps(tmp_path):
    environment = {**os.environ, "TOY": "1", "STEPS": "maps", "PYTHON": sys.executable}
    script = ROOT / "scripts/benchmarks/gpu.sh"
    subprocess.run(["bash", str(script), str(tmp_path)], env=environment, check=True, timeout=300)
    assert [line["what"] for line in lines_of(tmp_path)] == ["machine", "relevance map"]
