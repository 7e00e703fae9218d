"""Two processes train as one does at the same global batch, whatever the objective compares across images."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from small_runs import SMALL
from two_processes import run_in_two

from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.pretrain import main

# A run on a ResNet, whose batch norms see the images of all processes too.
RESNET = "simclr-resnet"
JOINT = [*sorted(OBJECTIVES.keys() - {"mae"}), RESNET]
# A run with one image on each process.
SINGLE = "single"
# An epoch has 12 steps, the first of which some parameters do not take.
STEPS, MIDDLE, GLOBAL_BATCH = 16, 8, 16
SETTINGS = {
    "max_steps": STEPS, "warmup_steps": 2, "logging_steps": 2, "save_steps": MIDDLE, "save_total_limit": 9,
    "dataloader_num_workers": 0, "preview_steps": 0,
}  # fmt: skip
# The real command, for one objective after the other.
EACH = """
import json, sys
import torch.distributed
from retfound_hf.pretraining.pretrain import main
leave = torch.distributed.destroy_process_group
torch.distributed.destroy_process_group = lambda group=None: None  # not between two runs
for words in json.loads(sys.argv[1]):
    main(words)
leave()
"""


@pytest.fixture(scope="module")
def command(shards, model_folder, resnet_folder, cache_dir):
    """The words behind `scripts/pretrain.py` of a run with an objective on its share of the global batch."""

    def make(name: str, output_dir: Path, processes: int) -> list[str]:
        flags = {
            **SETTINGS, "model_name_or_path": model_folder, "objective": name, "train_data": shards,
            "cache_dir": cache_dir, "output_dir": output_dir, "learning_rate": 3e-4,
            "per_device_train_batch_size": GLOBAL_BATCH // processes, **SMALL.get(name, {}),
        }  # fmt: skip
        if name == RESNET:
            flags |= {"objective": "simclr", "model_name_or_path": resnet_folder, "image_size": 32}
            flags["learning_rate"] = 0.1
        return [word for flag, value in flags.items() for word in (f"--{flag}", str(value))]

    return make


@pytest.fixture(scope="module")
def one(command, tmp_path_factory) -> Path:
    """A folder with the runs of all objectives in this process."""
    folder = tmp_path_factory.mktemp("one")
    for name in JOINT:
        AcceleratorState._reset_state(reset_partial_state=True)
        main(command(name, folder / name, 1))
    return folder


@pytest.fixture(scope="module")
def two(command, tmp_path_factory) -> Path:
    """The same in two processes, started once for all."""
    folder = tmp_path_factory.mktemp("two")
    commands = [command(name, folder / name, 2) for name in JOINT]
    commands.append(
        [*command("moco_v3", folder / SINGLE, 2), "--per_device_train_batch_size", "1", "--max_steps", "4"]
    )
    run_in_two(EACH, [json.dumps(commands)], folder)
    return folder


def tensors(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Of the model and of the objective, but for the biases of attention keys, whose gradients are rounding errors."""
    found = {**load_file(checkpoint / "model.safetensors"), **load_file(checkpoint / "objective.safetensors")}
    return {name: value.float() for name, value in found.items() if not name.endswith("key.bias")}


def fixed(names: Iterable[str]) -> set[str]:
    """State that no step changes."""
    parts = ("position_embeddings", "patch_embeddings", "layernorm.")
    return {name for name in names if any(part in name for part in parts)}


def lines(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", JOINT)
def test_two_processes_equal_one(one, two, name):
    first, second = (tensors(folder / name / f"checkpoint-{STEPS}") for folder in (one, two))
    assert first.keys() == second.keys()
    apart = {key: (value - second[key]).abs().max().item() for key, value in first.items()}
    assert max(apart.values()) < 1e-5, sorted(apart.items(), key=lambda item: -item[1])[:5]
    middle = tensors(one / name / f"checkpoint-{MIDDLE}")
    moved = {key: (value - middle[key]).abs().max().item() for key, value in first.items()}
    assert max(moved.values()) > 3e-4, "weights that hardly move would agree in any case"
    assert {key for key, distance in moved.items() if distance == 0} <= fixed(first)
    for line, same in zip(lines(one / name), lines(two / name), strict=True):
        assert line["loss"] == pytest.approx(same["loss"], abs=1e-5)
        assert line["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-4)


def test_one_image_on_each_of_two_processes_is_compared_with_the_other(two):
    """On one process a single image is refused; here own and other are told apart, at first hardly."""
    losses = [line["loss"] for line in lines(two / SINGLE)]
    assert losses[0] > 0.1 and min(losses) > 0
