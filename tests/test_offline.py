"""Commands on local files speak to no server and run no code of the working directory."""

import json
import os
import subprocess
import sys
from pathlib import Path

from small_runs import write_shards
from tiny import save_autoencoder, save_classifier, save_planted_set

# Runs commands one after another in one process, in which every connection is refused and listed.
RUN = """
import json, socket, sys

tried = []

def refuse(self, address, *_):
    if self.family == socket.AF_UNIX:
        return connect(self, address)
    tried.append(str(address))
    raise OSError("no network")

def look_up(host, *_, **__):
    tried.append(str(host))
    raise socket.gaierror("no network")

connect, socket.socket.connect, socket.socket.connect_ex, socket.getaddrinfo = (
    socket.socket.connect, refuse, refuse, look_up)
from retfound_hf.cli import main

for words in json.load(sys.stdin):
    status = main(words)
    print(words[0], status, *tried, sep="\\t", file=sys.__stdout__)
    tried.clear()
"""


def run_commands(commands: list[str], folder: Path) -> tuple[dict[str, tuple[int, list[str]]], str]:
    """Exit status and tried connections of each command, and stderr, of a process in `folder` that may go online."""
    env = {name: value for name, value in os.environ.items() if name != "HF_HUB_OFFLINE"}
    done = subprocess.run(
        [sys.executable, "-P", "-c", RUN], input=json.dumps([command.split() for command in commands]),
        env={**env, "HF_HOME": str(folder / "home")}, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    lines = [line.split("\t") for line in done.stdout.splitlines() if "\t" in line]
    assert len(lines) == len(commands), done.stderr
    return {name: (int(status), tried) for name, status, *tried in lines}, done.stderr


def test_commands_on_local_files(tmp_path):
    save_planted_set(tmp_path / "images", {"train": 8, "val": 4, "test": 4})
    save_autoencoder(tmp_path / "encoder")
    save_classifier(tmp_path / "classifier", ("amd", "healthy"))
    write_shards(tmp_path / "few", (16,))
    # multiprocessing starts its servers by `python -c`, which takes modules from the working directory first.
    (tmp_path / "multiprocessing.py").write_text("open('executed', 'w')\n")
    quick = "--dataloader_num_workers 0 --cache_dir cache"
    found, errors = run_commands(
        [
            "prepare_images few shards --modality cfp --num_workers 1",
            "pretrain --config_name retfound-tiny --image_size 64 --train_data few --output_dir pretrained"
            f" --max_steps 1 --per_device_train_batch_size 8 {quick}",
            f"finetune --model_name_or_path encoder --data images --output_dir tuned --num_train_epochs 1 {quick}",
            f"evaluate --model_name_or_path classifier --data images --output_dir evaluation {quick}",
            "embed --model_name_or_path encoder --data images --output_dir vectors",
            "explain --model_name_or_path classifier --data images/test/amd --output_dir maps",
            "export classifier --format timm --output_dir exported",
            "make_synthetic synthetic --modality oct --num_patients 13",
        ],
        tmp_path,
    )
    for name, (status, tried) in found.items():
        assert (status, tried) == (0, []), (name, [line for line in errors.splitlines() if "error" in line])
    assert not (tmp_path / "executed").exists()
