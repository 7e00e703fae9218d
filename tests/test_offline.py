"""Commands on local files speak to no server and run no code of the working directory."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from small_runs import write_shards
from tiny import save_autoencoder, save_classifier, save_planted_set

from retfound_hf.cli import COMMANDS
from retfound_hf.models.key_tables import encoder_rows

# Runs commands one after another in one process, in which every connection to another machine is refused and listed.
RUN = """
import json, socket, sys

tried = []

def to_here(original):  # the page asks itself whether it runs
    def ask(self, address, *rest):
        if self.family == socket.AF_UNIX or address[0] == "127.0.0.1":
            return original(self, address, *rest)
        tried.append(str(address))
        raise OSError("no network")
    return ask

def look_up(host, *rest, **options):
    if host in ("127.0.0.1", "localhost"):
        return addresses(host, *rest, **options)
    tried.append(str(host))
    raise socket.gaierror("no network")

addresses, socket.getaddrinfo = socket.getaddrinfo, look_up
socket.socket.connect, socket.socket.connect_ex = to_here(socket.socket.connect), to_here(socket.socket.connect_ex)
from gradio import Blocks
from retfound_hf.cli import main

Blocks.block_thread = lambda page: page.close(verbose=False)

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


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_commands_on_local_files(tmp_path):
    pytest.importorskip("gradio")
    save_planted_set(tmp_path / "images", {"train": 8, "val": 4, "test": 4})
    save_autoencoder(tmp_path / "encoder")
    save_classifier(tmp_path / "classifier", ("amd", "healthy"))
    write_shards(tmp_path / "few", (16,))
    rows = encoder_rows(width=64, mlp=128, depth=2, patch=4, positions=17)
    state = {row.source: torch.zeros(row.shape) for row in rows} | dict.fromkeys(
        ("norm.weight", "norm.bias"), torch.ones(64)
    )
    torch.save({"model": state}, tmp_path / "cfp.pth")
    (tmp_path / "study.yaml").write_text(
        "models: {A: encoder}\nmethods: [linear]\ndata: {D: {data: images, modality: cfp}}\nseeds: [0]\n"
        "finetune: {dataloader_num_workers: 0, cache_dir: cache}\nreporting: {resamples: 0}\n"
    )
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
            "make_registry registry --num_patients 40 --image_size 64",
            "build_cohort registry/images.csv registry/events.csv cohort --event stroke --horizon 1y",
            "check_dataset IDRiD images",
            "convert_checkpoint cfp.pth converted --modality cfp",
            "predict --model_name_or_path classifier --data images/test/amd --output_dir predicted",
            "study study.yaml --output_dir studied",
            "publish tuned --repo_id org/name --dry_run",
            f"app --model classifier --port {free_port()}",
            "completion bash",
            "doctor",
            "fetch retfound-cfp --output_dir fetched",
        ],
        tmp_path,
    )
    assert found.keys() == COMMANDS.keys()
    assert found.pop("fetch")[1]  # the one that asks a server
    assert found.pop("check_dataset") == (2, [])  # of the wrong folder
    assert found.pop("doctor")[1] == []  # whatever it lacks
    for name, (status, tried) in found.items():
        assert (status, tried) == (0, []), (name, [line for line in errors.splitlines() if "error" in line])
    assert not (tmp_path / "executed").exists()
