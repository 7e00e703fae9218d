"""Fetching shards before they are asked for, and removing those that are done with."""

import logging
import threading
from collections import Counter, deque
from collections.abc import Iterator

from ...runs.errors import one_line
from ..order import MicroBatch, Order, Position
from .table import StreamedTable

THREAD = "shards ahead"
LOOK = 1.0  # seconds until a waiting thread sees that the table was closed, of which nobody tells it
logger = logging.getLogger(__name__)


class Ahead:
    """The micro-batches of a run, whose shards a thread has fetched by the time they are read.

    Args:
        in_flight: micro-batches that may be handed out and not yet read.
    """

    def __init__(self, table: StreamedTable, order: Order, in_flight: int):
        self.table, self.order, self.in_flight = table, order, in_flight

    def batches(self, position: Position) -> Iterator[MicroBatch]:
        """As `order.batches`; the thread lives as long as the iterator, or until the table is closed."""
        shards = (self.table.shards_of(batch.rows) for batch in self.order.batches(position))
        fetching = _Fetching(self.table, _Window(shards, self.table.limit), self.in_flight)
        # A loader asks for the first batch once its processes are forked: no thread is caught in the fork.
        threading.Thread(target=fetching.run, name=THREAD, daemon=True).start()
        try:
            for batch in self.order.batches(position):
                fetching.advance()
                yield batch
        finally:
            fetching.close()


class _Fetching:
    """A thread that brings what the window around the reader wants, one shard after the other.

    Before each it looks where the reader is. So one that was held up leaves out what the reader fetched by itself
    meanwhile, and removes nothing that is still being read.
    """

    def __init__(self, table: StreamedTable, window: "_Window", in_flight: int):
        self.table, self.window, self.in_flight = table, window, in_flight
        self.changed = threading.Condition()
        self.closed = False
        self.handed_out = 0
        self.given_up: set[int] = set()

    def advance(self) -> None:
        """The reader took one more micro-batch."""
        with self.changed:
            self.handed_out += 1
            self.changed.notify()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify()

    def run(self) -> None:
        here = self.table.present()
        while (number := self._next(here)) is not None:
            try:
                self.table.fetch(number)
            except Exception as error:  # of the network, the disk: said again, and fatal, where the images are read
                if not self.table.closed:
                    logger.warning("%s", one_line(error))
                self.given_up.add(number)
            here = self.table.present()

    def _next(self, here: set[int]) -> int | None:
        """Wait until a shard is wanted that is not here, and make room for it; None at the end.

        The reader cannot go on between the look at where it is and the removal, and what it fetched since `here` was
        listed is not removed.
        """
        with self.changed:
            while not (self.closed or self.table.closed):
                wanted = self.window.shards(self.handed_out - self.in_flight, self.handed_out)
                self.given_up.intersection_update(wanted)
                missing = [number for number in wanted if number not in here | self.given_up]
                too_many = len(here) + bool(missing) - self.table.limit
                for number in sorted(here.difference(wanted))[: max(0, too_many)]:
                    self.table.remove(number)
                    here.discard(number)
                if missing:
                    return missing[0]
                self.changed.wait(LOOK)
        return None


class _Window:
    """The micro-batches around the reader: those that may still be read, and as many to come as fit.

    Args:
        batches: of each micro-batch of the run its shards.
        limit: shards of all micro-batches in the window, unless those that may still be read have more.
    """

    def __init__(self, batches: Iterator[set[int]], limit: int):
        self.batches, self.limit = batches, limit
        self.inside: deque[set[int]] = deque()
        self.uses: Counter[int] = Counter()  # by shard, in the order in which they come first
        self.coming = next(batches, None)
        self.number = 0  # of the one that comes

    def shards(self, oldest: int, newest: int) -> list[int]:
        """Move on with the reader; the shards inside, in the order in which they are read.

        Args:
            oldest: number of the first micro-batch that may still be read.
            newest: number of the first that was not handed out yet.
        """
        self._drop(oldest)
        while self.coming is not None and (self.number < newest or len(self.uses.keys() | self.coming) <= self.limit):
            self.inside.append(self.coming)
            self.uses.update(sorted(self.coming))
            self.coming = next(self.batches, None)
            self.number += 1
            self._drop(oldest)
        return list(self.uses)

    def _drop(self, oldest: int) -> None:
        while self.inside and self.number - len(self.inside) < oldest:
            for number in self.inside.popleft():
                self.uses[number] -= 1
                if not self.uses[number]:
                    del self.uses[number]
