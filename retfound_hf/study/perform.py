"""One job from its options to its predictions, and estimates of how long jobs take."""

import dataclasses
import hashlib
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml
from transformers import PreTrainedModel, set_seed

from ..data.image_cache import fingerprint
from ..data.labelled import LabelledSet
from ..evaluation.report import write_report
from ..files import atomic_file, file_lock, write_json
from ..finetuning.arguments import FinetuneArguments
from ..finetuning.finetune import Prepared, prepare
from ..finetuning.methods import METHODS, Method, Trained
from ..inference.predict import PreparedSplit, head_inputs, head_logits, prepare_split, to_scores
from ..models.configuration_retfound import RetFoundConfig
from ..models.loading import read_config
from ..record import git_revision, versions
from .config import DataSet, Study, parse_options
from .jobs import Job, Task, read_external
from .results import JobResult, adaptation


def cached_features(
    folder: Path, args: FinetuneArguments, run: Prepared, sets: Mapping[str, PreparedSplit]
) -> dict[str, np.ndarray]:
    """What the head sees of the images of every set, from the cache in `folder` or into it.

    Returns:
        By set, float32 (images, columns), memory-mapped.
    """
    model, processor, options = run.classifier.model, run.classifier.processor, args.forward_options
    facts = (encoder_digest(model), str(processor.to_dict()), options["precision"])
    found = {}
    for name, split in sets.items():
        path = folder / f"{fingerprint(split.rows, *facts)}.npy"
        with file_lock(path):
            if not path.is_file():
                with atomic_file(path) as partial:
                    np.save(partial, head_inputs(model, split.images, processor, **options))
        found[name] = np.load(path, mmap_mode="r")
    return found


def encoder_digest(model: PreTrainedModel) -> str:
    """Digest of the weights below the head, as they are in memory: random ones have no file to be known by."""
    digest = hashlib.blake2b(repr(model.config.architectures).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


START = 2.0  # seconds before and after the work itself: data, model, predictions, statistics
SHARE = 0.4  # of the speed of one large matrix product that a transformer reaches


@dataclass(frozen=True)
class Guess:
    """Seconds of a job, and how they are known: `measured`, `scaled` from other sizes of the like, or `computed`."""

    seconds: float
    how: str


def guess_times(jobs: Sequence[Job], study: Study, tasks: Sequence[Task], ended: Sequence[JobResult]) -> list[Guess]:
    """A guess for every job; finished jobs of the study are what is measured."""
    finished = [job for job in ended if job.status == "finished" and job.seconds]
    images = {task.data.name: {name: len(found.rows(split)) for name, found, split in task.evaluated()}
              | {"train": len(task.labelled.rows("train"))} for task in tasks}  # fmt: skip
    clock = _Computed(study)
    guesses = []
    for job in jobs:
        same = [one.seconds for one in finished if (one.data, one.model, one.method, one.fraction) == job.kind]
        like = [one for one in finished if (one.model, one.method) == (job.model, job.method)]
        if same:
            guesses.append(Guess(sum(same) / len(same), "measured"))
        elif like:
            size = job.fraction * images[job.data]["train"]
            rates = [one.seconds / max(one.images["train"], 1) for one in like]
            guesses.append(Guess(size * sum(rates) / len(rates), "scaled"))
        else:
            guesses.append(Guess(clock.seconds(job, images[job.data]), "computed"))
    return guesses


def job_table(jobs: Sequence[Job], guesses: Sequence[Guess], done: set[str]) -> str:
    """The table of `--dry_run`, one line per job."""
    rows = [
        (job.id, f"{100 * job.fraction:g}%", job.seed,
         *(("", "finished") if job.id in done else (_clock(guess.seconds), guess.how)))
        for job, guess in zip(jobs, guesses, strict=True)
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=["job", "labels", "seed", "time", ""]).to_string(index=False)


def total(guesses: Sequence[Guess], at_once: int) -> str:
    """Such as `about 1 h 20 min with 2 at once (computed)`."""
    ways = ", ".join(sorted({guess.how for guess in guesses}))
    return f"about {_clock(sum(guess.seconds for guess in guesses) / at_once)} with {at_once} at once ({ways})"


class _Computed:
    """Seconds from the operations of a forward pass and the speed of this machine."""

    def __init__(self, study: Study):
        self.study = study
        self.rate: float | None = None
        self.with_features: set[tuple[str, str, int]] = set()

    def seconds(self, job: Job, images: dict[str, int]) -> float:
        args = parse_options(job.options, Path("unused"))
        method = METHODS[args.method]
        self.rate = self.rate or _operations_per_second()
        one = _forward_operations(args) / (SHARE * self.rate)
        evaluated = sum(count for name, count in images.items() if name != "train")
        if method.frozen_encoder:
            key = (job.data, job.model, job.seed if args.config_name else 0)
            new = key not in self.with_features
            self.with_features.add(key)
            return START + new * one * (evaluated + images["train"])
        steps = args.num_train_epochs * (method.passes * job.fraction * images["train"] + images["val"])
        return START + one * (steps + evaluated)


def _forward_operations(args: FinetuneArguments) -> float:
    """Multiplications and additions of one image's forward pass through a vision transformer."""
    preset = args.config_name
    config = RetFoundConfig.from_preset(preset) if preset else read_config(args.model_name_or_path)
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    tokens = ((args.image_size or config.image_size) // config.patch_size) ** 2 + 1
    return 2 * layers * (tokens * (4 * width**2 + 2 * width * inner) + 2 * tokens**2 * width)


def _operations_per_second() -> float:
    import torch

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else "cpu"
    matrix = torch.randn(1024, 1024, device=device)
    (matrix @ matrix).sum().item()
    started, count = time.perf_counter(), 0
    while time.perf_counter() - started < 0.3:
        (matrix @ matrix).sum().item()  # reading a number waits for the device
        count += 1
    return count * 2 * 1024**3 / (time.perf_counter() - started)


def _clock(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def perform(job: Job, data: DataSet, output: Path, features: Path, keep_model: bool = False) -> JobResult:
    """Train, predict every evaluated set, and write what a job's folder holds, but for `log.txt`.

    Args:
        output: the folder to fill.
        features: the study's cache of feature vectors.
    """
    started = time.time()
    (output / "finetune.yaml").write_text(yaml.safe_dump(dict(job.options), sort_keys=False), encoding="utf-8")
    args = parse_options(job.options, output / "training")
    set_seed(args.seed)
    method = METHODS[args.method](args)
    args.resolve_learning_rate(method.base_learning_rate)
    run = prepare(args, method)
    sets = {"val": run.splits["val"], "test": run.splits["test"]}
    sets |= {one.name: _prepare(args, run, read_external(one, run.labelled), one.split) for one in data.external}
    if method.frozen_encoder:
        (model, history), logits = _on_features(args, method, run, sets, features)
    else:
        model, history = method.train(run.classifier, run.splits["train"], run.splits["val"], run.target_scale)
        classifier = dataclasses.replace(run.classifier, model=model)
        logits = {name: classifier.logits(one.images, **args.forward_options) for name, one in sets.items()}
    for name, prepared in sets.items():
        kind, classes = run.labelled.problem_type, run.labelled.class_names
        scores = to_scores(logits[name], kind)
        write_report(output / name, prepared.rows, prepared.targets, scores, kind, classes, plots=False)
    write_json(output / "history.json", history)
    if keep_model:
        method.save(model, run.classifier.processor, output / "model")
    shutil.rmtree(output / "training", ignore_errors=True)
    result = JobResult(
        job.id, job.data, job.model, job.method, job.fraction, job.seed, "finished",
        seconds=round(time.time() - started, 2),
        images={"train": len(run.splits["train"].rows), **{name: len(one.rows) for name, one in sets.items()}},
        patients={name: _patients(one) for name, one in {"train": run.splits["train"], **sets}.items()},
        efficiency=adaptation(history),
        facts=_facts(model),
    )  # fmt: skip
    write_json(output / "job.json", dataclasses.asdict(result))
    return result


def _on_features(
    args: FinetuneArguments, method: Method, run: Prepared, sets: dict[str, PreparedSplit], folder: Path
) -> tuple[Trained, dict[str, np.ndarray]]:
    """The head, its log and the logits of every set, all from cached features of which a fraction is some rows."""
    found = cached_features(folder, args, run, {"train": run.all_training, **sets})
    train = run.splits["train"]
    chosen = run.all_training.rows["id"].isin(train.rows["id"]).to_numpy()
    known = {"train": found["train"][chosen], "val": found["val"]}
    trained = method.train(run.classifier, train, run.splits["val"], run.target_scale, features=known)
    return trained, {name: head_logits(trained.model, found[name]) for name in sets}


def _prepare(args: FinetuneArguments, run: Prepared, labelled: LabelledSet, split: str) -> PreparedSplit:
    return prepare_split(
        labelled, split, run.classifier.processor, on_bad_image=args.on_bad_image,
        num_workers=args.dataloader_num_workers, cache_dir=args.cache_dir,
    )  # fmt: skip


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
