"""Pretraining over two nodes: a lost one comes back, as does a job at its time limit, and the weights stay the same.

The nodes are two agents of torchrun on loopback, one process each; stand-ins take the place of SLURM's commands.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from small_runs import assert_same_checkpoints, metrics_of
from two_processes import free_port, pretrain_in_two

pytestmark = pytest.mark.slow
SCRIPT = Path(__file__).parents[2] / "scripts" / "accelerate" / "slurm.sh"
STEPS, LIMIT = 40, 200
OPTIONS = {"max_steps": STEPS, "per_device_train_batch_size": 4, "save_steps": 8, "save_total_limit": 9}
# The real command at a pace that leaves time to lose a node.
PACED = """
import sys, time
from retfound_hf.pretraining.pretrain import main
from retfound_hf.pretraining.loop import Loop
from retfound_hf.options import run_command
step = Loop.step
def paced(self, batches):
    step(self, batches)
    time.sleep(0.2)
Loop.step = paced
sys.exit(run_command(main))
"""
# As srun does, that of `slurm.sh` starts a task on each node and hands signals on.
STAND_INS = {
    "torchrun": f'exec {sys.executable} -m torch.distributed.run "$@"',
    "srun": """
trap 'kill -TERM $agents' TERM
for node in $(seq "$SLURM_NNODES"); do "$@" & agents+=" $!"; done
wait $agents || wait $agents
wait $agents""",
    "scontrol": '[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> requeued',
}


@pytest.fixture(scope="module")
def alone(pretrain_words, tmp_path_factory) -> Path:
    """Output of two processes that nothing befell."""
    folder = tmp_path_factory.mktemp("nodes")
    pretrain_in_two(pretrain_words(folder / "alone", **OPTIONS), folder)
    return folder / "alone"


@pytest.fixture
def desk(tmp_path) -> Path:
    """A folder with the paced command as `scripts/pretrain.py`, and SLURM's commands in `bin`."""
    for folder in ("scripts", "bin"):
        (tmp_path / folder).mkdir()
    (tmp_path / "scripts" / "pretrain.py").write_text(PACED, encoding="utf-8")
    for name, text in STAND_INS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        path.chmod(0o755)
    return tmp_path


def lose(agent: subprocess.Popen) -> None:
    """End an agent with its process, as the loss of a machine does; the process has a group of its own."""
    with suppress(psutil.NoSuchProcess):
        found = psutil.Process(agent.pid)
        for process in [found, *found.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                process.kill()
    agent.wait()


def wait_for(condition: Callable[[], object], *watched: subprocess.Popen) -> None:
    deadline = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < deadline and all(each.poll() is None for each in watched)
        time.sleep(0.1)


def assert_undisturbed(folder: Path, alone: Path) -> None:
    """The weights, moments and log are those of the run that nothing befell, bit for bit."""
    assert (folder / "model.safetensors").read_bytes() == (alone / "model.safetensors").read_bytes()
    assert_same_checkpoints(folder / f"checkpoint-{STEPS}", alone / f"checkpoint-{STEPS}")
    assert metrics_of(folder) == metrics_of(alone)


@pytest.mark.parametrize("lost", ["host of the rendezvous", "other"])
def test_a_lost_node_comes_back(pretrain_words, alone, desk, lost):
    """The one that is left waits for it, unless it was the one where they meet: then both begin again."""
    port, out = free_port(), desk / "out"
    words = ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-id=1",
             f"--rdzv-endpoint=127.0.0.1:{port}", "scripts/pretrain.py", *pretrain_words(out, **OPTIONS),
             "--resume_from_checkpoint", "latest"]  # fmt: skip
    started: list[subprocess.Popen] = []

    def start() -> subprocess.Popen:
        with open(desk / f"agent-{len(started)}.log", "wb") as log:
            started.append(subprocess.Popen(
                [str(desk / "bin" / "torchrun"), *words], cwd=desk, stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"},
            ))  # fmt: skip
        return started[-1]

    def listens(agent: subprocess.Popen) -> bool:
        return port in {
            each.laddr.port for each in psutil.Process(agent.pid).net_connections() if each.status == "LISTEN"
        }

    try:
        agents = [start(), start()]
        wait_for((out / "checkpoint-16").is_dir, *agents)
        (host,) = [agent for agent in agents if listens(agent)]
        (other,) = [agent for agent in agents if agent is not host]
        lose(other if lost == "other" else host)
        if lost != "other":
            assert other.wait(timeout=LIMIT) != 0
            host = start()
        other = start()
        for agent in (host, other):
            assert agent.wait(timeout=LIMIT) == 0, (desk / "agent-2.log").read_text()[-3000:]
    finally:
        for agent in started:
            lose(agent)
    assert_undisturbed(out, alone)


def test_a_job_at_its_time_limit_goes_back_into_the_queue(pretrain_words, alone, desk):
    """SLURM's USR1 ends `slurm.sh` with a checkpoint; the job that comes out of the queue again finishes the run."""
    out, port = desk / "out", next(port for port in iter(free_port, None) if port < 40000)
    env = {**os.environ, "PATH": f"{desk / 'bin'}:{os.environ['PATH']}", "SLURM_JOB_NODELIST": "node[1-2]",
           "SLURM_NNODES": "2", "SLURM_JOB_ID": str(port - 20000), "OMP_NUM_THREADS": "1"}  # fmt: skip
    words = ["bash", str(SCRIPT), *pretrain_words(out, **OPTIONS)]
    started: list[subprocess.Popen] = []
    try:
        for signalled in (True, False):
            with open(desk / f"job-{len(started)}.log", "wb") as log:
                started.append(
                    subprocess.Popen(words, cwd=desk, env=env, stdout=log, stderr=log, start_new_session=True)
                )
            if signalled:
                wait_for((out / "checkpoint-8").is_dir, started[0])
                started[0].send_signal(signal.SIGUSR1)
            assert started[-1].wait(timeout=LIMIT) == 0, (desk / f"job-{len(started) - 1}.log").read_text()[-3000:]
            assert (out / "config.json").exists() != signalled
            assert (desk / "requeued").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    finally:
        for job in started:
            lose(job)
    assert_undisturbed(out, alone)
