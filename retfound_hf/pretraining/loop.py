"""Training loop: learning-rate schedule, guarded optimiser steps, LARS, logging, checkpoints, graceful shutdown."""

import contextlib
import math
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from .arguments import PretrainingArguments
from .checkpoints import Checkpoints, check_resumable, read_state
from .data import Position, TrainingImages, next_batch
from .monitor import MetricBuffer, Monitor, finite_or_none
from .objectives.base import Objective
from .objectives.distributed import all_reduce_mean

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set for their processes by accelerate and torchrun
LARS_TRUST = 1e-3
LARS_MOMENTUM = 0.9


class Lars(torch.optim.SGD):
    """LARS (You et al. 2017): SGD with momentum whose steps are scaled, matrix by matrix, to the norm of the weights.

    gradient <- (gradient + decay x weight) x trust x |weight| / |gradient + decay x weight|. Vectors (biases, norms)
    step by their gradient, as in the released code of SimCLR. No norm is asked for by the host.
    """

    def __init__(self, groups: list[dict[str, Any]], learning_rate: float):
        super().__init__(groups, lr=learning_rate, momentum=LARS_MOMENTUM, fused=True)
        # The fused kernel leaves uninitialised buffers as they are when it skips the first step.
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        decays = [group["weight_decay"] for group in self.param_groups]
        for group in self.param_groups:
            self._adapt([parameter for parameter in group["params"] if parameter.ndim > 1], group["weight_decay"])
            group["weight_decay"] = 0.0  # it is in the gradients now
        try:
            return super().step(closure)
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay

    @staticmethod
    def _adapt(parameters: list[torch.Tensor], decay: float) -> None:
        parameters = [parameter for parameter in parameters if parameter.grad is not None]
        if not parameters:
            return
        gradients = [parameter.grad for parameter in parameters]
        torch._foreach_add_(gradients, parameters, alpha=decay)
        of_weights, of_gradients = (torch.stack(torch._foreach_norm(values)) for values in (parameters, gradients))
        ratios = torch.where((of_weights > 0) & (of_gradients > 0), LARS_TRUST * of_weights / of_gradients, 1.0)
        torch._foreach_mul_(gradients, list(ratios.unbind()))


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Trainable parameters in two groups: with weight decay, and vectors (biases, norms) without, as in MAE's code."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]


def make_optimizer(
    model: nn.Module, learning_rate: float, weight_decay: float, betas: tuple[float, float], name: str = "adamw"
) -> torch.optim.Optimizer:
    """AdamW or LARS in one fused kernel, which can also skip a step without asking the host (`guarded_step`).

    Args:
        learning_rate, weight_decay: at the start.
        betas: of AdamW.
        name: "adamw" or "lars".
    """
    if name == "lars":
        return Lars(parameter_groups(model, weight_decay), learning_rate)
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=True)


def learning_rate_factor(progress: float, warmup: float) -> float:
    """Share of the peak learning rate: linear to 1 at `warmup`, then half a cosine to 0 (He et al. 2022, code).

    Args:
        progress: finished share of the run before the step.
        warmup: share of the run that is warm-up.
    """
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min((progress - warmup) / max(1 - warmup, 1e-12), 1.0)))


def warmup_share(warmup_steps: float, total_steps: int) -> float:
    """Warm-up as a share of the run; below 1 it is one already."""
    return warmup_steps if warmup_steps < 1 else min(warmup_steps / total_steps, 1.0)


def weight_decay_at(progress: float, start: float, end: float | None) -> float:
    """Weight decay on its way from `start` to `end` by half a cosine (Caron et al. 2021); constant for None."""
    return start if end is None else end + (start - end) * (1 + math.cos(math.pi * progress)) / 2


def gradient_norm(accelerator: Accelerator, model: nn.Module, max_grad_norm: float) -> Tensor:
    """Norm of all gradients before clipping, a scalar on the device; 0 for `max_grad_norm` clips nothing."""
    return accelerator.clip_grad_norm_(model.parameters(), max_grad_norm or math.inf)


def guarded_step(accelerator: Accelerator, optimizer: Any, finite: Tensor) -> None:
    """Step where `finite` (a bool scalar on the device) holds; else weights, moments and counts stay as they are.

    The decision is made on the device: asking for it on the host would stop the GPU at every step. It uses the flag
    by which torch's GradScaler tells fused optimisers of overflow; with fp16 the scaler itself does that.
    """
    if accelerator.scaler is not None:
        optimizer.step()
        return
    inner = getattr(optimizer, "optimizer", optimizer)
    inner.found_inf = (~finite).float()
    try:
        optimizer.step()
    finally:
        del inner.found_inf


class BatchNormGuard:
    """Guard of the running statistics of all batch norms, those of averaged networks too.

    Without it one step that is not finite would stay in them for good, since a share of NaN is NaN.

    Args:
        network: on its device.
    """

    def __init__(self, network: nn.Module):
        norms = [module for module in network.modules() if isinstance(module, _BatchNorm)]
        self.buffers = [norm.running_mean for norm in norms] + [norm.running_var for norm in norms]

    def save(self) -> None:
        """Note the statistics before the first forward pass of a step."""
        if self.buffers:
            self._saved = torch.cat(self.buffers)

    @torch.no_grad()
    def restore(self, loss: Tensor, norm: Tensor) -> None:
        """Go back to the noted ones if the loss of any process, or the norm of all gradients, is not finite.

        As in `guarded_step` the decision is made on the device, and all processes make the same.

        Args:
            loss: scalar, of this process.
            norm: scalar, of all processes.
        """
        if not self.buffers:
            return
        finite = norm.isfinite() & all_reduce_mean(loss).isfinite()
        settled = torch.where(finite, torch.cat(self.buffers), self._saved)
        torch._foreach_copy_(self.buffers, settled.split([len(buffer) for buffer in self.buffers]))


class GracefulShutdown:
    """Graceful shutdown: the current step is finished on SIGTERM, SIGINT or launcher exit, agreed across processes.

    The processes ask each other on the host (gloo), and use the answer a step later: no GPU waits for it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # Without a launcher the parent is a shell, which may end before the run that it put into the background.
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() and dist.get_world_size() > 1 else None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def reason(self) -> str:
        if self.received is not None:
            return signal.Signals(self.received).name
        return "the end of its launcher" if self._orphaned() else "a signal to another process"

    def _orphaned(self) -> bool:
        """For one process `accelerate launch` forwards no signal: what ends the launcher must stop the run."""
        return self._launcher is not None and os.getppid() != self._launcher

    def requested(self) -> bool:
        """Ask once per step, on every process: true on all of them at the same step."""
        wanted = self.received is not None or self._orphaned()
        if self._group is None:
            return wanted
        answer = False
        if self._asked is not None:
            votes, work = self._asked
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor([float(wanted)])
        self._asked = votes, dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    @contextmanager
    def listening(self) -> Iterator["GracefulShutdown"]:
        """Handle the signals; a second SIGINT does what it did before. Only the main thread can do that."""
        taken = SIGNALS if threading.current_thread() is threading.main_thread() else ()
        self._before = {number: signal.signal(number, self._receive) for number in taken}
        try:
            yield self
        finally:
            for number, handler in self._before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # A second SIGTERM is not impatience: launchers forward theirs to processes that a scheduler has told already.
        if number == signal.SIGINT:
            signal.signal(number, self._before[signal.SIGINT])


class Loop:
    """Training from a position to the end of the run.

    Args:
        args: with the recipe filled in.
        objective: on any device; it is prepared here together with its optimiser.
        images: with their order.
        facts: kept in every checkpoint beside the position.

    Attributes:
        network: the objective as accelerate prepared it.
        position: of the next step.
        buffer: steps since the last log line.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        args: PretrainingArguments,
        objective: Objective,
        images: TrainingImages,
        checkpoints: Checkpoints,
        monitor: Monitor,
        facts: dict[str, Any],
    ):
        self.accelerator, self.args, self.objective = accelerator, args, objective
        self.order, self.checkpoints, self.monitor, self.facts = images.order, checkpoints, monitor, facts
        self.peak_rate = args.peak_learning_rate(self.order.global_batch)
        betas = (args.adam_beta1, args.adam_beta2)
        optimizer = make_optimizer(objective, self.peak_rate, args.weight_decay, betas, args.optim)
        self.network, self.optimizer = accelerator.prepare(objective, optimizer)
        self.position, self.buffer = Position(), MetricBuffer()
        self._checked = 0  # steps of the buffer that are known to be finite, as those of a checkpoint are
        self._norms = BatchNormGuard(self.network)

    def resume(self, checkpoint: Path) -> None:
        """Go on from a checkpoint.

        Raises:
            RetFoundError: one that is damaged, or of a run with other facts.
        """
        check_resumable(read_state(checkpoint), self.facts, self.args.max_steps, checkpoint)
        state = self.checkpoints.load(checkpoint)
        # With another batch, the rest of the epoch may be too short for a step.
        self.position = self.order.at_epoch(Position(**state["position"]))
        self.buffer.restore(state["window"], self.accelerator.device)
        self._checked = len(self.buffer.rows)
        self.monitor.non_finite.skipped = state["skipped_steps"]
        self.monitor.rejected.reasons = state["rejected"]

    def train(self, batches: Iterator[dict[str, Any]]) -> str | None:
        """Train to the end, which writes a checkpoint too; returns the reason if a signal ended it before."""
        probe, previews, args = self.monitor.probe, self.monitor.previews, self.args
        # With another batch than before, the rest takes another number of steps.
        left = round((1 - self.order.progress(self.position)) * self.order.total_steps)
        self.monitor.log.start(self.position.step, self.position.step + left)
        self.network.train()
        with GracefulShutdown().listening() as shutdown:
            if self.position.step == 0 and probe is not None:
                self._probe()
            while not self.order.is_finished(self.position):
                before = self.epochs
                self.step(batches)
                self.monitor.log.bar.update()
                step, finished = self.position.step, self.order.is_finished(self.position)
                if step % args.logging_steps == 0 or finished:
                    self._log()
                if probe is not None and (probe.is_due(before, self.epochs) or finished):
                    self._probe()
                if previews is not None and (step % previews.steps == 0 or finished):
                    self._preview()
                stopped = shutdown.requested() and not finished
                if (args.save_steps and step % args.save_steps == 0) or finished or stopped:
                    self._save()
                if stopped:
                    return shutdown.reason
        return None

    def step(self, batches: Iterator[dict[str, Any]]) -> None:
        """One optimiser step, for which the host never waits for the device."""
        accelerator, accumulation = self.accelerator, self.order.accumulation
        loss: Any = 0.0
        logs: Any = 0.0
        ids: list[str] = []
        progress = self.order.progress(self.position)
        self.objective.before_step(progress, self.epochs)
        self._norms.save()
        for number in range(accumulation):
            with self.buffer.waiting():
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
            self.monitor.rejected.add(batch["rejected"])
        for parameter in self.objective.frozen_parameters(self.epochs):
            parameter.grad = None
        norm = gradient_norm(accelerator, self.network, self.args.max_grad_norm)
        self._schedule(progress)
        guarded_step(accelerator, self.optimizer, norm.isfinite())
        self._norms.restore(loss, norm)
        self.optimizer.zero_grad()
        self.position = self.order.after(self.position)
        self.objective.after_step(self.order.progress(self.position))
        self.buffer.add(torch.cat([torch.stack([loss, norm]).float(), logs.float()]), ids, self.order.global_batch)

    @property
    def epochs(self) -> float:
        """Epochs done, with the started one's share."""
        return self.order.epochs(self.position)

    def _schedule(self, progress: float) -> None:
        """Set learning rate and weight decay of the coming step; vectors, the second group, have no decay."""
        warmup = warmup_share(self.args.warmup_steps, self.order.total_steps)
        rate = self.peak_rate * learning_rate_factor(progress, warmup)
        decay = weight_decay_at(progress, self.args.weight_decay, self.args.final_weight_decay)
        decayed, plain = self.optimizer.param_groups
        decayed.update(lr=rate, weight_decay=decay)
        plain.update(lr=rate)

    def _log(self) -> None:
        rows = self._flush()
        # Scaled gradients that overflowed (fp16) have no norm.
        means = rows.masked_fill(~rows.isfinite(), math.nan).nanmean(dim=0).tolist()
        record = {
            "step": self.position.step,
            "epoch": round(self.epochs, 6),
            "loss": means[0],
            "learning_rate": self.optimizer.param_groups[0]["lr"],
            "grad_norm": means[1],
            **self.buffer.speed(),
            **dict(zip(self.objective.log_names, means[2:], strict=True)),
        }
        monitor = self.monitor
        counts = {"skipped_steps": monitor.non_finite.skipped, "rejected_images": len(monitor.rejected.reasons)}
        monitor.log.log({**record, **{name: count for name, count in counts.items() if count}})
        monitor.log.show(record, self.objective.log_names)
        self.buffer, self._checked = MetricBuffer(), 0

    def _flush(self) -> Tensor:
        """Check the steps since the last log line or checkpoint, and leave out those that are not finite.

        Returns:
            float64 (steps, columns): the rest of the buffer, means over processes. The host waits for the device.
        """
        if not self.buffer.rows:
            return torch.empty(0, 2 + len(self.objective.log_names), dtype=torch.float64)
        step, first, values = self.position.step, self._checked, self.buffer.values()
        shared = self.accelerator.reduce(values.clone(), reduction="mean").cpu().double()
        found = self.monitor.non_finite.check(shared[first:], values.cpu()[first:], self.buffer.ids[first:], step)
        self.monitor.rejected.check(step * self.order.global_batch)
        kept = [*range(first), *(first + index for index in found)]
        self.buffer.keep(kept)
        self._checked = len(kept)
        return shared[kept]

    def _probe(self) -> None:
        with self.buffer.paused():
            auroc = self.monitor.probe.auroc(self.objective)
        self.monitor.log.log({"step": self.position.step, "epoch": round(self.epochs, 6), "probe_auroc": auroc})

    def _preview(self) -> None:
        with self.buffer.paused():
            if self.accelerator.is_main_process:
                picture = self.monitor.previews.write(self.objective, self.position.step, self.accelerator.device)
                if picture is not None:
                    self.monitor.log.show_picture(picture, self.position.step)
            self.accelerator.wait_for_everyone()

    def _save(self) -> None:
        rows = self._flush()
        state = {
            **self.facts,
            "position": vars(self.position),
            "window": [finite_or_none(row) for row in rows.tolist()],
            "rejected": self.monitor.rejected.reasons,
            "skipped_steps": self.monitor.non_finite.skipped,
        }
        with self.buffer.paused():
            self.checkpoints.save(self.position.step, state)
