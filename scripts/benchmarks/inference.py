"""Features, loading and intervals: against timm's batched inference, the pickle of a checkpoint, and seconds.

    python scripts/benchmarks/inference.py --out scripts/benchmarks/results/inference.json [--only features ...]

Features start from decoded images of 224 pixels, by turns: timm's network and transform batch by batch, and this
package's, as `embed` and the linear method run them. Loading is that of random ViT-L weights, each way in a process of
its own, whose memory is counted from the end of the imports on. Intervals are those of all metrics of 1,000 images.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import MEAN, STD, OfficialAutoencoder, alternate, ratio, timm_encoder, timm_features, write_record
from PIL import Image
from torchvision import transforms

from retfound_hf import Predictions, RetFoundConfig, RetFoundImageProcessor, RetFoundModel
from retfound_hf.evaluation.bootstrap import draw, patients_of
from retfound_hf.evaluation.metrics import weighted_metrics
from retfound_hf.inference.predict import features
from retfound_hf.models.conversion import convert_checkpoint
from retfound_hf.vocabulary import MULTI_LABEL, SINGLE_LABEL

VIT_L = "retfound-cfp"
# Names of the released checkpoints for those of the peer.
RELEASED = {
    "token": "cls_token", "positions": "pos_embed", "embed": "patch_embed", "narrow": "decoder_embed",
    "narrow_positions": "decoder_pos_embed", "predict": "decoder_pred",
}  # fmt: skip
# Ways to load, after their imports; the model is left in `model`.
LOAD = {
    "pickle": """
from peers import timm_encoder
from retfound_hf import RetFoundConfig
imported()
model = timm_encoder(RetFoundConfig.from_preset("retfound-cfp"))
model.load_state_dict(torch.load("weights.pth", map_location="cpu", weights_only=True)["model"], strict=False)
""",
    "folder": """
from retfound_hf.models.loading import load_encoder
imported()
model = load_encoder("folder")
""",
    "convert": """
from retfound_hf.models.conversion import convert_checkpoint
imported()
convert_checkpoint("weights.pth", "converted", modality="cfp")
""",
}
CHILD = """
import json, resource, sys, time
import torch
torch.set_num_threads(1)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()

def peak():
    lines = open("/proc/self/status").read().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

def imported():
    global began, cpu, before
    open("/proc/self/clear_refs", "w").write("5")  # the peak counts from here
    began, cpu, before = time.perf_counter(), time.process_time(), resident()
"""
REPORT = """
if "model" in globals():  # mapped weights are read when they are used
    total = sum(float(parameter.detach().sum()) for parameter in model.parameters())
print(json.dumps([time.perf_counter() - began, time.process_time() - cpu, peak() - before]))
"""


def features_of(preset: str, images: int, batch: int, rounds: int) -> dict[str, Any]:
    """Features of decoded images, this package's and timm's by turns."""
    config = RetFoundConfig.from_preset(preset)
    rng = np.random.default_rng(0)
    pictures = [Image.fromarray(rng.integers(0, 256, (224, 224, 3), dtype=np.uint8)) for _ in range(images)]
    ours, theirs, processor = RetFoundModel(config).eval(), timm_encoder(config).eval(), RetFoundImageProcessor()
    bicubic = transforms.InterpolationMode.BICUBIC
    to_input = transforms.Compose(  # the released code's transform of evaluation
        [
            transforms.Resize(256, bicubic),
            transforms.CenterCrop(224),
            transforms.ToTensor(),
            transforms.Normalize(MEAN, STD),
        ]
    )

    def by_timm() -> None:
        parts = [pictures[start : start + batch] for start in range(0, images, batch)]
        timm_features(theirs, [torch.stack([to_input(picture) for picture in part]) for part in parts])

    rows = [{"image": picture} for picture in pictures]
    ways: dict[str, Callable] = {
        "timm": by_timm,
        "retfound_hf": lambda: features(ours, rows, processor, batch_size=batch, description=None),
    }
    times = alternate(ways, rounds)
    return {
        "preset": preset, "images": images, "batch_size": batch, "times": times,
        "times_as_fast": ratio(times, "timm", "retfound_hf"),
        "times_as_fast_in_processor_time": ratio(times, "timm", "retfound_hf", "cpu_seconds"),
    }  # fmt: skip


def loading(rounds: int = 2) -> dict[str, Any]:
    """Seconds and memory of the ways of `LOAD`, with random weights of ViT-L."""
    with tempfile.TemporaryDirectory() as name:
        return loading_in(Path(name), rounds)


def loading_in(folder: Path, rounds: int) -> dict[str, Any]:
    state = OfficialAutoencoder(RetFoundConfig.from_preset(VIT_L)).state_dict()
    for name in list(state):
        first, dot, rest = name.partition(".")
        state[RELEASED.get(first, first) + dot + rest] = state.pop(name)
    torch.save({"model": state}, folder / "weights.pth")
    del state
    convert_checkpoint(folder / "weights.pth", folder / "folder", modality="cfp")
    found: dict[str, list[list[float]]] = {name: [] for name in LOAD}
    for number in range(rounds):
        for name in found if number == 0 else ("pickle", "folder"):
            code = f"import sys; sys.path.append({str(Path(__file__).parent)!r})" + CHILD + LOAD[name] + REPORT
            run = subprocess.run(
                [sys.executable, "-c", code], cwd=folder, stdout=subprocess.PIPE, text=True, check=True
            )
            found[name].append(json.loads(run.stdout.splitlines()[-1]))
    with torch.device("meta"):
        encoder = RetFoundModel(RetFoundConfig.from_preset(VIT_L))
    weights = 4 * sum(parameter.numel() for parameter in encoder.parameters())
    times = {
        name: dict(zip(("seconds", "cpu_seconds", "peak_bytes"), np.median(rows, axis=0).tolist(), strict=True))
        for name, rows in found.items()
    }
    file = (folder / "weights.pth").stat().st_size
    return {
        "encoder_bytes": weights, "file_bytes": file, "times": times,
        "load_times_as_fast": ratio(times, "pickle", "folder"),
        "load_times_as_fast_in_processor_time": ratio(times, "pickle", "folder", "cpu_seconds"),
        "load_peak_over_weights": round(times["folder"]["peak_bytes"] / weights, 2),
        "pickle_peak_over_weights": round(times["pickle"]["peak_bytes"] / weights, 2),
        "convert_peak_over_file": round(times["convert"]["peak_bytes"] / file, 2),
    }  # fmt: skip


def intervals(images: int = 1000, resamples: int = 1000) -> dict[str, Any]:
    """Seconds for the intervals of all metrics as reports have them, and for the bootstrap of all metrics."""
    rng = np.random.default_rng(0)
    patients = np.array([f"p{number // 2}" for number in range(images)])
    found = {}
    for name, problem_type, classes in (
        ("2 classes", SINGLE_LABEL, 2), ("5 classes", SINGLE_LABEL, 5), ("5 labels", MULTI_LABEL, 5)
    ):  # fmt: skip
        if problem_type == SINGLE_LABEL:
            targets = rng.integers(0, classes, images)
            scores = rng.dirichlet(np.ones(classes), images) + 0.5 * np.eye(classes)[targets]
            scores /= scores.sum(axis=1, keepdims=True)
        else:
            targets, scores = rng.integers(0, 2, (images, classes)), rng.random((images, classes))
        predictions = Predictions(
            ids=[str(number) for number in range(images)], scores=scores, targets=targets, problem_type=problem_type,
            class_names=[f"c{number}" for number in range(classes)], patients=patients,
        )  # fmt: skip
        names, units = list(predictions.metrics()), patients_of(patients, images)
        every = partial(weighted_metrics, predictions.rows, names)
        ways: dict[str, Callable] = {
            "intervals": partial(predictions.intervals, resamples, 0),
            "bootstrap of all": partial(draw, every, units, resamples, 0, "percentile"),
        }
        found[name] = {"metrics": len(names), "times": alternate(ways, rounds=3)}
    return {"images": images, "resamples": resamples, "of": found}


def main() -> None:
    parser = argparse.ArgumentParser(description="Features, loading and intervals.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--only", nargs="+", help="parts to run; all by default")
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    parts: dict[str, Callable[[], Any]] = {
        "features": lambda: features_of("retfound-tiny", images=64, batch=32, rounds=5),
        "features_vit_l": lambda: features_of(VIT_L, images=4, batch=4, rounds=2),
        "loading": loading,
        "intervals": intervals,
    }
    found = {name: part() for name, part in parts.items() if name in (arguments.only or parts)}
    what = "features against timm, loading against the pickle, intervals of all metrics"
    write_record(arguments.out, what, arguments.threads, **found)
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
