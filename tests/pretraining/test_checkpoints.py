"""Checkpoints appear whole or not at all; a run that is killed and resumed is the run that was never killed."""

import errno
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from small_runs import assert_same_checkpoints, metrics_of

from retfound_hf.errors import BadArgumentError, BadModelError, OutputError, RetFoundError
from retfound_hf.pretraining import checkpoints
from retfound_hf.pretraining.checkpoints import latest_checkpoint, read_state
from retfound_hf.pretraining.data import Position, make_loader
from retfound_hf.pretraining.monitor import MetricsLog
from retfound_hf.pretraining.pretrain import run

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"
FORK = multiprocessing.get_context("fork")
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


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if "checkpoint-" in path.name)


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def die(*values, **options) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at_the_state(arguments: tuple) -> None:
    """The weights of checkpoint-4 are written, what makes it a checkpoint is not."""
    write = checkpoints.write_json
    checkpoints.write_json = lambda path, state: (die if state["position"]["step"] == 4 else write)(path, state)
    run(arguments)


def die_at_the_rename(arguments: tuple) -> None:
    """All of checkpoint-4 is written, under its temporary name."""
    replace = os.replace
    os.replace = lambda old, new: (die if Path(new).name == "checkpoint-4" else replace)(old, new)
    run(arguments)


def die_at_the_removal(arguments: tuple) -> None:
    """Of checkpoint-2, which the limit removes, the weights are gone already."""
    remove = shutil.rmtree

    def half(path: Path, **options) -> None:
        if "checkpoint-2" in Path(path).name and Path(path, "model.safetensors").exists():
            Path(path, "model.safetensors").unlink()
            die()
        remove(path, **options)

    shutil.rmtree = half
    run(arguments)


@pytest.mark.parametrize(
    "dying, left",
    [
        (die_at_the_state, [".checkpoint-4-partial", "checkpoint-2"]),
        (die_at_the_rename, [".checkpoint-4-partial", "checkpoint-2"]),
        (die_at_the_removal, [".checkpoint-2-removed", "checkpoint-4"]),
    ],
)
def test_a_kill_within_a_save_leaves_a_whole_checkpoint(start, tiny_arguments, tmp_path, dying, left):
    whole, folder, options = start("whole").output_dir, tmp_path / "killed", {"save_steps": 2, "save_total_limit": 1}
    process = FORK.Process(target=dying, args=(tiny_arguments(folder, **options),))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert names(folder) == left
    start("killed", resume_from_checkpoint="latest", **options)
    assert weights(folder) == weights(whole)
    assert names(folder) == ["checkpoint-6"]


@pytest.mark.slow
def test_kills_at_any_moment_never_cost_more_than_the_last_steps(start, tiny_arguments, tmp_path):
    """A checkpoint after every step, a kill every second or so; in the end the run is the one without kills."""
    chance, steps = random.Random(0), 60
    whole, folder = start("whole", max_steps=steps).output_dir, tmp_path / "killed"
    options = {"max_steps": steps, "save_steps": 1, "save_total_limit": 2, "resume_from_checkpoint": "latest"}
    kills = 0
    for _ in range(100):
        before = latest_checkpoint(folder) if folder.exists() else None
        process = FORK.Process(target=run, args=(tiny_arguments(folder, **options),))
        process.start()
        while process.is_alive() and latest_checkpoint(folder) == before:
            time.sleep(0.01)
        process.join(timeout=chance.uniform(0, 0.3))
        if not process.is_alive():
            assert process.exitcode == 0
            break
        process.kill()
        process.join(timeout=60)
        kills += 1
        for checkpoint in folder.glob("checkpoint-*"):
            assert read_state(checkpoint)["position"]["step"] > 0
            torch.load(checkpoint / "optimizer.bin", weights_only=True)
    assert kills > 5
    assert weights(folder) == weights(whole)


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(start, pretrain_words, tmp_path):
    """The limit on a file's size lies between those of the weights and of the optimiser's moments."""
    whole, folder = start("whole").output_dir, tmp_path / "full"
    start("full", save_steps=4)
    shutil.rmtree(folder / "checkpoint-6")
    sizes = [(folder / "checkpoint-4" / name).stat().st_size for name in ("model.safetensors", "optimizer.bin")]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *pretrain_words(folder, resume_from_checkpoint="latest")],
        capture_output=True, text=True, timeout=120, env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )  # fmt: skip
    assert done.returncode == 2, done.stderr[-3000:]
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: checkpoint-6 ") and "checkpoint-4 with --resume_from_checkpoint latest" in line
    assert names(folder) == ["checkpoint-4"]
    start("full", resume_from_checkpoint="latest")
    assert weights(folder) == weights(whole)


def test_a_disk_that_is_full_for_the_log_is_one_line_too(start, monkeypatch, tmp_path):
    def full(*values) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsLog, "log", full)
    with pytest.raises(OutputError) as error:
        start("full")
    assert error.value.path == tmp_path / "full" and "step 2" in str(error.value)


@pytest.mark.parametrize("limit, kept", [(1, [6]), (2, [5, 6]), (0, [1, 2, 3, 4, 5, 6])])
def test_the_newest_are_kept(start, tmp_path, limit, kept):
    """Folders of others, such as those of Trainer, are left alone."""
    (tmp_path / "out" / "checkpoint-99").mkdir(parents=True)
    (tmp_path / "out" / "checkpoint-99" / "model.safetensors").write_bytes(b"theirs")
    folder = start(save_steps=1, save_total_limit=limit, resume_from_checkpoint="latest").output_dir
    assert names(folder) == [*(f"checkpoint-{step}" for step in kept), "checkpoint-99"]
    assert latest_checkpoint(folder) == folder / "checkpoint-6"


@pytest.fixture(scope="module")
def uninterrupted(tiny_arguments, tmp_path_factory) -> Path:
    return run(tiny_arguments(tmp_path_factory.mktemp("runs") / "uninterrupted", **SETTINGS)).output_dir


@pytest.fixture(scope="module")
def killed(pretrain_words, tmp_path_factory) -> tuple[Path, list[int]]:
    """The folder of a run killed with SIGKILL, and the loader workers it had."""
    folder = tmp_path_factory.mktemp("runs") / "killed"
    words = pretrain_words(folder, **SETTINGS, dataloader_num_workers=2)
    done = subprocess.run(
        [sys.executable, "-c", KILLED, *words], capture_output=True, text=True, timeout=120, start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == -9, done.stderr[-2000:]
    return folder, [int(word) for word in done.stdout.split()]


@pytest.fixture
def again(start, killed, tmp_path):
    """One more attempt to go on from what the killed run, or another, left; returns its folder."""

    def go(folder: Path = killed[0], **options) -> Path:
        if not (tmp_path / "run").exists():
            shutil.copytree(folder, tmp_path / "run", symlinks=True)
        return start("run", **{**SETTINGS, "resume_from_checkpoint": "latest", **options}).output_dir

    return go


def assert_same(one: Path, other: Path) -> None:
    """Weights, optimiser, position and log lines, bit for bit."""
    last = f"checkpoint-{STEPS}"
    assert weights(one) == weights(other)
    assert_same_checkpoints(one / last, other / last, "training_state.json")
    assert metrics_of(one) == metrics_of(other)
    assert [line["step"] for line in metrics_of(one)] == [4, 8, 12, 16, 20, 24, 28, 30]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_killed_run_goes_on_as_if_nothing_had_happened(again, uninterrupted, killed, workers):
    assert names(killed[0]) == [f"checkpoint-{step}" for step in (10, 15, 5)]
    assert not (killed[0] / "config.json").exists()
    state = read_state(killed[0] / "checkpoint-15")
    assert len(state["window"]) == 3 and state["position"] == {"step": 15, "epoch": 1, "offset": 48}
    folder = again(dataloader_num_workers=workers)
    assert_same(uninterrupted, folder)
    assert weights(killed[0] / "checkpoint-5") != weights(folder)


def test_no_loader_worker_outlives_a_killed_run(killed):
    assert len(killed[1]) == 2
    deadline = time.monotonic() + 30
    while any(map(psutil.pid_exists, killed[1])) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not [pid for pid in killed[1] if psutil.pid_exists(pid)]


def test_no_loader_worker_outlives_a_killed_run_within_an_image(tmp_path):
    """A worker that waits for a shard, or for a decoder, does not look whether its parent is alive."""
    code = """
import os, pathlib, signal, sys, time
from functools import partial
from torch import multiprocessing
from torch.utils.data import DataLoader, Dataset
from retfound_hf.pretraining.data import _start_worker

class Endless(Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        pathlib.Path(sys.argv[1]).write_text(str(os.getpid()))
        time.sleep(600)

running = iter(DataLoader(Endless(), num_workers=1, worker_init_fn=partial(_start_worker, multiprocessing.Event())))
while not os.path.exists(sys.argv[1]):
    time.sleep(0.1)
os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "pid")], timeout=120)
    assert done.returncode == -9
    pid, deadline = int((tmp_path / "pid").read_text() or 0), time.monotonic() + 30
    while psutil.pid_exists(pid) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert pid and not psutil.pid_exists(pid)


def test_images_and_their_random_numbers_go_on_where_they_were(make_loop, killed, tmp_path):
    """Seen in the loader itself, not only in what comes of it."""
    loop, reader = make_loop(tmp_path / "rest", **SETTINGS)
    loop.resume(killed[0] / "checkpoint-15")
    whole, rest = (
        list(make_loader(reader, loop.objective.draw, loop.order, position, 0, pin_memory=False))
        for position in (Position(), loop.position)
    )
    assert len(whole) == STEPS
    assert [batch["ids"] for batch in rest] == [batch["ids"] for batch in whole[15:]]
    for found, expected in zip(rest, whole[15:], strict=True):
        assert torch.equal(found["images"], expected["images"])
        assert all(torch.equal(found["draws"][name], value) for name, value in expected["draws"].items())


def test_a_run_that_never_came_to_a_checkpoint_starts_anew(again, uninterrupted, tmp_path):
    """One command for every attempt of a job; half a log line of the first attempt does not stay."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "metrics.jsonl").write_text('{"step": 4, "loss": 9.0}\n{"step": 8, "lo', encoding="utf-8")
    assert_same(uninterrupted, again())


def test_latest_leaves_a_finished_model_of_another_command_alone(again, model_folder):
    with pytest.raises(OutputError):
        again(model_folder)


def test_going_on_from_an_earlier_checkpoint_leaves_the_later_ones_behind(again, killed, tmp_path):
    """Else `latest` would find a course that the run has left, and the limit would remove the new ones."""
    shutil.copytree(killed[0], tmp_path / "run")
    earlier = str(tmp_path / "run" / "checkpoint-5")
    folder = again(resume_from_checkpoint=earlier, save_steps=8, save_total_limit=2, max_steps=9)
    assert names(folder) == ["checkpoint-8", "checkpoint-9"]
    assert [line["step"] for line in metrics_of(folder)] == [4, 8, 9]


def test_a_finished_run_is_prolonged_or_left(again, uninterrupted):
    assert_same(uninterrupted, again(uninterrupted))
    assert [line["step"] for line in metrics_of(again(max_steps=32))][-2:] == [30, 32]


def test_what_cannot_go_on_is_refused_in_one_line(start, killed, shards, tmp_path):
    folder = tmp_path / "changed" / "checkpoint-15"
    shutil.copytree(killed[0] / "checkpoint-15", folder)
    state = read_state(folder)
    moments = (folder / "optimizer.bin").read_bytes()
    for options, kind, field in [
        ({"seed": 1}, BadArgumentError, "seed"),
        ({"train_data": [str(next(shards.glob("*00.parquet")))]}, BadArgumentError, "train_data"),
        ({"per_device_train_batch_size": 8}, BadArgumentError, "max_steps"),
        ({"resume_from_checkpoint": str(killed[0])}, BadArgumentError, "resume_from_checkpoint"),
        ({"resume_from_checkpoint": str(tmp_path / "none")}, BadArgumentError, "resume_from_checkpoint"),
        ({"state": {**state, "objective": "simclr"}}, BadArgumentError, "objective"),
        ({"model_name_or_path": None, "config_name": "retfound-tiny", "image_size": 32}, BadModelError, None),
        ({"moments": moments[:1000]}, BadModelError, None),
    ]:
        (folder / "training_state.json").write_text(json.dumps(options.pop("state", state)), encoding="utf-8")
        (folder / "optimizer.bin").write_bytes(options.pop("moments", moments))
        with pytest.raises(RetFoundError) as error:
            start("new", **{**SETTINGS, "resume_from_checkpoint": str(folder), **options})
        assert type(error.value) is kind and "\n" not in str(error.value)
        assert error.value.field == field if field else error.value.model == str(folder)
