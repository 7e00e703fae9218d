"""Training loop, and graceful shutdown on a signal."""

import contextlib
import math
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor

from .arguments import PretrainingArguments
from .checkpoints import Checkpoints
from .data import next_batch
from .monitor import LinearProbeMonitor, NonFinite, Previews, Rejected, Report, Window, storable
from .objectives.base import Objective
from .optim import (
    RunningStatistics,
    gradient_norm,
    guarded_step,
    learning_rate_factor,
    set_schedule,
    warmup_share,
    weight_decay_at,
)
from .order import Order, Position

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set for their processes by accelerate and torchrun


class StopSignal:
    """Whether a signal has come, to this process or to another one.

    The processes ask each other on the host (gloo), and take the answer a step later: no GPU waits for it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # Without a launcher the parent is a shell, which may end before the run that it put into the background.
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self._shared = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if self._shared else None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def name(self) -> str:
        if self.received is not None:
            return signal.Signals(self.received).name
        return "the end of its launcher" if self._orphaned() else "a signal to another process"

    def _orphaned(self) -> bool:
        """For one process `accelerate launch` hands no signal on: what ends the launcher must stop the run."""
        return self._launcher is not None and os.getppid() != self._launcher

    def agreed(self) -> bool:
        """Ask once per step, on every process: true on all of them at the same step."""
        wished = self.received is not None or self._orphaned()
        if not self._shared:
            return wished
        answer = False
        if self._asked is not None:
            votes, work = self._asked
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor([float(wished)])
        self._asked = votes, dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Take the signals over; a second SIGINT does what it did before."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self._before = before
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # A second SIGTERM is no impatience: launchers hand theirs on to processes that a scheduler has told already.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])


@dataclass
class Loop:
    """The parts of a run, put together by `run.pretrain`.

    Attributes:
        network: the objective as accelerate prepared it, `objective` the same without its wrapping.
        facts: what every checkpoint says of the run besides its position.
    """

    accelerator: Accelerator
    args: PretrainingArguments
    objective: Objective
    network: Any
    optimizer: Any
    order: Order
    checkpoints: Checkpoints
    report: Report
    non_finite: NonFinite
    rejected: Rejected
    probe: LinearProbeMonitor | None
    previews: Previews | None
    preview_steps: int
    facts: dict[str, Any]
    position: Position
    window: Window

    def __post_init__(self) -> None:
        # Steps of the window that are known to be finite, as those of a checkpoint are.
        self._settled = len(self.window.rows)
        self._statistics = RunningStatistics(self.network)

    def train(self, batches: Iterator[dict[str, Any]]) -> str | None:
        """Train to the end, which writes a checkpoint too; returns the name of the signal that ended it before."""
        self.network.train()
        with StopSignal().listening() as stop:
            if self.position.step == 0:
                self._probe()
            while not self.order.is_finished(self.position):
                before = self.order.epochs(self.position)
                self._step(batches)
                self.report.advance()
                step, finished = self.position.step, self.order.is_finished(self.position)
                if step % self.args.logging_steps == 0 or finished:
                    self._log()
                if self.probe is not None and (self.probe.is_due(before, self._epochs()) or finished):
                    self._probe()
                if self.previews is not None and (step % self.preview_steps == 0 or finished):
                    self._preview()
                due = self.args.save_steps and step % self.args.save_steps == 0
                stopped = stop.agreed() and not finished
                if due or finished or stopped:
                    self._save()
                if stopped:
                    return stop.name
        return None

    def _step(self, batches: Iterator[dict[str, Any]]) -> None:
        accelerator, accumulation = self.accelerator, self.order.accumulation
        loss: Tensor | float = 0.0
        logs: Tensor | float = 0.0
        ids: list[str] = []
        progress = self.order.progress(self.position)
        self.objective.before_step(progress, self._epochs())
        self._statistics.keep()
        for number in range(accumulation):
            with self.window.waiting():
                batch = next_batch(batches)
            device = accelerator.device
            images = batch["images"].to(device, non_blocking=True)
            draws = {name: values.to(device, non_blocking=True) for name, values in batch["draws"].items()}
            with torch.no_grad():
                views = self.objective.views(images, draws)
            is_last = number == accumulation - 1
            with contextlib.nullcontext() if is_last else accelerator.no_sync(self.network):
                part, part_logs = self.network(views)
                accelerator.backward(part / accumulation)
            loss = loss + part.detach() / accumulation
            logs = logs + part_logs / accumulation
            ids += batch["ids"]
            self.rejected.add(batch["rejected"])
        for parameter in self.objective.held(self._epochs()):
            parameter.grad = None
        norm = gradient_norm(accelerator, self.network, self.args.max_grad_norm)
        rate = self.learning_rate()
        decay = weight_decay_at(progress, self.args.weight_decay, self.args.final_weight_decay)
        set_schedule(self.optimizer, rate, decay)
        guarded_step(accelerator, self.optimizer, norm.isfinite())
        self._statistics.put_back(loss, norm)
        self.optimizer.zero_grad()
        self.position = self.order.after(self.position)
        self.objective.after_step(self.order.progress(self.position))
        self.window.add(torch.cat([torch.stack([loss, norm]).float(), logs.float()]), ids, self.order.global_batch)

    def learning_rate(self) -> float:
        """Of the step that comes next."""
        warmup = warmup_share(self.args.warmup_steps, self.order.total_steps)
        peak = self.args.peak_learning_rate(self.order.global_batch)
        return peak * learning_rate_factor(self.order.progress(self.position), warmup)

    def _epochs(self) -> float:
        return self.order.epochs(self.position)

    def _log(self) -> None:
        rows = self._settle()
        speed = self.window.speed()
        # Scaled gradients that overflowed (fp16) have no norm.
        means = rows.masked_fill(~rows.isfinite(), math.nan).nanmean(dim=0).tolist()
        record = {
            "step": self.position.step,
            "epoch": round(self._epochs(), 6),
            "loss": means[0],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": means[1],
            **speed,
            **dict(zip(self.objective.log_names, means[2:], strict=True)),
        }
        counts = {"skipped_steps": self.non_finite.skipped, "rejected_images": len(self.rejected.reasons)}
        self.report.log({**record, **{name: count for name, count in counts.items() if count}})
        self.report.show(record, self.objective.log_names)
        self.window, self._settled = Window(), 0

    def _settle(self) -> Tensor:
        """Check what happened since the last log line or checkpoint, and leave steps that are not finite out.

        Returns:
            float64 (steps, columns): what is left of the window, means over processes. The host waits for the device.
        """
        if not self.window.rows:
            return torch.empty(0, 2 + len(self.objective.log_names), dtype=torch.float64)
        step, first, values = self.position.step, self._settled, self.window.values()
        shared = self.accelerator.reduce(values.clone(), reduction="mean").cpu().double()
        found = self.non_finite.check(shared[first:], values.cpu()[first:], self.window.ids[first:], step)
        self.rejected.check(step * self.order.global_batch)
        kept = [*range(first), *(first + index for index in found)]
        self.window.rows = [self.window.rows[index] for index in kept]
        self.window.ids = [self.window.ids[index] for index in kept]
        self._settled = len(kept)
        return shared[kept]

    def _probe(self) -> None:
        if self.probe is None:
            return
        with self.window.paused():
            auroc = self.probe.auroc(self.objective)
        self.report.log({"step": self.position.step, "epoch": round(self._epochs(), 6), "probe_auroc": auroc})

    def _preview(self) -> None:
        with self.window.paused():
            if self.accelerator.is_main_process:
                picture = self.previews.write(self.objective, self.position.step, self.accelerator.device)
                if picture is not None:
                    self.report.show_picture(picture, self.position.step)
            self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        rows = self._settle()
        state = {
            **self.facts,
            "position": vars(self.position),
            "window": storable(rows),
            "rejected": self.rejected.reasons,
            "skipped_steps": self.non_finite.skipped,
        }
        with self.window.paused():
            self.checkpoints.save(self.position.step, state)
