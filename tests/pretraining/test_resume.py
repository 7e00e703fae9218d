"""A run that is killed and taken up again is the run that was never killed, to the last bit."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.arguments import DataArguments, ModelArguments, PretrainingArguments
from retfound_hf.pretraining.data import Position, make_loader
from retfound_hf.pretraining.pretrain import run as pretrain

STEPS, KILLED_AT = 30, 18
# 12 steps an epoch; the checkpoint of step 15 lies within an epoch and between two log lines.
SETTINGS = {
    "max_steps": STEPS, "per_device_train_batch_size": 16, "learning_rate": 3e-3, "warmup_steps": 6,
    "logging_steps": 4, "save_steps": 5, "save_total_limit": 99,
}  # fmt: skip
# A real process that kills its whole group before step 18, between two log lines and two checkpoints.
KILLED = f"""
import multiprocessing, os, signal, sys
from retfound_hf.pretraining.pretrain import main
from retfound_hf.pretraining.loop import Loop
step = Loop.step
def step_or_die(self, batches):
    if self.position.step == {KILLED_AT}:
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        os.killpg(0, signal.SIGKILL)
    step(self, batches)
Loop.step = step_or_die
main(sys.argv[1:])
"""


@pytest.fixture(scope="module")
def start(shards, model_folder, cache_dir):
    """Runs pretraining in this process; keyword arguments override the settings."""

    def go(folder: Path, workers: int = 0, preview_steps: int = 0, data: Path = shards, **options) -> Path | None:
        return pretrain(
            ModelArguments(model_name_or_path=str(model_folder)),
            DataArguments(train_data=[str(data)], cache_dir=str(cache_dir), preview_steps=preview_steps),
            PretrainingArguments(
                output_dir=str(folder), dataloader_num_workers=workers, **{**SETTINGS, **options}
            ),
        )  # fmt: skip

    return go


@pytest.fixture(scope="module")
def uninterrupted(start, tmp_path_factory) -> Path:
    return start(tmp_path_factory.mktemp("runs") / "uninterrupted")


@pytest.fixture(scope="module")
def killed(shards, model_folder, cache_dir, tmp_path_factory):
    """The folder of a run killed with SIGKILL, and the loader workers it had."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    options = {
        **SETTINGS, "model_name_or_path": model_folder, "train_data": shards, "cache_dir": cache_dir,
        "output_dir": folder, "dataloader_num_workers": 2, "preview_steps": 0,
    }  # fmt: skip
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=120, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr[-2000:]
    return folder, [int(word) for word in done.stdout.split()]


def copied(folder: Path, to: Path) -> Path:
    """What a killed run left, for one more attempt to go on from."""
    subprocess.run(["cp", "-a", str(folder), str(to)], check=True)
    return to


def lines(folder: Path) -> list[dict]:
    """The log without what the clock says."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    timed = {"images_per_second", "data_wait_fraction"}
    return [{name: value for name, value in record.items() if name not in timed} for record in records]


def assert_same(one: Path, other: Path) -> None:
    """Weights, optimiser, position and log lines, bit for bit."""
    last = f"checkpoint-{STEPS}"
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    first, second = (torch.load(folder / last / "optimizer.bin", weights_only=True) for folder in (one, other))
    assert first["param_groups"] == second["param_groups"]
    assert first["state"].keys() == second["state"].keys()
    for number, moments in first["state"].items():
        for name, value in moments.items():
            assert torch.equal(value, second["state"][number][name]), (number, name)
    states = [(folder / last / "training_state.json").read_text(encoding="utf-8") for folder in (one, other)]
    assert states[0] == states[1]
    assert lines(one) == lines(other)
    assert [line["step"] for line in lines(one)] == [4, 8, 12, 16, 20, 24, 28, 30]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(start, uninterrupted, killed, tmp_path, workers):
    folder = copied(killed[0], tmp_path / "run")
    assert sorted(path.name for path in folder.glob("*-*")) == [f"checkpoint-{step}" for step in (10, 15, 5)]
    assert not (folder / "config.json").exists()
    start(folder, workers=workers, resume_from_checkpoint="latest")
    assert_same(uninterrupted, folder)
    start_weights = load_file(killed[0] / "checkpoint-5" / "model.safetensors")
    moved = load_file(folder / "model.safetensors")
    assert any(not torch.equal(value, moved[name]) for name, value in start_weights.items())


def test_the_window_is_half_full_at_the_checkpoint(killed):
    state = json.loads((killed[0] / "checkpoint-15" / "training_state.json").read_text(encoding="utf-8"))
    assert len(state["window"]) == 3
    assert state["position"] == {"step": 15, "epoch": 1, "offset": 48}


def test_no_loader_worker_outlives_a_killed_run(killed):
    pids = killed[1]
    assert len(pids) == 2
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, pids)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in pids if psutil.pid_exists(pid)]


def test_images_and_their_random_numbers_go_on_where_they_were(make_loop, killed, tmp_path):
    """Seen in the loader itself, not only in what comes of it."""
    options = {**SETTINGS, "base_learning_rate": None}

    def batches(checkpoint: Path | None, position: Position | None, name: str) -> list[dict]:
        loop, reader = make_loop(tmp_path / name, checkpoint, **options)
        start_at = position or loop.position
        return list(make_loader(reader, loop.objective.draw, loop.order, start_at, 0, pin_memory=False))

    whole = batches(None, None, "whole")
    rest = batches(killed[0] / "checkpoint-15", None, "rest")
    assert len(whole) == STEPS
    assert [batch["ids"] for batch in rest] == [batch["ids"] for batch in whole[15:]]
    for found, expected in zip(rest, whole[15:], strict=True):
        assert torch.equal(found["images"], expected["images"])
        assert all(torch.equal(found["draws"][name], value) for name, value in expected["draws"].items())


def test_a_run_that_never_came_to_a_checkpoint_starts_anew(start, uninterrupted, tmp_path):
    """One command for every attempt of a job; half a log line of the first attempt does not stay."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "metrics.jsonl").write_text('{"step": 4, "loss": 9.0}\n{"step": 8, "lo', encoding="utf-8")
    start(folder, resume_from_checkpoint="latest")
    assert_same(uninterrupted, folder)


def test_latest_leaves_a_finished_model_of_another_command_alone(start, model_folder, tmp_path):
    folder = copied(model_folder, tmp_path / "model")
    with pytest.raises(RetFoundError, match="is not empty; choose another folder or pass --overwrite_output_dir"):
        start(folder, resume_from_checkpoint="latest")


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_ones_behind(start, killed, tmp_path):
    """Else `latest` would find a course that the run has left, and the limit would remove the new ones."""
    folder = copied(killed[0], tmp_path / "run")
    start(folder, resume_from_checkpoint=str(folder / "checkpoint-5"), save_steps=8, save_total_limit=2, max_steps=9)
    assert sorted(path.name for path in folder.glob("checkpoint-*")) == ["checkpoint-8", "checkpoint-9"]
    assert [line["step"] for line in lines(folder)] == [4, 8, 9]


def test_a_finished_run_is_prolonged_or_left(start, uninterrupted, tmp_path):
    folder = copied(uninterrupted, tmp_path / "run")
    start(folder, resume_from_checkpoint="latest")
    assert_same(uninterrupted, folder)
    start(folder, resume_from_checkpoint="latest", max_steps=32)
    assert [line["step"] for line in lines(folder)][-2:] == [30, 32]


def test_what_cannot_go_on_is_refused_in_one_line(start, killed, shards, tmp_path):
    checkpoint = str(killed[0] / "checkpoint-15")
    for options, reason in [
        ({"seed": 1}, "its seed is 0, and now it is 1"),
        ({"data": next(shards.glob("*00.parquet"))}, "the shards are not the same"),
        ({"per_device_train_batch_size": 8}, "its step has 16 images, and now it has 8"),
        ({"resume_from_checkpoint": str(killed[0])}, "is no checkpoint of pretrain; give .*checkpoint-15"),
        ({"resume_from_checkpoint": str(tmp_path / "none")}, "does not exist"),
    ]:
        with pytest.raises(RetFoundError, match=reason) as found:
            start(tmp_path / "out", **{"resume_from_checkpoint": checkpoint, **options})
        assert "\n" not in str(found.value)
