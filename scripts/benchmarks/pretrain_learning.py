"""Does pretraining learn? AUROC of a linear probe as a small model trains on synthetic images, by the commands.

    python scripts/benchmarks/pretrain_learning.py --work_dir scratch --out results/pretrain_learning

For each modality: `make_synthetic` writes images of 500 patients to pretrain on and of 300 others for the probe,
`prepare_images` makes shards, `pretrain` trains `retfound-tiny` from scratch. The probe is a linear head on frozen
features, fitted on the probe set's training split, its strength chosen on the validation split, its AUROC measured on
the test split; the point at epoch 0 is the untrained model, with the same initial weights. Writes OUT.json with the
curve, OUT.png that shows it, and OUT-cfp.png, OUT-oct.png: reconstructions after the last step.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from retfound_hf.files import atomic_file, write_json
from retfound_hf.record import git_revision, versions

SCRIPTS = Path(__file__).resolve().parents[1]
# In photographs without grain random features see small lesions as well as any.
IMAGES = {"cfp": ("--stage", "advanced", "--camera", "handheld"), "oct": ()}
BUDGET = {
    "--per_device_train_batch_size": "16",
    "--num_train_epochs": "40",
    "--learning_rate": "1.5e-3",
    "--warmup_steps": "0.05",
    "--probe_epochs": "5",
    "--dataloader_num_workers": "1",
    "--save_steps": "0",
    "--logging_steps": "40",
}


def run(script: str, *words: str) -> None:
    subprocess.run([sys.executable, str(SCRIPTS / script), *words], check=True)


def run_all(modalities: list[str], work_dir: Path) -> dict[str, Any]:
    """All modalities at once, the cores shared among them: small networks gain little from several threads."""
    os.environ["OMP_NUM_THREADS"] = str(max(1, (os.cpu_count() or 1) // len(modalities)))
    with ThreadPoolExecutor(len(modalities)) as pool:
        found = list(pool.map(lambda modality: learn(modality, work_dir), modalities))
    return dict(zip(modalities, found, strict=True))


def learn(modality: str, work_dir: Path) -> dict[str, Any]:
    """Probe AUROC by epoch, loss by epoch, and speed; a finished run in `work_dir` is taken up."""
    unlabelled, labelled, shards, out = (work_dir / f"{modality}-{name}" for name in ("raw", "probe", "shards", "run"))
    for folder, patients, seed in ((unlabelled, 500, 1), (labelled, 300, 0)):
        if not folder.exists():
            run(
                "make_synthetic.py", str(folder), "--modality", modality, "--num_patients", str(patients),
                "--seed", str(seed), *IMAGES[modality],
            )  # fmt: skip
    run("prepare_images.py", str(unlabelled), str(shards), "--modality", modality)
    flags = [word for pair in BUDGET.items() for word in pair]
    run(
        "pretrain.py", "--config_name", "retfound-tiny", "--modality", modality, "--train_data", str(shards),
        "--probe_data", str(labelled), "--cache_dir", str(work_dir / "cache"), "--output_dir", str(out), *flags,
        "--bf16", "--resume_from_checkpoint", "latest",
    )  # fmt: skip
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = [[line["epoch"], round(line["probe_auroc"], 4)] for line in lines if "probe_auroc" in line]
    return {
        "probe_auroc": curve,
        "lift": round(curve[-1][1] - curve[0][1], 4),
        "loss": [[line["epoch"], round(line["loss"], 4)] for line in lines if "loss" in line],
        "images": sum(1 for _ in unlabelled.rglob("*.*g")),
        "images_per_second": round(median(line["images_per_second"] for line in lines if "loss" in line), 1),
    }


def draw(record: dict[str, Any], path: Path) -> None:
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(5.2, 3.2), layout="constrained")
    for modality, found in record["modalities"].items():
        epochs, aurocs = zip(*found["probe_auroc"], strict=True)
        axes.plot(epochs, aurocs, marker="o", label=modality.upper())
    axes.set(xlabel="epochs of pretraining", ylabel="AUROC of a linear probe (test split)")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    with atomic_file(path) as partial:
        figure.savefig(partial, dpi=150)


def main() -> None:
    parser = argparse.ArgumentParser(description="Linear-probe AUROC during pretraining on synthetic images.")
    parser.add_argument("--work_dir", required=True, type=Path, help="folder for images, shards and runs")
    parser.add_argument("--out", required=True, type=Path, help="files to write, without suffix")
    parser.add_argument("--modalities", nargs="+", default=["cfp", "oct"])
    arguments = parser.parse_args()
    record: dict[str, Any] = {
        "what": "retfound-tiny pretrained from scratch on synthetic images; linear probe on others",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "versions": versions(),
        "git_revision": git_revision(),
        "images": {modality: " ".join(IMAGES[modality]) for modality in arguments.modalities},
        "flags": BUDGET,
        "modalities": run_all(arguments.modalities, arguments.work_dir),
    }
    write_json(arguments.out.with_suffix(".json"), record)
    draw(record, arguments.out.with_suffix(".png"))
    for modality in arguments.modalities:
        newest = sorted((arguments.work_dir / f"{modality}-run" / "previews").iterdir())[-1]
        shutil.copy(newest, arguments.out.with_name(f"{arguments.out.name}-{modality}.png"))


if __name__ == "__main__":
    main()
