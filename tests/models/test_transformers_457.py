"""The same folder under transformers 4.57, in an environment of its own: equal loss, no key left over."""

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
import torch

from retfound_hf import RetFoundForPreTraining

# Without dependencies, so that torch and the rest stay those of this environment.
PACKAGES = ["transformers==4.57.6", "tokenizers>=0.22,<0.23", "huggingface_hub>=0.34,<1"]
SCRIPT = """
import json, sys
import torch, transformers
folder, output = sys.argv[1:]
model, report = transformers.ViTMAEForPreTraining.from_pretrained(folder, output_loading_info=True)
given = torch.load(folder + "/given.pt")
with torch.no_grad():
    loss = model.eval()(given["pixel_values"], noise=given["noise"]).loss.item()
report = {name: [str(key) for key in keys] for name, keys in report.items()}
json.dump({"version": transformers.__version__, "loss": loss, **report}, open(output, "w"))
"""


@pytest.fixture(scope="module")
def transformers_457(tmp_path_factory) -> Path:
    """A folder with transformers 4.57: `RETFOUND_TF457_TARGET` where that was made before, else installed here."""
    if made := os.environ.get("RETFOUND_TF457_TARGET"):
        return Path(made)
    target = tmp_path_factory.mktemp("transformers-4.57")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), *PACKAGES]
    done = subprocess.run(pip, capture_output=True, text=True, timeout=600)
    if done.returncode:
        pytest.skip(f"transformers 4.57 cannot be installed here: {done.stderr.strip().splitlines()[-1]}")
    return target


@pytest.mark.slow
@pytest.mark.parametrize("mask_ratio", [0.75, 0.85])
def test_same_loss_under_transformers_457(mask_ratio, pretraining_folder, images, transformers_457, tmp_path):
    folder = pretraining_folder(mask_ratio=mask_ratio)
    given = {"pixel_values": images(3), "noise": torch.rand(3, 16, generator=torch.Generator().manual_seed(1))}
    torch.save(given, folder / "given.pt")
    with torch.no_grad():
        expected = RetFoundForPreTraining.from_pretrained(folder).eval()(**given).loss.item()
    output = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(output)],
        env={**os.environ, "PYTHONPATH": str(transformers_457), "USE_TF": "0", "USE_FLAX": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    assert found["version"] == "4.57.6" != metadata.version("transformers")
    assert found["missing_keys"] == found["unexpected_keys"] == found["mismatched_keys"] == []
    assert found["loss"] == pytest.approx(expected, abs=1e-6)
