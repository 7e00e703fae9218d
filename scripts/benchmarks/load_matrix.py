"""Versions of transformers that load a published folder: by the stock class, code from the folder, the package.

Each version gets an environment of its own, made in seconds: the packages of this one are linked into it, but for
transformers and what depends on its version, which pip installs. In each, a fresh process per way loads the folder,
compares its outputs with those of the model that was published, saves it, loads that again and compares again.

python scripts/benchmarks/load_matrix.py --output scripts/benchmarks/results/load_matrix.json
"""

import argparse
import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[2]
# Not linked: what pip must choose to fit transformers, and what would break with another choice.
CHOSEN_BY_PIP = ("transformers", "huggingface_hub", "tokenizers", "datasets", "evaluate", "hf_xet", "retfound_hf")
NEEDS_TRANSFORMERS_5 = ("peft", "accelerate")
WAYS = ("stock class", "code from the folder", "package")
STEPS = ("load", "equal", "save", "load_again")
CHILD = """
import json, sys
folder, way, again = sys.argv[1:]
if way == "package":
    import retfound_hf
import torch, transformers
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining
given = torch.load(f"{folder}/given.pt")
remote = {"trust_remote_code": True} if way == "code from the folder" else {}

def outputs(base, classifier):
    if way == "stock class":
        stock = transformers.ViTMAEForPreTraining.from_pretrained(base).eval()
        return {base: stock}, {"loss": stock(given["pixels"], noise=given["noise"]).loss}
    models = {
        "autoencoder": AutoModelForPreTraining.from_pretrained(base, **remote).eval(),
        "classifier": AutoModelForImageClassification.from_pretrained(classifier, **remote).eval(),
    }
    encoder = AutoModel.from_pretrained(base, **remote).eval()
    processor = AutoImageProcessor.from_pretrained(classifier, **remote)
    return models | {"processor": processor}, {
        "loss": models["autoencoder"](given["pixels"], noise=given["noise"]).loss,
        "logits": models["classifier"](given["pixels"]).logits,
        "features": encoder(given["pixels"]).pooler_output,
        "processed": processor(given["image"].numpy(), return_tensors="pt").pixel_values,
    }

def difference(found):
    return max((found[name] - given[name]).abs().max().item() for name in found)

result = {"transformers": transformers.__version__, "outputs": []}
with torch.no_grad():
    models, found = outputs(f"{folder}/base", f"{folder}/classifier")
    result |= {"load": True, "outputs": sorted(found), "difference": difference(found)}
    result["equal"] = result["difference"] <= 1e-5
    for name, model in models.items():
        place = {"processor": "classifier", "classifier": "classifier"}.get(name, "base")
        model.save_pretrained(f"{again}/{place}")
        if place == "base" and way != "stock class":
            models["processor"].save_pretrained(f"{again}/{place}")
    result["save"] = True
    found = outputs(f"{again}/base", f"{again}/classifier")[1]
    result["load_again"] = difference(found) <= 1e-5
print("RESULT " + json.dumps(result))
"""


def lowest_allowed() -> str:
    """The lowest transformers that `setup.cfg` allows."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    found = re.search(r"transformers>=([\d.]+)", settings["options"]["install_requires"])[1]
    return found if found.count(".") == 2 else f"{found}.0"


def make_environment(version: str, place: Path) -> Path:
    """A virtual environment with this version of transformers; returns its Python."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(place)], check=True)
    (packages,) = place.glob("lib/python*/site-packages")
    skipped = CHOSEN_BY_PIP + (NEEDS_TRANSFORMERS_5 if version.startswith("4") else ())
    here = Path(metadata.distribution("torch").locate_file(""))
    for entry in here.iterdir():
        name = re.split(r"[-.]", entry.name)[0].lower()
        if name not in skipped and entry.suffix != ".pth" and not entry.name.startswith("__"):
            (packages / entry.name).symlink_to(entry)
    python = place / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", f"transformers=={version}"]
    subprocess.run([*pip, "--disable-pip-version-check"], check=True)
    return python


def make_folders(place: Path) -> None:
    """`base` and `classifier` as they are published, with random weights, and what they should give in `given.pt`."""
    import numpy as np
    import torch

    from retfound_hf import (
        RetFoundConfig,
        RetFoundForImageClassification,
        RetFoundForPreTraining,
        RetFoundImageProcessor,
    )
    from retfound_hf.hub.contents import read_contents
    from retfound_hf.hub.publish import staged

    torch.manual_seed(0)
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128,
        "image_size": 64, "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 4, "decoder_intermediate_size": 64,
    }  # fmt: skip
    kinds = {"base": RetFoundForPreTraining, "classifier": RetFoundForImageClassification}
    processor, models = RetFoundImageProcessor.for_image_size(64), {}
    for name, kind in kinds.items():
        model = models[name] = kind(RetFoundConfig(**sizes, num_labels=3)).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += 0.1 * torch.randn_like(parameter)
        source = place / "sources" / name
        model.save_pretrained(source)
        processor.save_pretrained(source)
        (source / "README.md").write_text("---\nlicense: cc-by-nc-4.0\n---\n")
        with staged(read_contents(source), f"org/{name}") as stage:
            shutil.copytree(stage, place / name)
    y, x = np.mgrid[:120, :160]
    disc = (np.hypot(x - 70, y - 60) < 50)[..., None] * np.random.default_rng(0).integers(90, 200, (120, 160, 3))
    given = {
        "pixels": torch.randn(2, 3, 64, 64), "noise": torch.rand(2, 16), "image": torch.tensor(disc.astype(np.uint8))
    }  # fmt: skip
    with torch.no_grad():
        given["loss"] = models["base"](given["pixels"], noise=given["noise"]).loss
        given["logits"] = models["classifier"](given["pixels"]).logits
        given["features"] = models["base"].vit(given["pixels"]).pooler_output
        given["processed"] = processor(given["image"].numpy(), return_tensors="pt").pixel_values
    torch.save(given, place / "given.pt")


def run_way(python: Path, place: Path, way: str, home: Path) -> dict:
    """Result of one way in one environment; a step that failed and all after it are false, with the last line."""
    again = Path(tempfile.mkdtemp(dir=home))
    env = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    env |= {"HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "USE_TF": "0", "OMP_NUM_THREADS": "1"}
    if way == "package":
        env["PYTHONPATH"] = str(ROOT)
    words = [str(python), "-c", CHILD, str(place), way, str(again)]
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=600, cwd=home)
    found = re.search(r"^RESULT (.*)$", done.stdout, re.M)
    if found is None:
        return dict.fromkeys(STEPS, False) | {"error": done.stderr.strip().splitlines()[-1]}
    return json.loads(found[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True)
    newest = metadata.version("transformers")
    parser.add_argument("--versions", nargs="+", default=["4.57.6", lowest_allowed(), newest])
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory() as name:
        home = Path(name)
        make_folders(home / "published")
        for version in arguments.versions:
            python = make_environment(version, home / f"env-{version}")
            for way in WAYS:
                row = {"transformers": version, "way": way}
                if way == "package" and version.startswith("4"):
                    rows.append(row | {"left_out": f"the package asks for transformers>={lowest_allowed()}"})
                else:
                    rows.append(row | run_way(python, home / "published", way, home))
                print(json.dumps(rows[-1]))
    from retfound_hf.record import versions

    record = {"versions": versions(), "steps": STEPS, "rows": rows}
    arguments.output.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
