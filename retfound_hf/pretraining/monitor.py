"""Monitoring of a run: metrics log, rejected images, non-finite losses, linear probe, previews."""

import csv
import json
import logging
import math
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
from ..errors import RetFoundError
from ..evaluation.linear_probe import fit_linear_probe
from ..evaluation.metrics import compute_metrics
from ..files import atomic_file, write_json
from ..images.drawing import contact_sheet
from ..inference.predict import PreparedSplit, features, prepare_split, to_scores
from ..models.image_processing_retfound import RetFoundImageProcessor
from .data import ImageReader
from .objectives.base import Objective
from .order import step_generator


@dataclass
class Window:
    """The steps since the last log line.

    Attributes:
        rows: of every step the recorded values, on the device.
        ids: of every step the images of this process.
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

    def restore(self, rows: list[list[float | None]], device: torch.device) -> None:
        """Put back the steps that a checkpoint found between two log lines; their time is not known any more."""
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
        """Leave the time within out: saving, previews and probes are no training."""
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


def storable(rows: Tensor) -> list[list[float | None]]:
    """Rows as JSON takes them and `Window.restore` reads them: norms of gradients that overflowed (fp16) are None."""
    return [[value if math.isfinite(value) else None for value in row] for row in rows.tolist()]


METRICS_FILE = "metrics.jsonl"


class Report:
    """Lines of numbers, written by the main process alone.

    Args:
        step: the run starts or goes on after this one; lines of later steps, which an earlier attempt wrote after
            its last checkpoint, are removed, since they will be written again.
        total_steps: for the progress bar and its estimate of the time that is left.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, step: int, total_steps: int):
        self.accelerator = accelerator
        self.path = output_dir / METRICS_FILE
        if accelerator.is_main_process:
            _keep_until(self.path, step)
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            desc="pretrain",
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
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
        """The latest numbers on the progress bar; `names` are those of the objective's own."""
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

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _keep_until(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half a line, where the earlier attempt was killed
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    with atomic_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")


logger = logging.getLogger(__name__)
REJECTED_FILE = "rejected.csv"
NON_FINITE_FILE = "non_finite-step-{}.json"
# Unreadable images are compared with a share of at least so many: the first of a run proves nothing.
FEWEST = 10_000
# Skipped steps in a row that end a run: it learns nothing any more.
MOST_IN_A_ROW = 10
# The same for steps whose scaled gradients overflowed (fp16): of a loss scale of 65,536 nothing is left after 16.
MOST_OVERFLOWS = 50
NAMED = 8


class NonFinite:
    """Steps whose loss or gradient is NaN or infinite. The weights never take such a step (see `guarded_step`).

    Args:
        skip: go on after such a step, instead of stopping the run.
        total_steps: of the run.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, skip: bool, total_steps: int):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.skip = skip
        self.skipped = 0
        self.in_a_row = 0
        self.most_in_a_row = min(MOST_IN_A_ROW, total_steps)
        self.overflows = 0
        self.most_overflows = min(MOST_OVERFLOWS, total_steps)

    def check(self, shared: Tensor, own: Tensor, ids: list[list[str]], last_step: int) -> list[int]:
        """Look at steps that were not looked at before, on every process.

        Args:
            shared: float (steps, columns), loss and gradient norm first, the mean over processes.
            own: the same of this process.
            ids: of every step this process's images.
            last_step: number of the last of the steps.

        Returns:
            Indices of the finite steps.

        Raises:
            RetFoundError: names the first such step and its images, unless they are skipped; also where too many
                steps in a row, or all of the run, were not finite, or overflowed (fp16).
        """
        # Overflow of scaled gradients is everyday work of the fp16 scaler; a loss that is not finite never is.
        looked_at = shared[:, :1] if self.accelerator.scaler is not None else shared[:, :2]
        finite = looked_at.isfinite().all(dim=1).tolist()
        bad = [index for index, fine in enumerate(finite) if not fine]
        for index in bad:
            step = last_step - len(finite) + 1 + index
            blamed = [] if own[index, 0].isfinite() else ids[index]
            named = sorted({name for part in gather_object([blamed]) for name in part})
            named = named or sorted({name for part in gather_object([ids[index]]) for name in part})
            self._report(step, float(shared[index, 0]), float(shared[index, 1]), named, fatal=not self.skip)
        self.skipped += len(bad)
        for index, fine in enumerate(finite):
            self.in_a_row = 0 if fine else self.in_a_row + 1
            if self.in_a_row >= self.most_in_a_row:
                raise RetFoundError(
                    f"none of the {self.in_a_row} steps up to {last_step - len(finite) + 1 + index} had a finite loss "
                    "and gradient; lower --learning_rate, or use --bf16 in place of --fp16"
                )
        if self.accelerator.scaler is not None:
            self._check_overflows(shared[:, 1].isfinite().tolist(), last_step)
        return [index for index, fine in enumerate(finite) if fine]

    def _check_overflows(self, finite: list[bool], last_step: int) -> None:
        """The scaler passes over a step that overflows and halves its scale, also where no scale helps any more."""
        for step, fine in enumerate(finite, last_step - len(finite) + 1):
            self.overflows = 0 if fine else self.overflows + 1
            if self.overflows >= self.most_overflows:
                raise RetFoundError(
                    f"none of the {self.overflows} steps up to {step} had a finite gradient, whatever the loss scale, "
                    f"which is {self.accelerator.scaler.get_scale():g} now; go on from the last checkpoint with "
                    "--bf16 in place of --fp16, or lower --learning_rate"
                )

    def _report(self, step: int, loss: float, norm: float, ids: list[str], fatal: bool) -> None:
        path = self.output_dir / NON_FINITE_FILE.format(step)
        if self.accelerator.is_main_process:
            write_json(path, {"step": step, "loss": str(loss), "grad_norm": str(norm), "ids": ids})
        images = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        what = f"the loss is {loss} and the gradient norm {norm} at step {step}, whose images are {images}"
        if fatal:
            raise RetFoundError(
                f"{what} (all in {path}); look at them, lower --learning_rate, or go on from the last checkpoint with "
                "--on_non_finite skip"
            )
        if self.accelerator.is_main_process:
            logger.warning("%s; the step is skipped", what)


class Rejected:
    """Unreadable images, counted once each over all processes, and listed in `rejected.csv`.

    Args:
        num_images: in the shards.
        max_share: above which the run stops.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, num_images: int, max_share: float):
        self.accelerator = accelerator
        self.path = output_dir / REJECTED_FILE
        self.num_images = num_images
        self.max_share = max_share
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def add(self, rejected: list[tuple[str, str]]) -> None:
        """Note what this process met."""
        self._new.update(rejected)

    def check(self, seen: int) -> None:
        """Put together what all processes met; on every process.

        Args:
            seen: images used so far.

        Raises:
            RetFoundError: more than the share of the images seen (of 10,000 at least, or of all).
        """
        met = {name: reason for part in gather_object([self._new]) for name, reason in part.items()}
        self._new = {}
        if met.keys() <= self.reasons.keys():
            return
        self.reasons |= met
        if self.accelerator.is_main_process:
            with atomic_file(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("id", "reason"), *sorted(self.reasons.items())])
            logger.warning("%d images could not be read: %s", len(self.reasons), self.path)
        basis = min(self.num_images, max(seen, FEWEST))
        if len(self.reasons) > math.floor(self.max_share * basis):
            raise RetFoundError(
                f"{len(self.reasons)} images of the shards cannot be read, more than --max_bad_share {self.max_share} "
                f"of {basis} allows (listed in {self.path}); mend the shards, or raise --max_bad_share"
            )


PREVIEWED = 4
# Apart from the steps of training, which count from 0.
PREVIEW_SEED = 2**31


@dataclass
class LinearProbeMonitor:
    """AUROC of a linear head on the features of a labelled set: fitted on train, chosen on val, measured on test.

    Args:
        data: labelled set, as for the command finetune.
        epochs: between two probes.
        processor: of the network.
        options: `batch_size`, `num_workers`, `precision`, as in `inference.forward`.
    """

    data: str
    epochs: float
    processor: RetFoundImageProcessor
    cache_dir: str | None
    options: dict[str, Any]

    @cached_property
    def labelled(self) -> LabelledSet:
        try:
            return read_labelled(self.data)
        except RetFoundError as error:
            raise RetFoundError(f"--probe_data must be a set labelled with classes: {error}") from error

    @cached_property
    def splits(self) -> dict[str, PreparedSplit]:
        """Decoded once, before training."""
        return {
            name: prepare_split(self.labelled, name, self.processor, on_bad_image="skip", cache_dir=self.cache_dir)
            for name in ("train", "val", "test")
        }

    def is_due(self, before: float, after: float) -> bool:
        """Whether the step that led from one position to the next, in epochs, passed the time of a probe."""
        return math.floor(after / self.epochs + 1e-9) > math.floor(before / self.epochs + 1e-9)

    def auroc(self, objective: Objective) -> float:
        """On every process; the forward passes are shared."""
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
    """Pictures of the same few images of the shards, with the same masks, as training goes on.

    Args:
        output_dir: of the run; the pictures lie in `previews/`.
    """

    def __init__(self, reader: ImageReader, objective: Objective, output_dir: Path, seed: int):
        rows = reader.spread_rows(PREVIEWED)
        self.images, _, _ = reader.read(rows)
        self.draws = objective.draw(len(rows), step_generator(seed, PREVIEW_SEED))
        self.folder = output_dir / "previews"

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
