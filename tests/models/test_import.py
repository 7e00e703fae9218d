"""`import retfound_hf` is light and registers everything."""

import json
import subprocess
import sys

HEAVY = ["datasets", "sklearn", "matplotlib", "pandas", "evaluate", "transformers.trainer"]
SCRIPT = """
import json, sys
from transformers import ViTMAEForPreTraining
from transformers.image_processing_backends import TorchvisionBackend
before = set(sys.modules)  # some versions of transformers load scikit-learn by themselves
import retfound_hf
heavy = [name for name in json.loads(sys.argv[1]) if name in set(sys.modules) - before]
import torch
from transformers import AutoConfig, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
config = AutoConfig.for_model(
    "retfound", hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
    decoder_hidden_size=32, decoder_num_hidden_layers=1, decoder_num_attention_heads=2, decoder_intermediate_size=32,
)
autos = [AutoModel, AutoModelForImageClassification, AutoModelForPreTraining]
with torch.device("meta"):
    classes = [type(auto.from_config(config)).__name__ for auto in autos]
print(json.dumps({"heavy": heavy, "classes": classes}))
"""


def test_import_is_light_and_registers_the_auto_classes():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, json.dumps(HEAVY)], capture_output=True, text=True, timeout=120
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["heavy"] == []
    assert found["classes"] == ["RetFoundModel", "RetFoundForImageClassification", "RetFoundForPreTraining"]
