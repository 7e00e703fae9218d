"""Fetching shards before they are asked for, and removing those that are done with."""

import logging
import math
import threading
from collections import Counter, deque
from collections.abc import Iterator

from ...runs.errors import RetFoundError
from ..order import MicroBatch, Order, Position
from .table import StreamedTable

logger = logging.getLogger(__name__)


class Ahead:
    """The micro-batches of a run, whose shards a thread has fetched by the time they are read.

    Args:
        in_flight: micro-batches that may be handed out and not yet read.
    """

    def __init__(self, table: StreamedTable, order: Order, in_flight: int):
        self.table, self.order, self.in_flight = table, order, in_flight

    def batches(self, position: Position) -> Iterator[MicroBatch]:
        """As `order.batches`; the thread lives as long as the iterator."""
        walk = _Walk(self)
        # A loader asks for the first batch once its processes are forked: no thread is caught in the fork.
        thread = threading.Thread(target=walk.fetch, args=(position,), daemon=True)
        thread.start()
        try:
            for batch in self.order.batches(position):
                walk.advance()
                yield batch
        finally:
            walk.close()


class _Walk:
    """How far the thread is, and how far the reader."""

    def __init__(self, ahead: Ahead):
        self.ahead = ahead
        self.changed = threading.Condition()
        self.closed = False
        self.handed_out = 0
        self.looked_at = 0
        self.recent: deque[set[int]] = deque()
        self.needed: Counter[int] = Counter()
        self.last_use: dict[int, int] = {}

    def advance(self) -> None:
        """The reader took one more micro-batch."""
        with self.changed:
            self.handed_out += 1
            self.changed.notify_all()

    def close(self) -> None:
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    def fetch(self, position: Position) -> None:
        """Go through the run ahead of the reader, as far as the limit allows."""
        table = self.ahead.table
        for batch in self.ahead.order.batches(position):
            shards = table.shards_of(batch.rows)
            with self.changed:
                self.changed.wait_for(lambda shards=shards: self._may_open(shards))
                if self.closed:
                    return
                is_passed = self.looked_at < self.handed_out - self.ahead.in_flight
                self.recent.append(set() if is_passed else shards)
                self.needed.update(self.recent[-1])
                self.last_use.update(dict.fromkeys(shards, self.looked_at))
                self.looked_at += 1
                idle = table.present() - self.needed.keys() - shards
            if is_passed:  # by a reader that is faster, fetched what it needed, and needs it still
                continue
            too_many = len(table.present() | self.needed.keys()) - table.limit
            # The batches to come, which are not looked at yet, want those that were used last.
            for number in sorted(idle, key=lambda number: self.last_use.get(number, math.inf))[: max(0, too_many)]:
                table.remove(number)
            for number in sorted(shards):
                try:
                    table.fetch(number)
                except RetFoundError as error:  # said again, and fatal, where the images are read
                    logger.warning("%s", error)

    def _may_open(self, shards: set[int]) -> bool:
        while self.recent and self.looked_at - len(self.recent) < self.handed_out - self.ahead.in_flight:
            for number in self.recent.popleft():
                self.needed[number] -= 1
                if not self.needed[number]:
                    del self.needed[number]
        return self.closed or not self.recent or len(self.needed.keys() | shards) <= self.ahead.table.limit
