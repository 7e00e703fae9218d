"""Few images: the lift of pretraining by rate, epochs and images; the layer decay of fine-tuning by what was learned.

    python scripts/benchmarks/small_data.py --work_dir scratch --out results/small_data.json

Pretraining: masked autoencoding with `pretrain` at 32 images a step, from the same random weights, on photographs of
`make_synthetic` as in `pretrain_objectives.py`; a linear probe on other patients before and after. Fine-tuning: the
full recipe on those other patients, with and without layer decay, of a network of 12 blocks from random weights, from
those of 60 steps of pretraining, and from those of 2,000. One core. The record is written after each run, and a
finished run in `work_dir` is taken up again.
"""

import argparse
import itertools
import json
import math
import platform
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from pretrain_objectives import BUDGET, IMAGES, NETWORK, SCRIPTS, run

import retfound_hf as rf
from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor
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
PATIENTS = {"few": (232, 1), "more": (930, 2), "probe": (300, 0)}  # and seed; about 600, 2,400 and 780 images
RUNS = (
    *(("few", epochs, rule) for epochs in (20, 100) for rule in RATES),
    *((images, epochs, rule) for rule in ("5e-4", "linear rule") for images, epochs in (("few", 400), ("more", 100))),
)
DEEP = NETWORK | {"num_hidden_layers": 12}
LEARNED_STEPS = {"random weights": 0, "60 steps": 60, "2,000 steps": 2000}
LAYER_DECAYS = (0.65, 1.0)
SEEDS = (0, 1)


def make_images(work_dir: Path) -> None:
    """Shards, the labelled set, and the networks that all start from."""
    for name, (patients, seed) in PATIENTS.items():
        if not (work_dir / name).exists():
            options = ("--num_patients", str(patients), "--seed", str(seed))
            run(str(SCRIPTS / "make_synthetic.py"), str(work_dir / name), *IMAGES, *options)
        if name != "probe":
            sizes = ("--modality", "cfp", "--image_size", "128")
            run(str(SCRIPTS / "prepare_images.py"), str(work_dir / name), str(work_dir / f"shards-{name}"), *sizes)
    for name, network in (("start", NETWORK), ("deep-0", DEEP)):
        if not (work_dir / name).exists():
            torch.manual_seed(0)
            config = RetFoundConfig(**network)
            RetFoundForPreTraining(config).save_pretrained(work_dir / name)
            RetFoundImageProcessor.for_image_size(config.image_size, modality="cfp").save_pretrained(work_dir / name)


def pretrain(work_dir: Path, start: str, images: str, out: Path, own: dict[str, Any]) -> None:
    """Train `start` on the shards of `images` into `out`, with options beside those of `BUDGET`."""
    if (out / "model.safetensors").exists():
        return
    options = {name: value for name, value in BUDGET.items() if name not in ("--max_steps", "--probe_epochs")} | own
    run(
        str(SCRIPTS / "pretrain.py"), "--model_name_or_path", str(work_dir / start), "--train_data",
        str(work_dir / f"shards-{images}"), "--cache_dir", str(work_dir / "cache"),
        "--output_dir", str(out), "--overwrite_output_dir", *(str(word) for pair in options.items() for word in pair),
    )  # fmt: skip


def lift(work_dir: Path, images: str, epochs: int, rate: float) -> dict[str, Any]:
    """AUROC of the probe before and after a run, and its loss beside that of the mean patch."""
    out = work_dir / f"{images}-{epochs}-{rate:.2g}"
    own = {"--learning_rate": rate, "--num_train_epochs": epochs, "--probe_epochs": epochs}
    pretrain(work_dir, "start", images, out, {**own, "--probe_data": work_dir / "probe"})
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


def finetuned(work_dir: Path, start: str, layer_decay: float, seed: int) -> dict[str, float]:
    """Test AUROC and last training loss of a full fine-tuning of the deep network."""
    out, steps = work_dir / f"full-{start}-{layer_decay}-{seed}".replace(" ", "-"), LEARNED_STEPS[start]
    if steps:
        own = {"--learning_rate": 1e-3, "--max_steps": steps}
        pretrain(work_dir, "deep-0", "more", work_dir / f"deep-{steps}", own)
    if not (out / "metrics.json").exists():
        options = {"disable_tqdm": True, "overwrite_output_dir": True, "cache_dir": work_dir / "cache"}
        rf.finetune(work_dir / f"deep-{steps}", work_dir / "probe", out, layer_decay=layer_decay, seed=seed, **options)
    losses = [row["loss"] for row in json.loads((out / "history.json").read_text()) if "loss" in row]
    return {
        "auroc": round(json.loads((out / "metrics.json").read_text())["auroc"], 4),
        "training_loss": round(losses[-1], 4),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Few images: pretraining by rate, fine-tuning by layer decay.")
    parser.add_argument("--work_dir", required=True, type=Path, help="folder for images, shards and runs")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--only", choices=("pretraining", "finetuning"), help="both by default")
    arguments = parser.parse_args()
    work_dir = arguments.work_dir
    make_images(work_dir)
    record: dict[str, Any] = {
        "what": "a small ViT on few synthetic photographs: linear probe on other patients after masked autoencoding; "
        "full fine-tuning by layer decay",
        "machine": f"{platform.machine()}, one core",
        "versions": versions(),
        "git_revision": git_revision(),
        "batch": BATCH,
        "rates": RATES,
    }
    if arguments.only != "finetuning":
        record["runs"] = []
        for images, epochs, rule in RUNS:
            record["runs"].append({"rule": rule, **lift(work_dir, images, epochs, RATES[rule])})
            print(record["runs"][-1], flush=True)
            write_json(arguments.out, record)
    if arguments.only != "pretraining":
        record["finetuning"] = []
        for start, decay in itertools.product(LEARNED_STEPS, LAYER_DECAYS):
            rows = [finetuned(work_dir, start, decay, seed) for seed in SEEDS]
            means = {name: round(mean(row[name] for row in rows), 4) for name in rows[0]}
            record["finetuning"].append({"start": start, "layer_decay": decay, "mean": means, "seeds": rows})
            print(record["finetuning"][-1], flush=True)
            write_json(arguments.out, record)


if __name__ == "__main__":
    main()
