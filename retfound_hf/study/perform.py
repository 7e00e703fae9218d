"""One job from its options to its predictions, and estimates of how long jobs take."""

import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from transformers import PreTrainedModel, set_seed

from ..data.image_cache import fingerprint
from ..files import atomic_file, file_lock, write_json
from ..finetuning.arguments import FinetuneArguments
from ..finetuning.finetune import Prepared, prepare
from ..finetuning.methods import METHODS, Method
from ..inference.predict import PreparedSplit, head_inputs, head_logits, prepare_split
from ..models.configuration_retfound import RetFoundConfig
from ..models.loading import read_config
from ..record import git_revision, versions
from .config import DataSet, parse_options
from .jobs import Job, Task, patients_in, read_external
from .results import JobResult, adaptation


def perform(job: Job, data: DataSet, output: Path, features: Path, keep_model: bool = False) -> JobResult:
    """Train, predict every evaluated set, and write what a job's folder holds, but for `log.txt`.

    Args:
        job: what to do.
        data: the data set of the job.
        output: the folder to fill.
        features: the study's cache of feature vectors.
        keep_model: write the trained model too.
    """
    started = time.time()
    (output / "finetune.yaml").write_text(yaml.safe_dump(dict(job.options), sort_keys=False), encoding="utf-8")
    args = parse_options(job.options, output / "training")
    set_seed(args.seed)
    method = METHODS[args.method](args)
    args.resolve_rates(method.base_learning_rate)
    prepared = prepare(args, method)
    sets = {split: prepared.splits[split] for split in ("val", "test")}
    for name, one in data.external.items():
        sets[name] = prepare_split(
            read_external(one, prepared.labelled), one.split, prepared.classifier.processor,
            on_bad_image=args.on_bad_image, num_workers=args.dataloader_num_workers, cache_dir=args.cache_dir,
        )  # fmt: skip
    train = _train_head if method.frozen_encoder else _train
    model, history, logits = train(method, prepared, sets, features)
    for name, split in sets.items():
        predictions = prepared.classifier.predictions(split, logits[name])
        predictions.to_csv(output / name / "predictions.csv")
        write_json(output / name / "metrics.json", predictions.metrics())
    write_json(output / "history.json", history)
    if keep_model:
        method.save(model, prepared.classifier.processor, output / "model")
    shutil.rmtree(output / "training", ignore_errors=True)
    parts = {"train": prepared.splits["train"].rows, **{name: split.rows for name, split in sets.items()}}
    result = JobResult.of(
        job, "finished", seconds=round(time.time() - started, 2), efficiency=adaptation(history), facts=_facts(model),
        images={name: len(rows) for name, rows in parts.items()},
        patients={name: patients_in(rows) for name, rows in parts.items()},
    )  # fmt: skip
    result.write(output)
    return result


Outcome = tuple[Any, list[dict[str, Any]], dict[str, np.ndarray]]  # model, history, logits of every set


def _train(method: Method, prepared: Prepared, sets: Mapping[str, PreparedSplit], folder: Path) -> Outcome:
    classifier, splits = prepared.classifier, prepared.splits
    model, history = method.train(classifier, splits["train"], splits["val"], prepared.target_scale)
    trained = replace(classifier, model=model.eval())
    options = method.args.forward_options
    return model, history, {name: trained.logits(split.images, **options) for name, split in sets.items()}


def _train_head(method: Any, prepared: Prepared, sets: Mapping[str, PreparedSplit], folder: Path) -> Outcome:
    """All from cached features, which `method.train` takes; a fraction of the training images is some of the rows."""
    splits = prepared.splits
    found = cached_features(folder, method.args, prepared, {"train": prepared.all_training, **sets})
    chosen = prepared.all_training.rows["id"].isin(splits["train"].rows["id"]).to_numpy()
    features = {"train": found["train"][chosen], "val": found["val"]}
    model, history = method.train(prepared.classifier, splits["train"], splits["val"], features=features)
    return model, history, {name: head_logits(model, found[name]) for name in sets}


def cached_features(
    folder: Path, args: FinetuneArguments, prepared: Prepared, sets: Mapping[str, PreparedSplit]
) -> dict[str, np.ndarray]:
    """Inputs of the head for the images of every set, from the cache in `folder` or into it.

    Args:
        folder: of the cache.
        args: `forward_options` of the job.
        prepared: the encoder and its image processor.
        sets: decoded images by name.

    Returns:
        By set, float32 (images, columns), memory-mapped.
    """
    model, processor, options = prepared.classifier.model, prepared.classifier.processor, args.forward_options
    key = (encoder_digest(model), str(processor.to_dict()), options["precision"])
    found = {}
    for name, split in sets.items():
        path = folder / f"{fingerprint(split.rows, *key)}.npy"
        with file_lock(path):
            stored = _stored(path, (len(split.rows), model.classifier.in_features))
            if stored is None:
                with atomic_file(path) as partial:
                    np.save(partial, head_inputs(model, split.images, processor, **options))
                stored = np.load(path, mmap_mode="r")
        found[name] = stored
    return found


def _stored(path: Path, shape: tuple[int, int]) -> np.ndarray | None:
    """Memory-mapped float32 array of that shape; None where none is, or another file or a damaged one."""
    with suppress(Exception):  # numpy fails with errors of many types
        found = np.load(path, mmap_mode="r")
        if isinstance(found, np.ndarray) and found.dtype == np.float32 and found.shape == shape:
            return found
    return None


def encoder_digest(model: PreTrainedModel) -> str:
    """Digest of the weights below the head, as they are in memory: random ones have no file to be known by."""
    digest = hashlib.blake2b(repr(model.config.architectures).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


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


START = 2.0  # seconds before and after the work itself: data, model, predictions, statistics
SHARE = 0.4  # of the speed of one large matrix product that a transformer reaches


def guess_times(jobs: Sequence[Job], tasks: Sequence[Task], ended: Sequence[JobResult]) -> pd.DataFrame:
    """Columns `seconds` of each job and `how` they are known.

    `measured` on finished jobs that differ in their seed alone, `scaled` from finished jobs of the same model and
    method by the number of training images, or `computed` from the operations of a forward pass and the speed of this
    machine.
    """
    finished = [job for job in ended if job.status == "finished" and job.seconds]
    images = {task.name: {name: len(rows) for name, rows in task.parts().items()} for task in tasks}
    with_features: set[tuple[str, str, int]] = set()
    found, rate = [], None
    for job in jobs:
        like = [one for one in finished if (one.model, one.method) == (job.model, job.method)]
        same = [one.seconds for one in like if (one.data, one.fraction) == (job.data, job.fraction)]
        if same:
            found.append((np.mean(same), "measured"))
        elif like:
            rates = [one.seconds / max(one.images["train"], 1) for one in like]
            found.append((job.fraction * images[job.data]["train"] * np.mean(rates), "scaled"))
        else:
            args, rate = parse_options(job.options), rate or _operations_per_second()
            key = (job.data, job.model, job.seed if args.config_name else 0)
            passes = _forward_passes(job, args, images[job.data], key in with_features)
            found.append((START + passes * _forward_operations(args) / (SHARE * rate), "computed"))
            with_features.add(key)
    return pd.DataFrame(found, columns=["seconds", "how"])


def _forward_passes(job: Job, args: FinetuneArguments, images: Mapping[str, int], with_features: bool) -> float:
    """Forward passes of one image that a job costs; features of one encoder are computed once."""
    method, train = METHODS[args.method], images["train"]
    evaluated = sum(count for name, count in images.items() if name != "train")
    if method.frozen_encoder:
        return 0 if with_features else evaluated + train
    return args.num_train_epochs * (method.passes * job.fraction * train + images["val"]) + evaluated


def _forward_operations(args: FinetuneArguments) -> float:
    """Multiplications and additions of one image's forward pass through a vision transformer."""
    preset = args.config_name
    config = RetFoundConfig.from_preset(preset) if preset else read_config(args.model_name_or_path)
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    tokens = ((args.image_size or config.image_size) // config.patch_size) ** 2 + 1
    return 2 * layers * (tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width)


def _operations_per_second() -> float:
    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    matrix = torch.randn(1024, 1024, device=device)
    (matrix @ matrix).sum().item()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        (matrix @ matrix).sum().item()  # reading a number waits for the device
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)
