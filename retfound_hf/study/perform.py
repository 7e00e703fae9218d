"""One job from its options to its predictions, by the functions of the commands `finetune` and `evaluate`."""

import dataclasses
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from transformers import set_seed

from ..data.labelled_set import LabelledSet
from ..finetuning.job import FinetuneJob, make_job
from ..finetuning.linear import head_logits
from ..finetuning.run import save_model
from ..finetuning.training import train_head, train_network
from ..inference.forward import predict_logits, to_scores
from ..inference.report import write_report
from ..inference.sets import PreparedSplit, prepare_split
from ..runs.files import write_json
from ..runs.record import git_revision, versions
from .checks import read_external
from .efficiency import adaptation
from .features import cached_features
from .folder import JobResult
from .jobs import Job
from .options import parse_options
from .settings import DataSet


def perform(job: Job, data: DataSet, output: Path, features: Path, keep_model: bool = False) -> JobResult:
    """Train, predict every evaluated set, and write what a job's folder holds, but for `log.txt`.

    Args:
        output: the folder to fill.
        features: the study's cache of feature vectors.
    """
    started = time.time()
    (output / "finetune.yaml").write_text(yaml.safe_dump(dict(job.options), sort_keys=False), encoding="utf-8")
    arguments = parse_options(job.options, output / "training")
    set_seed(arguments[3].seed)
    run = make_job(*arguments)
    sets = {"val": run.prepared["val"], "test": run.prepared["test"]}
    sets |= {one.name: _prepare(run, read_external(one, run.labelled), one.split) for one in data.external}
    if run.method_args.method == "linear":
        model, history, logits = _linear(run, sets, features)
    else:
        model, history = train_network(run)
        logits = {name: predict_logits(model, one.images, run.processor, **run.forward_options)
                  for name, one in sets.items()}  # fmt: skip
    for name, prepared in sets.items():
        kind, classes = run.labelled.problem_type, run.labelled.class_names
        scores = to_scores(logits[name], kind)
        write_report(output / name, prepared.rows, prepared.targets, scores, kind, classes, plots=False)
    write_json(output / "history.json", history)
    if keep_model:
        save_model(run, model, output / "model")
    shutil.rmtree(output / "training", ignore_errors=True)
    result = JobResult(
        job.id, job.data, job.model, job.method, job.fraction, job.seed, "finished",
        seconds=round(time.time() - started, 2),
        images={"train": len(run.prepared["train"].rows), **{name: len(one.rows) for name, one in sets.items()}},
        patients={name: _patients(one) for name, one in {"train": run.prepared["train"], **sets}.items()},
        efficiency=adaptation(history),
        facts=_facts(model),
    )  # fmt: skip
    write_json(output / "job.json", dataclasses.asdict(result))
    return result


def _linear(
    run: FinetuneJob, sets: dict[str, PreparedSplit], folder: Path
) -> tuple[Any, list[dict[str, Any]], dict[str, np.ndarray]]:
    """The head, its log and the logits of every set, all from cached features of which a fraction is some rows."""
    found = cached_features(folder, run, {"train": run.all_training, **sets})
    chosen = run.all_training.rows["id"].isin(run.prepared["train"].rows["id"]).to_numpy()
    model, history = train_head(run, {"train": found["train"][chosen], "val": found["val"]})
    return model, history, {name: head_logits(model, found[name]) for name in sets}


def _prepare(run: FinetuneJob, labelled: LabelledSet, split: str) -> PreparedSplit:
    return prepare_split(
        labelled,
        split,
        run.processor,
        on_bad_image=run.data_args.on_bad_image,
        num_workers=run.args.dataloader_num_workers,
        cache_dir=run.data_args.cache_dir,
    )


def _patients(prepared: PreparedSplit) -> int | None:
    patients = prepared.rows["patient_id"]
    return int(patients.nunique()) if patients.notna().all() else None


def _facts(model: Any) -> dict[str, Any]:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    name = torch.cuda.get_device_name() if device is not None and device.type == "cuda" else str(device or "cpu")
    return {
        "device": name,
        "threads": torch.get_num_threads(),
        "cpu_seconds": round(time.process_time(), 2),  # of this job's process alone, whatever else the machine does
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "versions": versions(),
        "git_revision": git_revision(),
    }
