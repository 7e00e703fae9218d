"""Do all objectives learn? The same small network from the same random weights, on the same synthetic photographs.

    python scripts/benchmarks/pretrain_objectives.py --work_dir scratch --out results/pretrain_objectives.json

`make_synthetic` writes grainy photographs of advanced disease, of 1,000 patients to pretrain on and of 600 others for
the probe; `prepare_images` makes shards of 128 x 128 pixels, `pretrain` trains a ViT of 4 blocks by each objective at
the budget below, on one core. The probe is a linear head on frozen features, fitted on the probe set's training split,
its strength chosen on the validation split, its AUROC measured on the test split, every 250 steps. Speed is counted in
seconds of the processor, decoding and views included, so that what else the machine does falls out; memory is the peak
of the process. A finished run in `work_dir` is taken up; one that was stopped begins anew.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

from retfound_hf.files import write_json
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.record import git_revision, versions

SCRIPTS = Path(__file__).resolve().parents[1]
IMAGES = ("--modality", "cfp", "--stage", "advanced", "--camera", "handheld")
PATIENTS = (1000, 600)
NETWORK = {
    "hidden_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 384, "image_size": 96,
    "decoder_hidden_size": 64, "decoder_num_hidden_layers": 2, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 256, "modality": "cfp",
}  # fmt: skip
BUDGET = {
    "--max_steps": "1000",
    "--per_device_train_batch_size": "32",
    "--learning_rate": "1e-3",
    "--warmup_steps": "0.1",
    "--probe_epochs": "3.0864",  # 250 steps
    "--dataloader_num_workers": "0",
    "--save_steps": "0",
    "--preview_steps": "0",
    "--logging_steps": "20",
}
# Heads and crops for a small network, few images, and a short run.
OPTIONS: dict[str, dict[str, str]] = {
    "simclr": {},
    "moco_v3": {"--head_width": "512"},
    "swav": {"--head_width": "512", "--num_prototypes": "64", "--local_crops": "0", "--sinkhorn_epsilon": "0.02"},
    "dino": {
        "--learning_rate": "5e-4",
        "--head_width": "512",
        "--num_prototypes": "4096",
        "--local_crops": "0",
        "--teacher_momentum": "0.99",
        "--temperature": "0.04",
    },
    "mae": {"--learning_rate": "2e-3"},
}
# Runs `pretrain` and notes what its steps cost.
WATCHED = """
import json, resource, sys, time
from retfound_hf.pretraining.pretrain import main
from retfound_hf.pretraining.loop import Loop
step, seconds = Loop.step, 0.0
def timed(self, batches):
    global seconds
    began = time.process_time()
    step(self, batches)
    seconds += time.process_time() - began
Loop.step = timed
main(sys.argv[2:])
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
with open(sys.argv[1], "w") as file:
    json.dump({"seconds": seconds, "peak_bytes": peak}, file)
"""


def run(*words: str) -> None:
    subprocess.run([sys.executable, *words], check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


def make_data(work_dir: Path) -> tuple[Path, Path, Path]:
    """Shards, labelled set and the network that all start from."""
    unlabelled, labelled, shards, start = (work_dir / name for name in ("cfp-raw", "cfp-probe", "cfp-shards", "start"))
    for folder, patients, seed in ((unlabelled, PATIENTS[0], 1), (labelled, PATIENTS[1], 0)):
        if not folder.exists():
            words = ("--num_patients", str(patients), "--seed", str(seed))
            run(str(SCRIPTS / "make_synthetic.py"), str(folder), *IMAGES, *words)
    words = ("--modality", "cfp", "--image_size", "128")
    run(str(SCRIPTS / "prepare_images.py"), str(unlabelled), str(shards), *words)
    if not start.exists():
        import torch

        from retfound_hf import RetFoundConfig, RetFoundForPreTraining

        torch.manual_seed(0)
        RetFoundForPreTraining(RetFoundConfig(**NETWORK)).save_pretrained(start)
    return shards, labelled, start


def learn(objective: str, work_dir: Path, data: tuple[Path, Path, Path]) -> dict[str, Any]:
    shards, labelled, start = data
    out, cost = work_dir / f"run-{objective}", work_dir / f"cost-{objective}.json"
    model = out / "model.safetensors"
    if not (cost.exists() and model.exists()):
        flags = [word for pair in {**BUDGET, **OPTIONS[objective]}.items() for word in pair]
        run(
            "-c", WATCHED, str(cost), "--objective", objective, "--model_name_or_path", str(start), "--train_data",
            str(shards), "--probe_data", str(labelled), "--cache_dir", str(work_dir / "cache"), "--output_dir",
            str(out), "--overwrite_output_dir", *flags,
        )  # fmt: skip
        if not model.exists():
            sys.exit(f"{objective} was stopped before its last step; the same command begins it anew")
    spent = json.loads(cost.read_text())
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    curve = [[line["step"], round(line["probe_auroc"], 4)] for line in lines if "probe_auroc" in line]
    logged = [line for line in lines if "loss" in line]
    images = int(BUDGET["--max_steps"]) * int(BUDGET["--per_device_train_batch_size"])
    usual = ("step", "epoch", "loss", "learning_rate", "grad_norm", "images_per_second", "data_wait_fraction")
    return {
        "probe_auroc": curve,
        "lift": round(curve[-1][1] - curve[0][1], 4),
        "images_per_cpu_second": round(images / spent["seconds"], 1),
        "peak_gb": round(spent["peak_bytes"] / 1e9, 2),
        "loss": [[line["step"], round(line["loss"], 4)] for line in logged],
        "signs": {name: round(value, 4) for name, value in logged[-1].items() if name not in usual},
        "options": OPTIONS[objective],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Linear-probe AUROC before and after pretraining, per objective.")
    parser.add_argument("--work_dir", required=True, type=Path, help="folder for images, shards and runs")
    parser.add_argument("--out", required=True, type=Path, help="JSON file to write")
    parser.add_argument("--objectives", nargs="+", default=list(OBJECTIVES), choices=list(OBJECTIVES))
    arguments = parser.parse_args()
    data = make_data(arguments.work_dir)
    record = {
        "what": "a small ViT pretrained by each objective on synthetic fundus photographs; linear probe on others",
        "machine": f"{platform.machine()}, one core",
        "versions": versions(),
        "git_revision": git_revision(),
        "images": " ".join(IMAGES),
        "patients": PATIENTS,
        "network": NETWORK,
        "flags": BUDGET,
        "test_images": sum(1 for _ in (data[1] / "test").rglob("*.*g")),
        "objectives": {name: learn(name, arguments.work_dir, data) for name in arguments.objectives},
    }
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
