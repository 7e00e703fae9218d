"""Lift of pretraining, class by class and by the number of labels, with intervals over patients.

    python scripts/benchmarks/pretrain_lift.py checkpoint-492 my-run --probe_data labelled --cache_dir scratch \
        --out results/pretrain_lift

A linear head on the frozen features of each model, fitted on shares of the training patients, is compared on the test
split with the same head on `retfound-tiny` untrained: the paired bootstrap over patients of `evaluation.comparisons`.
The probe set should be large; forward passes are cheap. Writes OUT.json.
"""

import argparse
import os
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import layer_norm
from transformers import set_seed

from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor, RetFoundModel
from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.splits import fraction_of_patients
from retfound_hf.evaluation.comparisons import compare_metrics
from retfound_hf.evaluation.linear_probe import fit_linear_probe
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.files import atomic_file, write_json
from retfound_hf.inference.predict import forward, prepare_split, to_scores
from retfound_hf.record import git_revision, versions

KIND = "single_label_classification"
SHARES = (1.0, 0.25)
SEED = 0  # of the drawn patients
RESAMPLES = 500


def features(
    name: str, path: Path, splits: dict[str, Any], processor: RetFoundImageProcessor
) -> dict[str, np.ndarray]:
    """Feature vectors of every split, from the file or into it."""
    if not path.is_file():
        set_seed(0)
        untrained = RetFoundForPreTraining(RetFoundConfig.from_preset("retfound-tiny")).vit
        model = untrained if name == "untrained" else RetFoundModel.from_pretrained(name)
        found = {
            split: forward(model, part.images, processor, lambda outputs: outputs.patch_mean, precision="bf16")
            for split, part in splits.items()
        }
        with atomic_file(path) as partial, partial.open("wb") as file:
            np.savez(file, **found)
    with np.load(path) as stored:
        return {split: normalised(stored[split]) for split in stored.files}


def normalised(patch_means: np.ndarray) -> np.ndarray:
    return layer_norm(torch.from_numpy(patch_means), patch_means.shape[-1:], eps=1e-6).numpy()


def scores(
    found: dict[str, np.ndarray], splits: dict[str, Any], kept: np.ndarray, names: tuple[str, ...]
) -> np.ndarray:
    train, val = splits["train"].targets[kept], splits["val"].targets
    probe = fit_linear_probe(found["train"][kept], train, found["val"], val, KIND, class_names=names)
    return to_scores((found["test"] @ probe.weight.T + probe.bias).astype(np.float32), KIND)


def lifts(models: list[str], probe_data: str, cache_dir: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """Per model a list over shares of AUROCs and lifts, and the numbers of images."""
    labelled, processor = read_labelled(probe_data), RetFoundImageProcessor.for_image_size(224)
    splits = {
        name: prepare_split(labelled, name, processor, cache_dir=str(cache_dir)) for name in ("train", "val", "test")
    }
    names, test = labelled.class_names, splits["test"]
    patients = {name: part.rows["patient_id"].to_numpy(str) for name, part in splits.items()}
    all_found = {
        name: features(name, cache_dir / f"{Path(name).name}.npz", splits, processor)
        for name in ("untrained", *models)
    }
    result: dict[str, Any] = {Path(name).name: [] for name in all_found}
    for share in SHARES:
        kept = fraction_of_patients(patients["train"], splits["train"].targets, share, SEED)
        by_model = {
            name: Predictions.of_table(test.rows, test.targets, scores(found, splits, kept, names), names, KIND)
            for name, found in all_found.items()
        }
        for name, own in by_model.items():
            aurocs = {key: round(value, 4) for key, value in own.metrics().items() if key.startswith("auroc")}
            entry = {"labels": int(kept.sum()), "auroc": aurocs}
            if name != "untrained":
                compared = compare_metrics(own, by_model["untrained"], RESAMPLES)
                entry["lift_ci95"] = {
                    key: [round(value, 4) for value in compared[key].difference.interval] for key in aurocs
                }
            result[Path(name).name].append(entry)
            print(name, entry, flush=True)
    return result, {name: len(part.targets) for name, part in splits.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Lift of linear probes by pretraining, with intervals over patients.")
    parser.add_argument("models", nargs="+", help="model folders, such as the checkpoints of a run")
    parser.add_argument("--probe_data", required=True, help="labelled set, split by patient")
    parser.add_argument("--cache_dir", required=True, type=Path, help="folder for decoded images and feature vectors")
    parser.add_argument("--note", default="", help="what the models are, for the record")
    parser.add_argument("--out", required=True, type=Path, help="file to write, without suffix")
    arguments = parser.parse_args()
    arguments.cache_dir.mkdir(parents=True, exist_ok=True)
    found, images = lifts(arguments.models, arguments.probe_data, arguments.cache_dir)
    write_json(
        arguments.out.with_suffix(".json"),
        {
            "what": "linear probes on frozen features of retfound-tiny, compared with the same model untrained",
            "note": arguments.note,
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions(),
            "git_revision": git_revision(),
            "images": images,
            "models": found,
        },
    )


if __name__ == "__main__":
    main()
