"""Runs as processes of their own: killed, interrupted, struck by a decoder that crashes."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[3] / "scripts" / "prepare_images.py"
OPTIONS = ["--modality", "cfp", "--image_size", "32", "--shard_size", "5", "--num_workers", "2"]


@pytest.fixture
def start():
    """Starts the command in a session of its own; whatever is left of it at the end is killed."""
    runs = []
    yield lambda *arguments, **environment: runs.append(_start(*arguments, **environment)) or runs[-1]
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def _start(source, out, **environment):
    command = [sys.executable, str(SCRIPT), str(source), str(out), *OPTIONS]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def session(pid: int) -> list[str]:
    """Processes of the session that `pid` began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == pid and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.fixture
def slowly(tmp_path):
    """Variables under which every image takes a while, so that a run can be stopped in its midst."""
    (tmp_path / "patched").mkdir()
    (tmp_path / "patched" / "sitecustomize.py").write_text(
        "import os, time\n"
        "import PIL.Image\n"
        "plain = PIL.Image.open\n"
        "def patched(source, *arguments, **options):\n"
        "    time.sleep(float(os.environ.get('SLOWLY', 0)))\n"
        "    if 'crash' in os.path.basename(str(source)):\n"
        "        os.abort()\n"
        "    return plain(source, *arguments, **options)\n"
        "PIL.Image.open = patched\n"
    )
    return {"PYTHONPATH": str(tmp_path / "patched"), "SLOWLY": "0.1"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_bytes(
    start, prepare, photos, tmp_path, slowly, shard_bytes, capsys
):
    out = tmp_path / "shards"
    run = start(photos, out, **slowly)
    wait_for((out / ".prepared" / "00001.json").exists)
    run.kill()
    run.wait()
    # A worker that was still starting sees that its parent is gone once its imports are done.
    wait_for(lambda: not session(run.pid))
    assert not (out / ".prepared" / "00004.json").exists() and not (out / "README.md").exists()
    first = (out / "data" / "train-00000.parquet").stat().st_mtime_ns
    prepare()
    assert (out / "data" / "train-00000.parquet").stat().st_mtime_ns == first
    assert "23 images written, 0 rejected, 1 exact duplicates; 5 of 5 units done" in capsys.readouterr().out
    assert shard_bytes(out) == shard_bytes(prepare("whole"))


@pytest.mark.slow
def test_ctrl_c_says_one_line(start, photos, tmp_path, slowly):
    out = tmp_path / "shards"
    run = start(photos, out, **slowly)
    wait_for((out / ".prepared" / "00000.json").exists)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("stopped: interrupted")
    assert all(not path.name.startswith(".") for path in (out / "data").iterdir())


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_one_image(start, prepare, photos, tmp_path, slowly, shard_bytes, read_csv):
    shutil.copy(photos / "clinic-0" / "eye00.jpg", photos / "clinic-1" / "crash.jpg")
    out = tmp_path / "shards"
    run = start(photos, out, **{**slowly, "SLOWLY": "0"})
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "23 images written, 1 rejected" in output
    ((name, reason),) = read_csv(out / "rejected.csv")[1:]
    assert name == "clinic-1/crash.jpg" and "decoder crashed" in reason
    (photos / "clinic-1" / "crash.jpg").write_bytes(b"")
    assert shard_bytes(out) == shard_bytes(prepare("whole"))
