"""The configurations of `accelerate launch` that lie ready are what accelerate itself reads them as."""

import subprocess
from pathlib import Path

import pytest
from accelerate.commands.config.config_args import load_config_from_file

FOLDER = Path(__file__).parents[2] / "scripts" / "accelerate"
MACHINES_PROCESSES_PRECISION = {
    "8_gpus.yaml": (1, 8, "bf16"),
    "two_nodes.yaml": (2, 16, "bf16"),
    "one_small_gpu.yaml": (1, 1, "fp16"),
}


@pytest.mark.parametrize("name", MACHINES_PROCESSES_PRECISION)
def test_says_what_its_name_says(name):
    config = load_config_from_file(str(FOLDER / name))
    found = config.num_machines, config.num_processes, config.mixed_precision
    assert found == MACHINES_PROCESSES_PRECISION[name]
    assert config.distributed_type == ("NO" if config.num_processes == 1 else "MULTI_GPU")
    assert not config.use_cpu


def test_no_other_lies_there():
    scripts = {"slurm.sh"}  # tests/pretraining/test_nodes.py runs it
    assert {path.name for path in FOLDER.iterdir()} == {*MACHINES_PROCESSES_PRECISION, *scripts}
    for name in scripts:
        subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
