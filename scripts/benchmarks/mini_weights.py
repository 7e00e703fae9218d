"""Make `retfound-mini`, the small weights that come with the package, and measure what they are worth.

    python scripts/benchmarks/mini_weights.py --work_dir scratch --out results/mini_weights

`make_synthetic` writes photographs of 650 patients, `pretrain` trains the preset on them without labels, and
the result is stored in half precision in `retfound_hf/models/weights`. Then, on the labelled set of the quickstart
with each of five seeds, none of which made images of the pretraining, a linear head on its features is compared on
the test split with the same head on the same network untrained. Writes OUT.json. Finished steps in the work folder are
not repeated.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import set_seed

import retfound_hf as rf
from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.evaluation.comparisons import compare_metrics
from retfound_hf.files import read_json, write_json
from retfound_hf.models.cards import cost_text, describe_preprocessing, write_card
from retfound_hf.models.loading import STARTING_POINTS
from retfound_hf.record import git_revision, versions

SCRIPTS = Path(__file__).resolve().parents[1]
NAME = "retfound-mini"
QUICKSTART = ("--stage", "advanced", "--camera", "handheld")
UNLABELLED = ("--num_patients", "650", "--seed", "1001", *QUICKSTART)
SEEDS, PATIENTS = range(5), 200  # of the labelled sets
BUDGET = {
    "--per_device_train_batch_size": "32",
    "--learning_rate": "1.5e-3",
    "--warmup_steps": "0.05",
    "--dataloader_num_workers": "0",
    "--save_steps": "500",
    "--preview_steps": "0",
    "--logging_steps": "50",
    "--seed": "0",
}


def run(script: str, *words: str) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / script), *words], check=True)


def pretrain(work: Path, epochs: str) -> Path:
    """Folder of the pretrained autoencoder."""
    raw, shards, done = work / "raw", work / "shards", work / NAME
    if not raw.exists():
        run("make_synthetic.py", str(raw), *UNLABELLED)
    if not shards.exists():
        run("prepare_images.py", str(raw), str(shards), "--modality", "cfp")
    flags = [word for pair in BUDGET.items() for word in pair]
    run(
        "pretrain.py", "--config_name", NAME, "--modality", "cfp", "--train_data", str(shards),
        "--output_dir", str(done), "--cache_dir", str(work / "cache"), "--num_train_epochs", epochs, *flags,
        "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    return done


def pack(folder: Path, package: Path) -> int:
    """Store a folder in half precision, which loads as single precision; bytes of the weights."""
    shutil.rmtree(package, ignore_errors=True)
    package.mkdir(parents=True)
    shutil.copy(folder / "preprocessor_config.json", package)
    write_json(package / "config.json", {**read_json(folder / "config.json"), "dtype": "float32"})
    tensors = {name: tensor.to(torch.float16) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(tensors, package / "model.safetensors", metadata={"format": "pt"})
    record = read_json(folder / "run.json")
    write_card(
        package, "pretrained", {"license": "apache-2.0", "pipeline_tag": "image-feature-extraction"},
        folder_name=f"retfound_hf/models/weights/{NAME}",
        title=f"{NAME}: a small masked autoencoder for trying things out",
        description=(
            "A ViT of 6 blocks, 192 wide, for images of 128 pixels, pretrained by masked autoencoding (He et al. "
            "2022) on synthetic photographs alone. It is none of the official weights, and knows nothing of real eyes."
        ),
        has_decoder=True,
        training_data=(
            f"`retfound make_synthetic {' '.join(UNLABELLED)}`: {record['num_images']:,} drawn photographs, without "
            "their labels. No person was photographed."
        ),
        preprocessing=describe_preprocessing(RetFoundImageProcessor.from_pretrained(folder)),
        cost=cost_text(record["seconds"], record["hardware"]),
        provenance=(
            f"`scripts/benchmarks/mini_weights.py` makes it again: {record['steps']:,} steps of "
            f"{BUDGET['--per_device_train_batch_size']} images, peak learning rate {BUDGET['--learning_rate']}, then "
            "rounded to half precision. `scripts/benchmarks/results/mini_weights.json` says what its features are "
            "worth."
        ),
    )  # fmt: skip
    return (package / "model.safetensors").stat().st_size


def measure(work: Path) -> list[dict[str, Any]]:
    """Test AUROC of a linear head on random and on learned features, by seed of the labelled set."""
    rows, untrained = [], work / "untrained"
    if not untrained.exists():
        set_seed(0)
        config = RetFoundConfig.from_preset(NAME, modality="cfp")
        RetFoundForPreTraining(config).save_pretrained(untrained)
        RetFoundImageProcessor.for_image_size(config.image_size).save_pretrained(untrained)
    for seed in SEEDS:
        data = work / f"labelled-{seed}"
        if not data.exists():
            run("make_synthetic.py", str(data), "--num_patients", str(PATIENTS), "--seed", str(seed), *QUICKSTART)
        options = {"method": "linear", "cache_dir": str(work / "cache"), "overwrite_output_dir": True}
        random, learned = (
            rf.finetune(model, data, work / f"{name}-{seed}", **options).predictions["test"]
            for name, model in (("random", untrained), ("learned", NAME))
        )
        difference = compare_metrics(learned, random, 500)["auroc"].difference
        rows.append(
            {
                "seed": seed,
                "test_images": len(learned),
                "random": round(random.metrics()["auroc"], 4),
                "learned": round(learned.metrics()["auroc"], 4),
                "difference_ci95": [round(value, 4) for value in difference.interval],
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description="Make the small weights of the package, and measure them.")
    parser.add_argument("--work_dir", required=True, type=Path)
    parser.add_argument("--epochs", default="40", help="of pretraining")
    parser.add_argument("--out", required=True, type=Path, help="file to write, without suffix")
    arguments = parser.parse_args()
    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    done = pretrain(arguments.work_dir, arguments.epochs)
    size = pack(done, Path(STARTING_POINTS[NAME].folder))
    rows = measure(arguments.work_dir)
    lifts = [row["learned"] - row["random"] for row in rows]
    write_json(
        arguments.out.with_suffix(".json"),
        {
            "what": f"{NAME}: a linear head on its features, and on those of the same network untrained, five sets",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions(),
            "git_revision": git_revision(),
            "pretraining": {
                "images": " ".join(UNLABELLED),
                "number": sum(1 for _ in (arguments.work_dir / "raw").rglob("*.jpg")),
                "epochs": float(arguments.epochs),
                "flags": BUDGET,
                "seconds": read_json(done / "run.json").get("seconds"),
            },
            "bytes": size,
            "auroc": rows,
            "random_mean": round(mean(row["random"] for row in rows), 4),
            "learned_mean": round(mean(row["learned"] for row in rows), 4),
            "lift_mean": round(mean(lifts), 4),
            "lift_sd": round(stdev(lifts), 4),
        },
    )


if __name__ == "__main__":
    main()
