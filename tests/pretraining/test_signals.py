"""SIGTERM, SIGINT, SIGKILL and the end of a launcher: a checkpoint, status 0, and a run that goes on to the bit."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from small_runs import metrics_of
from two_processes import free_port

from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.pretrain import main, run

STEPS = 30
OPTIONS = {"max_steps": STEPS, "per_device_train_batch_size": 16, "logging_steps": 4}
# The real command at a pace that leaves time for a signal; it says when it has begun.
SLOW = """
import sys, time
from retfound_hf.pretraining.pretrain import main
from retfound_hf.pretraining.loop import Loop
from retfound_hf.options import run_command
step = Loop.step
def slow_step(self, batches):
    step(self, batches)
    time.sleep(0.1)
    if self.position.step == 3 and self.accelerator.is_main_process:
        print("begun", flush=True)
Loop.step = slow_step
sys.exit(run_command(main))
"""


@pytest.fixture(scope="module")
def uninterrupted(tiny_arguments, tmp_path_factory) -> Path:
    return run(tiny_arguments(tmp_path_factory.mktemp("runs") / "uninterrupted", **OPTIONS)).output_dir


@pytest.fixture
def assert_goes_on(start, uninterrupted):
    """The rest of a stopped run makes it the run that was not stopped."""

    def check(folder: Path) -> None:
        (checkpoint,) = folder.glob("checkpoint-*")
        assert 3 <= int(checkpoint.name.split("-")[1]) < STEPS
        assert not (folder / "config.json").exists()
        start(folder, **OPTIONS, resume_from_checkpoint="latest")
        assert (folder / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()
        assert metrics_of(folder) == metrics_of(uninterrupted)

    return check


def signal_at(monkeypatch, step: int, *numbers: int) -> None:
    """Signals arrive before a step, one by one.

    Each is raised in this thread and handled before the next: two of `os.kill` may arrive as one.
    """
    taken = Loop.step

    def interrupted(self: Loop, batches) -> None:
        if self.position.step == step:
            for number in numbers:
                signal.raise_signal(number)
        taken(self, batches)

    monkeypatch.setattr(Loop, "step", interrupted)


@pytest.mark.parametrize("numbers", [[signal.SIGINT], [signal.SIGTERM], [signal.SIGTERM, signal.SIGTERM]])
def test_a_signal_saves_and_the_run_goes_on_to_the_bit(
    pretrain_words, assert_goes_on, monkeypatch, capsys, tmp_path, numbers
):
    """torchrun sends a SIGTERM of its own to processes that the scheduler has signalled already."""
    folder, before = tmp_path / "stopped", signal.getsignal(numbers[0])
    with monkeypatch.context() as patch:
        signal_at(patch, 9, *numbers)
        main(pretrain_words(folder, **OPTIONS))
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-10"]
    printed = capsys.readouterr().out
    assert f"{numbers[0].name} after step 10" in printed and "--resume_from_checkpoint latest" in printed
    assert signal.getsignal(numbers[0]) is before
    assert_goes_on(folder)


def test_a_stopped_run_tells_its_caller(start, monkeypatch):
    signal_at(monkeypatch, 9, signal.SIGTERM)
    found = start(**OPTIONS)
    assert (found.stopped_by, found.steps) == ("SIGTERM", 10) and found.metrics[-1]["step"] == 8


def test_a_second_sigint_stops_at_once(start, monkeypatch, tmp_path):
    signal_at(monkeypatch, 9, signal.SIGINT, signal.SIGINT)
    # A shell starts what it puts into the background with SIGINT ignored, and so these tests too.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            start(**OPTIONS)
    finally:
        signal.signal(signal.SIGINT, inherited)
    assert not list((tmp_path / "out").glob("checkpoint-*"))


def test_a_signal_in_the_last_step_finishes_the_run(start, uninterrupted, monkeypatch):
    signal_at(monkeypatch, STEPS - 1, signal.SIGTERM)
    found = start(**OPTIONS)
    assert found.stopped_by is None
    assert (found.output_dir / "model.safetensors").read_bytes() == (uninterrupted / "model.safetensors").read_bytes()


class Started:
    """The slowed command in its own process group, under a launcher or not."""

    def __init__(self, folder: Path, words: list[str], launcher: list[str] | None = None):
        script = folder / "slow.py"
        script.write_text(SLOW, encoding="utf-8")
        self.process = subprocess.Popen(
            [sys.executable, *(launcher or []), str(script), *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            text=True, start_new_session=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        self.descendants: list[psutil.Process] = []

    def __enter__(self) -> "Started":
        began = self.process.stdout.readline()
        assert began == "begun\n", self.process.communicate(timeout=60)[1][-3000:]
        self.descendants = psutil.Process(self.process.pid).children(recursive=True)
        return self

    def __exit__(self, *error: object) -> None:
        for process in [*self.descendants, psutil.Process(self.process.pid) if self.process.poll() is None else None]:
            if process is not None and process.is_running():
                process.kill()
        self.process.communicate(timeout=60)

    def ended(self) -> tuple[int, str, str]:
        """Status, output and errors; everything that it started must be gone too."""
        output, errors = self.process.communicate(timeout=90)
        deadline = time.monotonic() + 15
        while any(process.is_running() for process in self.descendants) and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not [process for process in self.descendants if process.is_running()]
        return self.process.returncode, output, errors


def test_a_signalled_process_group_ends_with_status_0(pretrain_words, assert_goes_on, tmp_path):
    """As a scheduler or a Ctrl-C in a terminal does it; the loader's workers are in the group when it comes."""
    folder = tmp_path / "stopped"
    with Started(tmp_path, pretrain_words(folder, **OPTIONS, dataloader_num_workers=2)) as started:
        assert len(started.descendants) == 2
        os.killpg(started.process.pid, signal.SIGTERM)
        status, output, errors = started.ended()
    assert status == 0, errors[-3000:]
    assert "SIGTERM after step" in output.splitlines()[-1] and "Traceback" not in errors
    assert_goes_on(folder)


def test_a_run_whose_launcher_is_gone_stops_with_a_checkpoint(pretrain_words, assert_goes_on, tmp_path):
    """For one process `accelerate launch` dies of a signal and forwards it to nobody."""
    folder = tmp_path / "stopped"
    launcher = ["-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    with Started(tmp_path, pretrain_words(folder, **OPTIONS), launcher) as started:
        (training,) = started.descendants
        started.process.terminate()
        started.process.wait(timeout=60)
        assert psutil.wait_procs([training], timeout=60)[1] == []
        output, _ = started.process.communicate(timeout=60)
    assert "the end of its launcher after step" in output.splitlines()[-1]
    assert_goes_on(folder)


@pytest.mark.slow
@pytest.mark.parametrize("who", ["launcher", "worker", "all"])
def test_two_processes_stop_together(pretrain_words, start, tmp_path, who):
    """A signal to one of them saves the work of both; the launcher forwards what it gets, and ends as it likes."""
    folder = tmp_path / "stopped"
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1"]
    launcher.append(f"--master_port={free_port()}")
    options = {**OPTIONS, "per_device_train_batch_size": 8}
    with Started(tmp_path, pretrain_words(folder, **options, dataloader_num_workers=1), launcher) as started:
        ranks = [process for process in started.descendants if process.ppid() == started.process.pid]
        assert len(ranks) == 2
        if who == "all":
            for process in ranks:
                process.send_signal(signal.SIGTERM)
        if who == "worker":
            ranks[1].send_signal(signal.SIGTERM)
        else:
            os.killpg(started.process.pid, signal.SIGTERM)
        status, output, errors = started.ended()
    if who == "worker":
        assert status == 0, errors[-3000:]
    assert output.count("--resume_from_checkpoint latest") == 1
    (checkpoint,) = folder.glob("checkpoint-*")
    assert int(checkpoint.name.split("-")[1]) < STEPS
    start(folder, **OPTIONS, resume_from_checkpoint="latest")
    assert metrics_of(folder)[-1]["step"] == STEPS
