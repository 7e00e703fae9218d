"""Pretraining on few images: the lift over random weights by learning rate and epochs.

    python scripts/benchmarks/small_data.py --work_dir scratch --out results/small_data.json

Masked autoencoding with `pretrain` at 32 images a step, from the same random weights, on photographs of
`make_synthetic` as in `pretrain_objectives.py`; a linear probe on other patients before and after. One core. The
record is written after each run, and a finished run in `work_dir` is taken up again.
"""

import argparse
import itertools
import json
import math
import platform
from pathlib import Path
from typing import Any

from pretrain_objectives import BUDGET, IMAGES, NETWORK, SCRIPTS, run

from retfound_hf.files import write_json
from retfound_hf.record import git_revision, versions

BATCH = int(BUDGET["--per_device_train_batch_size"])
PUBLISHED = (1e-3, 1792)  # peak rate and batch of Zhou et al. (2023)
RATES = {
    "linear rule": PUBLISHED[0] * BATCH / PUBLISHED[1],
    "square-root rule below 256": PUBLISHED[0] * 256 / PUBLISHED[1] * math.sqrt(BATCH / 256),
    "square-root rule": PUBLISHED[0] * math.sqrt(BATCH / PUBLISHED[1]),
    "5e-4": 5e-4,
    "2e-3": 2e-3,
}
PATIENTS = {"raw": (232, 1), "probe": (300, 0)}  # and seed; about 600 and 780 images
EPOCHS = (20, 100)


def make_images(work_dir: Path) -> None:
    """Shards, the labelled set, and the network that all start from."""
    for name, (patients, seed) in PATIENTS.items():
        if not (work_dir / name).exists():
            options = ("--num_patients", str(patients), "--seed", str(seed))
            run(str(SCRIPTS / "make_synthetic.py"), str(work_dir / name), *IMAGES, *options)
    sizes = ("--modality", "cfp", "--image_size", "128")
    run(str(SCRIPTS / "prepare_images.py"), str(work_dir / "raw"), str(work_dir / "shards"), *sizes)
    if not (work_dir / "start").exists():
        import torch

        from retfound_hf import RetFoundConfig, RetFoundForPreTraining

        torch.manual_seed(0)
        RetFoundForPreTraining(RetFoundConfig(**NETWORK)).save_pretrained(work_dir / "start")


def pretrained(work_dir: Path, epochs: int, rate: float) -> dict[str, Any]:
    """AUROC of the probe before and after a run, and its loss beside that of the mean patch."""
    out = work_dir / f"{epochs}-{rate:.2g}"
    if not (out / "model.safetensors").exists():
        own = {"--learning_rate": rate, "--probe_epochs": epochs, "--num_train_epochs": epochs}
        options = {name: value for name, value in BUDGET.items() if name != "--max_steps"} | own
        run(
            str(SCRIPTS / "pretrain.py"), "--model_name_or_path", str(work_dir / "start"), "--train_data",
            str(work_dir / "shards"), "--probe_data", str(work_dir / "probe"), "--cache_dir", str(work_dir / "cache"),
            "--output_dir", str(out), "--overwrite_output_dir",
            *(str(word) for pair in options.items() for word in pair),
        )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    probes = [line["probe_auroc"] for line in lines if "probe_auroc" in line]
    record = json.loads((out / "run.json").read_text())
    return {
        "images": record["num_images"],
        "epochs": epochs,
        "steps": record["steps"],
        "learning_rate": rate,
        "auroc_before": round(probes[0], 4),
        "auroc_after": round(probes[-1], 4),
        "loss": round([line["loss"] for line in lines if "loss" in line][-1], 4),
        "mean_patch_loss": round(record["untrained_loss"], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Lift of pretraining on few images, by learning rate.")
    parser.add_argument("--work_dir", required=True, type=Path, help="folder for images, shards and runs")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    arguments = parser.parse_args()
    work_dir = arguments.work_dir
    make_images(work_dir)
    record: dict[str, Any] = {
        "what": "masked autoencoding of a small ViT on few synthetic photographs; linear probe on other patients",
        "machine": f"{platform.machine()}, one core",
        "versions": versions(),
        "git_revision": git_revision(),
        "batch": BATCH,
        "rates": RATES,
        "runs": [],
    }
    for epochs, (rule, rate) in itertools.product(EPOCHS, RATES.items()):
        record["runs"].append({"rule": rule, **pretrained(work_dir, epochs, rate)})
        print(record["runs"][-1], flush=True)
        write_json(arguments.out, record)


if __name__ == "__main__":
    main()
