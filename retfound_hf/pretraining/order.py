"""Order of images: a function of the seed and the epoch alone, for shards on disk and for streams."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch


@dataclass(frozen=True)
class Position:
    """How far a run has come.

    Attributes:
        step: optimiser steps done.
        epoch: epochs finished.
        offset: images of the epoch that were used.
    """

    step: int = 0
    epoch: int = 0
    offset: int = 0


@dataclass(frozen=True)
class MicroBatch:
    """The images of one forward pass on one process.

    Attributes:
        rows: of the table.
        step: optimiser step that they belong to.
        start: place of the first of them among the images of that step on all processes.
    """

    rows: tuple[int, ...]
    step: int
    start: int


@dataclass(frozen=True)
class Order:
    """The images of a run, step by step, the same for any number of processes.

    An epoch is a permutation of all images, cut into global batches; the last, incomplete one is left out, as in the
    MAE code. Global batch k goes to the processes by places: forward pass a of process r takes the B images from
    (a * processes + r) * B on.

    Args:
        num_images: in the table.
        batch_size: B, images per process and forward pass.
        accumulation: forward passes per step.
        num_processes, process: how many, and which this is.
        seed: of the permutations.
        max_steps: end of the run in steps; if not above 0, it ends after `num_epochs`.
    """

    num_images: int
    batch_size: int
    accumulation: int = 1
    num_processes: int = 1
    process: int = 0
    seed: int = 0
    max_steps: int = -1
    num_epochs: float = 1.0

    @property
    def global_batch(self) -> int:
        """Images per optimiser step."""
        return self.batch_size * self.accumulation * self.num_processes

    @property
    def steps_per_epoch(self) -> int:
        return self.num_images // self.global_batch

    @property
    def total_steps(self) -> int:
        return self.max_steps if self.max_steps > 0 else max(1, round(self.num_epochs * self.steps_per_epoch))

    def epochs(self, position: Position) -> float:
        """Epochs done, with the started one's share."""
        return position.epoch + position.offset / (self.steps_per_epoch * self.global_batch)

    def progress(self, position: Position) -> float:
        """Finished share of the run, from 0 to 1.

        Counted in epochs where the run has epochs, so that a run that goes on with another batch keeps its schedule.
        """
        done = position.step / self.max_steps if self.max_steps > 0 else self.epochs(position) / self.num_epochs
        return min(done, 1.0)

    def is_finished(self, position: Position) -> bool:
        # Half a step of slack: the share of an epoch is a rounded number.
        return self.progress(position) > 1 - 0.5 / self.total_steps

    def after(self, position: Position) -> Position:
        """The position one step later."""
        position = replace(position, step=position.step + 1, offset=position.offset + self.global_batch)
        return self.at_epoch(position)

    def batches(self, position: Position) -> Iterator[MicroBatch]:
        """This process's micro-batches from `position` to the end of the run, nothing before it is walked through."""
        position = self.at_epoch(position)
        epoch, rows = -1, np.empty(0, np.int64)
        while not self.is_finished(position):
            if position.epoch != epoch:
                epoch, rows = position.epoch, self._rows(position.epoch)
            for number in range(self.accumulation):
                start = (number * self.num_processes + self.process) * self.batch_size
                first = self._place(position.offset, number)
                yield MicroBatch(tuple(rows[first : first + self.batch_size].tolist()), position.step, start)
            position = self.after(position)

    def at_epoch(self, position: Position) -> Position:
        """The same position, or the start of the next epoch where too few images are left for a step."""
        if self.num_images - position.offset < self.global_batch:
            return replace(position, epoch=position.epoch + 1, offset=0)
        return position

    def _rows(self, epoch: int) -> np.ndarray:
        """The rows of an epoch, of which `_place` tells where a micro-batch of this process begins."""
        return np.random.default_rng([self.seed, epoch]).permutation(self.num_images)

    def _place(self, offset: int, number: int) -> int:
        return offset + (number * self.num_processes + self.process) * self.batch_size


def step_generator(seed: int, step: int) -> torch.Generator:
    """The generator of an optimiser step's random numbers, apart from all others and from the order's."""
    state = np.random.SeedSequence([seed, step, 1]).generate_state(1, np.uint64)
    return torch.Generator().manual_seed(int(state[0] >> 1))


@dataclass(frozen=True)
class StreamedOrder(Order):
    """An order that opens few shards at a time, each on one process.

    An epoch puts the shards in an order by chance and lays their images in a row, which is cut evenly among the
    processes; a shard at a cut is read by the two beside it. Each process mixes the images of `mixed` shards at a time
    with each other. So the order depends on the number of processes, as that of `Order` does not.

    Args:
        shard_rows: images of each shard; `num_images` is their sum, less what does not divide by the processes.
        mixed: shards that are mixed.
    """

    shard_rows: tuple[int, ...] = ()
    mixed: int = 4

    def _rows(self, epoch: int) -> np.ndarray:
        ends = np.cumsum(self.shard_rows)
        shuffled = np.random.default_rng([self.seed, epoch]).permutation(len(self.shard_rows))
        laid = np.concatenate([np.arange(ends[shard] - self.shard_rows[shard], ends[shard]) for shard in shuffled])
        share = self.num_images // self.num_processes
        own = laid[self.process * share : (self.process + 1) * share]
        # Where this process comes to its next shard.
        shards = np.searchsorted(ends, own, side="right")
        cuts = np.flatnonzero(np.diff(shards)) + 1
        generator = np.random.default_rng([self.seed, epoch, self.process, 1])
        together = np.split(own, cuts[self.mixed - 1 :: self.mixed])
        return np.concatenate([generator.permutation(rows) for rows in together])

    def _place(self, offset: int, number: int) -> int:
        return offset // self.num_processes + number * self.batch_size
