"""Monitoring of a run: buffered metrics, log, guards against bad losses and images, linear probe, previews."""

import json
import logging
import math
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from tqdm import tqdm

from ..data.labelled import LabelledSet, read_labelled
from ..errors import BadDataError, DivergedError, RetFoundError, join_names
from ..evaluation.linear_probe import fit_linear_probe
from ..evaluation.report import compute_metrics
from ..files import atomic_file, rows_of_csv, write_json
from ..images.drawing import contact_sheet
from ..inference.predict import PreparedSplit, features, prepare_split, to_scores
from ..models.image_processing_retfound import RetFoundImageProcessor
from .arguments import DataArguments, PretrainingArguments
from .data import ImageReader, TrainingImages, step_generator
from .objectives.base import Objective

logger = logging.getLogger(__name__)
METRICS_FILE = "metrics.jsonl"
REJECTED_FILE = "rejected.csv"
NON_FINITE_FILE = "non_finite-step-{}.json"
# The share of unreadable images is taken of at least so many: the first of a run prove nothing.
MIN_REJECTED_BASIS = 10_000
# Skipped steps in a row that end a run, since it learns nothing any more.
MAX_SKIPPED_IN_A_ROW = 10
# The same for steps whose scaled gradients overflowed (fp16): nothing is left of a loss scale of 65,536 after 16.
MAX_OVERFLOWS_IN_A_ROW = 50
PREVIEW_FOLDER = "previews"
PREVIEWED_IMAGES = 4
PREVIEW_SEED = 2**31  # apart from the steps of training, which count from 0


@dataclass
class MetricBuffer:
    """Metrics of the steps since the last log line, kept on the device, so that only logging synchronises.

    Attributes:
        rows: recorded values of every step, on the device.
        ids: images of every step on this process.
        images: used by all processes.
    """

    rows: list[Tensor] = field(default_factory=list)
    ids: list[list[str]] = field(default_factory=list)
    images: int = 0
    _waited: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def add(self, values: Tensor, ids: list[str], images: int) -> None:
        """Record a step: its values (columns,) on the device, this process's images, the number of all images."""
        self.rows.append(values)
        self.ids.append(ids)
        self.images += images

    def values(self) -> Tensor:
        """(steps, columns) on the device."""
        return torch.stack(self.rows)

    def keep(self, indices: list[int]) -> None:
        """Leave all other steps out."""
        self.rows = [self.rows[index] for index in indices]
        self.ids = [self.ids[index] for index in indices]

    def restore(self, rows: list[list[float | None]], device: torch.device) -> None:
        """Restore the steps that a checkpoint found between two log lines; their time is no longer known."""
        filled = [[math.nan if value is None else value for value in row] for row in rows]
        self.rows = [torch.tensor(row, dtype=torch.float32, device=device) for row in filled]
        self.ids = [[] for _ in rows]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out: saving, previews and probes are not training."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def speed(self) -> dict[str, float]:
        """Images per second of all processes, and the share of the time that this one waited for data."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "images_per_second": round(self.images / seconds, 2),
            "data_wait_fraction": round(min(self._waited / seconds, 1.0), 4),
        }


def finite_or_none(values: list[float]) -> list[float | None]:
    """Numbers as JSON takes them: norms of gradients that overflowed (fp16) are None."""
    return [value if math.isfinite(value) else None for value in values]


class MetricsLog:
    """`metrics.jsonl`, trackers and progress bar, written by the main process alone.

    Args:
        output_dir: of the run.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path):
        self.accelerator = accelerator
        self.path = output_dir / METRICS_FILE
        self.bar = tqdm(disable=True)

    def start(self, step: int, total_steps: int) -> None:
        """Open the log of a run that starts, or goes on, after `step`.

        Lines of later steps, which an earlier attempt wrote after its last checkpoint, are removed, since they will
        be written again; also half a line, where it was killed.
        """
        if self.accelerator.is_main_process and self.path.is_file():
            kept = [record for record in read_metrics_log(self.path) if record["step"] <= step]
            with atomic_file(self.path) as partial:
                partial.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        hidden = not self.accelerator.is_main_process
        self.bar = tqdm(
            total=total_steps, initial=step, desc="pretrain", unit="step", disable=hidden, dynamic_ncols=True
        )

    def log(self, record: dict[str, Any]) -> None:
        """Add a line; `record` has a `step`. Undefined and infinite numbers are written as null."""
        if not self.accelerator.is_main_process:
            return
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        self.accelerator.log(numbers, step=record["step"])

    def show(self, record: dict[str, Any], names: Sequence[str] = ()) -> None:
        """Show the latest numbers on the progress bar; `names` are the objective's own."""
        shown = {
            "loss": f"{record['loss']:.4f}",
            "lr": f"{record['learning_rate']:.2e}",
            "images/s": f"{record['images_per_second']:.0f}",
            "wait": f"{record['data_wait_fraction']:.0%}",
        }
        shown |= {name: f"{record[name]:.3f}" for name in names}
        self.bar.set_postfix(shown, refresh=False)

    def show_picture(self, picture: Tensor, step: int) -> None:
        """Hand a preview, uint8 (1, height, width, 3), to the trackers that take pictures."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"preview": picture.numpy()}, step=step, **options)

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def read_metrics_log(path: Path) -> list[dict[str, Any]]:
    """Lines of `metrics.jsonl`; half a line of a killed run is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


class NonFiniteGuard:
    """Guard against steps whose loss or gradient is NaN or infinite; the weights never take one (`guarded_step`).

    Args:
        output_dir: of the run, for the ids of the images.
        skip: go on after such a step, instead of stopping the run.
        total_steps: of the run.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, skip: bool, total_steps: int):
        self.accelerator, self.output_dir, self.skip = accelerator, output_dir, skip
        self.skipped = 0
        self.skipped_in_a_row, self.max_skipped = 0, min(MAX_SKIPPED_IN_A_ROW, total_steps)
        self.overflows_in_a_row, self.max_overflows = 0, min(MAX_OVERFLOWS_IN_A_ROW, total_steps)

    def check(self, shared: Tensor, own: Tensor, ids: list[list[str]], last_step: int) -> list[int]:
        """Check new steps, on every process.

        Args:
            shared: float (steps, columns), loss and gradient norm first, the mean over processes.
            own: the same of this process.
            ids: images of every step on this process.
            last_step: number of the last of the steps.

        Returns:
            Indices of the finite steps.

        Raises:
            DivergedError: such a step, with its images, unless it is skipped; too many steps in a row, or all of the
                run, that were not finite, or overflowed (fp16).
        """
        scaler = self.accelerator.scaler
        # Overflow of scaled gradients is everyday work of the fp16 scaler; a loss that is not finite never is.
        finite = shared[:, : 2 if scaler is None else 1].isfinite().all(dim=1).tolist()
        first_step = last_step - len(finite) + 1
        for index, fine in enumerate(finite):
            if not fine:
                blamed = [] if own[index, 0].isfinite() else ids[index]
                named = sorted({name for part in gather_object([blamed]) for name in part})
                named = named or sorted({name for part in gather_object([ids[index]]) for name in part})
                self._report(first_step + index, float(shared[index, 0]), float(shared[index, 1]), named)
        self.skipped += finite.count(False)
        for step, fine in enumerate(finite, first_step):
            self.skipped_in_a_row = 0 if fine else self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.max_skipped:
                raise DivergedError(
                    f"none of the {self.skipped_in_a_row} steps up to {step} had a finite loss and gradient; lower "
                    "`learning_rate`, or use `bf16` in place of `fp16`",
                    step=step,
                )
        # The scaler skips a step that overflows and halves its scale, also where no scale helps any more.
        for step, norm in enumerate(shared[:, 1].tolist() if scaler is not None else (), first_step):
            self.overflows_in_a_row = 0 if math.isfinite(norm) else self.overflows_in_a_row + 1
            if self.overflows_in_a_row >= self.max_overflows:
                raise DivergedError(
                    f"none of the {self.overflows_in_a_row} steps up to {step} had a finite gradient, whatever the "
                    f"loss scale, which is {scaler.get_scale():g} now; go on from the last checkpoint with `bf16` in "
                    "place of `fp16`, or lower `learning_rate`",
                    step=step,
                )
        return [index for index, fine in enumerate(finite) if fine]

    def _report(self, step: int, loss: float, norm: float, ids: list[str]) -> None:
        path = self.output_dir / NON_FINITE_FILE.format(step)
        if self.accelerator.is_main_process:
            write_json(path, {"step": step, "loss": str(loss), "grad_norm": str(norm), "ids": ids})
        fact = f"the loss is {loss} and the gradient norm {norm} at step {step}, whose images are {join_names(ids, 8)}"
        if not self.skip:
            raise DivergedError(
                f"{fact} (all in {path}); look at them, lower `learning_rate`, or go on from the last checkpoint with "
                "`on_non_finite=skip`",
                step=step, ids=ids,
            )  # fmt: skip
        if self.accelerator.is_main_process:
            logger.warning("%s; the step is skipped", fact)


class RejectedImages:
    """Unreadable images, counted once each over all processes, and listed in `rejected.csv`.

    Args:
        output_dir: of the run.
        num_images: in the shards.
        max_share: above which the run stops.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, num_images: int, max_share: float):
        self.accelerator = accelerator
        self.path = output_dir / REJECTED_FILE
        self.num_images, self.max_share = num_images, max_share
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def add(self, rejected: list[tuple[str, str]]) -> None:
        """Note (id, reason) of what this process met."""
        self._new.update(rejected)

    def check(self, seen: int) -> None:
        """Collect what all processes met; on every process.

        Args:
            seen: images used so far.

        Raises:
            BadDataError: more than the share of the images seen (of 10,000 at least, or of all).
        """
        met = {name: reason for part in gather_object([self._new]) for name, reason in part.items()}
        self._new = {}
        if met.keys() <= self.reasons.keys():
            return
        self.reasons |= met
        if self.accelerator.is_main_process:
            with rows_of_csv(self.path, ("id", "reason")) as write:
                for row in sorted(self.reasons.items()):
                    write(row)
            logger.warning("%d images could not be read: %s", len(self.reasons), self.path)
        basis = min(self.num_images, max(seen, MIN_REJECTED_BASIS))
        if len(self.reasons) > math.floor(self.max_share * basis):
            raise BadDataError(
                f"{len(self.reasons)} images of the shards cannot be read, more than `max_bad_share={self.max_share}` "
                f"of {basis} allows (listed in {self.path}); mend the shards, or raise `max_bad_share`",
                rows=sorted(self.reasons), source=self.path,
            )  # fmt: skip


@dataclass
class LinearProbeMonitor:
    """AUROC of a linear head on the features of a labelled set: fitted on train, chosen on val, measured on test.

    Args:
        data: labelled set, as for the command finetune.
        epochs: between two probes.
        processor: of the network.
        options: `batch_size`, `precision`, as in `inference.predict.features`.
    """

    data: str
    epochs: float
    processor: RetFoundImageProcessor
    cache_dir: str | None
    options: dict[str, Any]
    splits: dict[str, PreparedSplit] = field(default_factory=dict, init=False)

    @cached_property
    def labelled(self) -> LabelledSet:
        try:
            return read_labelled(self.data)
        except RetFoundError as error:
            raise BadDataError(
                f"`probe_data` must be a set labelled with classes: {error}", source=self.data
            ) from error

    def decode(self) -> None:
        """Decode all splits, before training."""
        self.splits = {
            name: prepare_split(self.labelled, name, self.processor, on_bad_image="skip", cache_dir=self.cache_dir)
            for name in ("train", "val", "test")
        }

    def is_due(self, before: float, after: float) -> bool:
        """Whether the step that led from one position to the next, in epochs, passed the time of a probe."""
        return math.floor(after / self.epochs + 1e-9) > math.floor(before / self.epochs + 1e-9)

    def auroc(self, objective: Objective) -> float:
        """Fit and measure a probe; on every process, since the forward passes are shared."""
        kind, names = self.labelled.problem_type, self.labelled.class_names
        found = {
            name: features(objective.encoder, split.images, self.processor, description=None, **self.options)
            for name, split in self.splits.items()
        }
        targets = {name: split.targets for name, split in self.splits.items()}
        probe = fit_linear_probe(
            found["train"], targets["train"], found["val"], targets["val"], kind, class_names=names
        )
        logits = (found["test"] @ probe.weight.T + probe.bias).astype(np.float32)
        auroc = compute_metrics(kind, targets["test"], to_scores(logits, kind), names)["auroc"]
        return math.nan if auroc is None else float(auroc)


class Previews:
    """Pictures of the same few images of the shards, with the same random numbers, as training goes on.

    Args:
        output_dir: of the run; the pictures lie in `previews/`.
        steps: between two previews.
    """

    def __init__(self, reader: ImageReader, objective: Objective, output_dir: Path, seed: int, steps: int):
        rows = reader.spread_rows(PREVIEWED_IMAGES)
        self.images, _, _ = reader.read(rows)
        self.draws = objective.draw(len(rows), step_generator(seed, PREVIEW_SEED))
        self.folder, self.steps = output_dir / PREVIEW_FOLDER, steps

    def write(self, objective: Objective, step: int, device: torch.device) -> Tensor | None:
        """`previews/step-<step>.png`; returns the picture as uint8 (1, height, width, 3), None if there is none."""
        draws = {name: values.to(device) for name, values in self.draws.items()}
        rows = objective.preview(self.images.to(device), draws)
        if rows is None:
            return None
        sheet = contact_sheet(rows, objective.preview_titles)
        with atomic_file(self.folder / f"step-{step:07d}.png") as partial:
            sheet.save(partial)
        return torch.from_numpy(np.asarray(sheet).copy())[None]


@dataclass(frozen=True)
class Monitor:
    """All that watches a run; `untrained_loss` as `Objective` states it."""

    log: MetricsLog
    non_finite: NonFiniteGuard
    rejected: RejectedImages
    probe: LinearProbeMonitor | None
    previews: Previews | None
    untrained_loss: float | None = None

    @classmethod
    def build(
        cls,
        data_args: DataArguments,
        args: PretrainingArguments,
        accelerator: Accelerator,
        objective: Objective,
        images: TrainingImages,
        processor: RetFoundImageProcessor,
        untrained_loss: float | None,
    ) -> "Monitor":
        """From the arguments of a run and its parts; the images of the probe are decoded here."""
        output_dir, order = Path(args.output_dir), images.order
        probe = previews = None
        if data_args.probe_data is not None:
            batch, precision = min(args.per_device_train_batch_size, 64), accelerator.mixed_precision
            options = {"batch_size": batch, "precision": precision}
            probe = LinearProbeMonitor(
                data_args.probe_data, data_args.probe_epochs, processor, data_args.cache_dir, options
            )
            probe.decode()
        if data_args.preview_steps > 0:
            previews = Previews(images.reader, objective, output_dir, args.seed, data_args.preview_steps)
        return cls(
            MetricsLog(accelerator, output_dir),
            NonFiniteGuard(accelerator, output_dir, args.on_non_finite == "skip", order.total_steps),
            RejectedImages(accelerator, output_dir, order.num_images, data_args.max_bad_share),
            probe,
            previews,
            untrained_loss,
        )


def remove_monitor_files(output_dir: Path) -> None:
    """Remove what an earlier run left in a folder that is written anew; other files are not ours to remove."""
    shutil.rmtree(output_dir / PREVIEW_FOLDER, ignore_errors=True)
    for pattern in (METRICS_FILE, REJECTED_FILE, NON_FINITE_FILE.format("*")):
        for path in output_dir.glob(pattern):
            path.unlink()
