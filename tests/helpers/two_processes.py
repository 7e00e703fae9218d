"""A program in two processes that know of each other, as a launcher starts them."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path

# The command `pretrain`, which also writes down the images that every step used on this process.
WATCHED = """
import json, os, sys
from retfound_hf.pretraining.pretrain import main
from retfound_hf.pretraining.loop import Loop
from retfound_hf.options import run_command
step = Loop.step
def watched(self, batches):
    step(self, batches)
    with open(os.path.join(os.environ["SEEN"], f"rank-{os.environ['RANK']}.jsonl"), "a") as file:
        file.write(json.dumps(self.buffer.ids[-1]) + "\\n")
Loop.step = watched
sys.exit(run_command(main))
"""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_in_two(program: str | Path, words: Iterable[str], folder: Path, **env: str) -> str:
    """Run a program in two processes to its end; what they leave behind is ended too.

    Args:
        program: its file, or its text, which is put into `folder`.
        words: its arguments.
        env: environment variables that it gets beside those of this process.

    Returns:
        What both printed.
    """
    path = program if isinstance(program, Path) else folder / "program.py"
    if isinstance(program, str):
        path.write_text(program, encoding="utf-8")
    # As torchrun would start them, without the seconds that it takes to import torch in a third process.
    group = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    with tempfile.TemporaryFile("w+") as printed, tempfile.TemporaryFile("w+") as errors:
        started = [
            subprocess.Popen(
                [sys.executable, str(path), *words], stdout=printed, stderr=errors, start_new_session=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **group, "RANK": rank, "LOCAL_RANK": rank, **env},
            )
            for rank in "01"
        ]  # fmt: skip
        try:
            for process in started:
                process.wait(timeout=300)
        finally:
            for process in started:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGTERM)
        errors.seek(0)
        assert [process.returncode for process in started] == [0, 0], errors.read()[-3000:]
        printed.seek(0)
        return printed.read()


def pretrain_in_two(words: Iterable[str], folder: Path, env: Mapping[str, str] | None = None) -> list[list[list[str]]]:
    """Run `pretrain` in two processes; the ids of the images of every step, by process."""
    run_in_two(WATCHED, words, folder, SEEN=str(folder), **(env or {}))
    seen = [(folder / f"rank-{rank}.jsonl").read_text(encoding="utf-8").splitlines() for rank in (0, 1)]
    return [[json.loads(line) for line in lines] for lines in seen]
