"""Fine-tuning in two processes: one model, one report, every image counted once."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "finetune.py"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.mark.slow
def test_two_processes_equal_one(encoder_folder, planted, cache_dir, tmp_path):
    """At the same global batch, without randomness per image; 15 validation images do not divide by two."""
    data = tmp_path / "data"
    shutil.copytree(planted, data)
    sorted((data / "val" / "amd").iterdir())[0].unlink()
    common = [
        str(SCRIPT), "--model_name_or_path", str(encoder_folder), "--data", str(data),
        "--cache_dir", str(cache_dir), "--dataloader_num_workers", "0", "--augmentation", "none",
        "--drop_path", "0", "--num_train_epochs", "3", "--learning_rate", "3e-3", "--per_device_eval_batch_size", "4",
        "--disable_tqdm", "true",
    ]  # fmt: skip
    launchers = {
        "one": ([sys.executable], "16"),
        "two": (
            [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--master_addr=127.0.0.1",
             f"--master_port={free_port()}"], "8",
        ),
    }  # fmt: skip
    for name, (launcher, batch) in launchers.items():
        words = [*launcher, *common, "--output_dir", str(tmp_path / name), "--per_device_train_batch_size", batch]
        done = subprocess.run(
            words, capture_output=True, text=True, timeout=300, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert done.returncode == 0, done.stderr[-3000:]
    tables = [pd.read_csv(tmp_path / name / "validation" / "predictions.csv") for name in launchers]
    assert len(tables[1]) == 15
    assert tables[1]["id"].is_unique
    assert list(tables[0]["id"]) == list(tables[1]["id"])
    assert tables[1]["prob/amd"].to_numpy() == pytest.approx(tables[0]["prob/amd"].to_numpy(), abs=1e-3)
    histories = [pd.read_json(tmp_path / name / "history.json") for name in launchers]
    for column in ("eval_auroc", "eval_brier"):
        one, two = (history[column].dropna().to_numpy() for history in histories)
        assert two == pytest.approx(one, abs=1e-3)
