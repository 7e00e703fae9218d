"""Checkpoints appear whole or not at all, and a run goes on from them or says why not."""

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

import pytest
import torch

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining import checkpoints
from retfound_hf.pretraining.checkpoints import latest_checkpoint
from retfound_hf.pretraining.monitor import MetricsLog
from retfound_hf.pretraining.pretrain import run as pretrain

SCRIPT = Path(__file__).parents[2] / "scripts" / "pretrain.py"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def start(tiny_arguments):
    return lambda folder, **options: pretrain(tiny_arguments(folder, **options))


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
    pretrain(arguments)


def die_at_the_rename(arguments: tuple) -> None:
    """All of checkpoint-4 is written, under its temporary name."""
    replace = os.replace
    os.replace = lambda old, new: (die if Path(new).name == "checkpoint-4" else replace)(old, new)
    pretrain(arguments)


def die_at_the_removal(arguments: tuple) -> None:
    """Of checkpoint-2, which the limit removes, the weights are gone already."""
    remove = shutil.rmtree

    def half(path: Path, **options) -> None:
        if "checkpoint-2" in Path(path).name and Path(path, "model.safetensors").exists():
            Path(path, "model.safetensors").unlink()
            die()
        remove(path, **options)

    shutil.rmtree = half
    pretrain(arguments)


@pytest.mark.parametrize(
    "dying, left",
    [
        (die_at_the_state, [".checkpoint-4-partial", "checkpoint-2"]),
        (die_at_the_rename, [".checkpoint-4-partial", "checkpoint-2"]),
        (die_at_the_removal, [".checkpoint-2-removed", "checkpoint-4"]),
    ],
)
def test_a_kill_within_a_save_leaves_a_whole_checkpoint(start, tiny_arguments, tmp_path, dying, left):
    whole, folder, options = start(tmp_path / "whole"), tmp_path / "killed", {"save_steps": 2, "save_total_limit": 1}
    process = FORK.Process(target=dying, args=(tiny_arguments(folder, **options),))
    process.start()
    process.join(timeout=60)
    assert process.exitcode == -signal.SIGKILL
    assert names(folder) == left
    start(folder, resume_from_checkpoint="latest", **options)
    assert weights(folder) == weights(whole)
    assert names(folder) == ["checkpoint-6"]


@pytest.mark.slow
def test_kills_at_any_moment_never_cost_more_than_the_last_steps(start, tiny_arguments, tmp_path):
    """A checkpoint after every step, a kill every second or so; in the end the run is the one without kills."""
    chance, steps = random.Random(0), 60
    whole, folder = start(tmp_path / "whole", max_steps=steps), tmp_path / "killed"
    options = {"max_steps": steps, "save_steps": 1, "save_total_limit": 2, "resume_from_checkpoint": "latest"}
    kills = 0
    for _ in range(100):
        before = latest_checkpoint(folder) if folder.exists() else None
        process = FORK.Process(target=pretrain, args=tiny_arguments(folder, **options))
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
            assert json.loads((checkpoint / "training_state.json").read_text())["position"]["step"] > 0
            torch.load(checkpoint / "optimizer.bin", weights_only=True)
    assert kills > 5
    assert weights(folder) == weights(whole)


def test_a_full_disk_is_one_line_and_costs_no_checkpoint(start, pretrain_words, tmp_path):
    """The limit on a file's size lies between those of the weights and of the optimiser's moments."""
    whole, folder = start(tmp_path / "whole"), tmp_path / "full"
    start(folder, save_steps=4)
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
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert done.stderr.splitlines()[-1] == line
    assert "checkpoint-6 could not be written" in line
    assert line.endswith("checkpoint-4 is whole: make room and go on with --resume_from_checkpoint latest")
    assert names(folder) == ["checkpoint-4"]
    start(folder, resume_from_checkpoint="latest")
    assert weights(folder) == weights(whole)


def test_a_disk_that_is_full_for_the_log_is_one_line_too(start, monkeypatch, tmp_path):
    def full(*values) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(MetricsLog, "log", full)
    with pytest.raises(RetFoundError, match=r"after step 2 \(.*No space left.*latest \(there is no checkpoint"):
        start(tmp_path / "full")


@pytest.mark.parametrize("limit, kept", [(1, [6]), (2, [5, 6]), (0, [1, 2, 3, 4, 5, 6])])
def test_the_newest_are_kept(tiny_arguments, limit, kept):
    arguments = tiny_arguments(save_steps=1)
    arguments[2].save_total_limit = limit
    folder = pretrain(arguments)
    assert names(folder) == [f"checkpoint-{step}" for step in kept]


def test_folders_of_others_are_no_checkpoints(start, tmp_path):
    """Such as those of Trainer, or of a run that a removal by hand has left by half."""
    folder = tmp_path / "out"
    (folder / "checkpoint-99").mkdir(parents=True)
    (folder / "checkpoint-99" / "model.safetensors").write_bytes(b"theirs")
    start(folder, resume_from_checkpoint="latest")
    assert latest_checkpoint(folder) == folder / "checkpoint-6"
    assert (folder / "checkpoint-99" / "model.safetensors").read_bytes() == b"theirs"


def test_what_does_not_fit_is_refused_in_one_line(start, tiny_config, tmp_path):
    folder = start(tmp_path / "out")
    state = json.loads((folder / "checkpoint-6" / "training_state.json").read_text(encoding="utf-8"))

    def refused(**options) -> str:
        with pytest.raises(RetFoundError) as found:
            start(tmp_path / "new", resume_from_checkpoint=str(folder / "checkpoint-6"), max_steps=8, **options)
        assert "\n" not in str(found.value)
        return str(found.value)

    assert "--config_name or --model_name_or_path of its run" in refused(
        model_name_or_path=None, config_name="retfound-tiny", image_size=32
    )
    (folder / "checkpoint-6" / "training_state.json").write_text(
        json.dumps({**state, "objective": "simclr"}), encoding="utf-8"
    )
    assert "its objective is simclr, and now it is mae; start a new run from its weights" in refused()
    (folder / "checkpoint-6" / "training_state.json").write_text(json.dumps(state), encoding="utf-8")
    moments = folder / "checkpoint-6" / "optimizer.bin"
    moments.write_bytes(moments.read_bytes()[:1000])
    assert "or an earlier checkpoint if it is damaged" in refused()
