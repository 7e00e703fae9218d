"""How long jobs will take: measured on their like where there are any, else computed, and said which."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from ..finetuning.arguments import ModelArguments
from ..inference.loading import read_config
from ..models.configuration import RetFoundConfig
from .checks import Task
from .folder import JobResult
from .jobs import Job
from .options import parse_options
from .settings import Study

START = 2.0  # seconds before and after the work itself: data, model, predictions, statistics
SHARE = 0.4  # of the speed of one large matrix product that a transformer reaches
PASSES = {"full": 3.0, "lora": 2.2, "linear": 1.0}  # cost of an image in training, in forward passes


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
        model_args, _, method_args, args = parse_options(job.options, Path("unused"))
        self.rate = self.rate or _operations_per_second()
        one = _forward_operations(model_args) / (SHARE * self.rate)
        evaluated = sum(count for name, count in images.items() if name != "train")
        if method_args.method == "linear":
            key = (job.data, job.model, job.seed if model_args.config_name else 0)
            new = key not in self.with_features
            self.with_features.add(key)
            return START + new * one * (evaluated + images["train"])
        steps = args.num_train_epochs * (PASSES[method_args.method] * job.fraction * images["train"] + images["val"])
        return START + one * (steps + evaluated)


def _forward_operations(model_args: ModelArguments) -> float:
    """Multiplications and additions of one image's forward pass through a vision transformer."""
    preset = model_args.config_name
    config = RetFoundConfig.from_preset(preset) if preset else read_config(model_args.model_name_or_path)
    width, layers = config.hidden_size, config.num_hidden_layers
    inner = getattr(config, "intermediate_size", None) or 4 * width
    tokens = ((model_args.image_size or config.image_size) // config.patch_size) ** 2 + 1
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
