"""Which images come when, if only some shards can be open at a time."""

from dataclasses import dataclass

import numpy as np

from ..order import Order


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
