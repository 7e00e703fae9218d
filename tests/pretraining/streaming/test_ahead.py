"""Shards are here before they are read, and not longer than they are needed."""

import threading
import time

import pytest

from retfound_hf.pretraining.order import Position
from retfound_hf.pretraining.streaming.ahead import Ahead
from retfound_hf.pretraining.streaming.order import StreamedOrder
from retfound_hf.pretraining.streaming.shards import list_shards
from retfound_hf.pretraining.streaming.table import StreamedTable

EPOCHS = 3


class Watched(StreamedTable):
    """Notes what was fetched by the thread and what by the reader, and how many shards were here at once."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.fetched: list[int] = []
        self.fetched_late: list[int] = []
        self.most = 0

    def fetch(self, number: int):
        if number not in self.present():
            reads = threading.current_thread() is threading.main_thread()
            (self.fetched_late if reads else self.fetched).append(number)
        path = super().fetch(number)
        self.most = max(self.most, len(self.present()))
        return path


@pytest.fixture
def made(uneven, tmp_path):
    def make(mixed: int, batch: int = 4) -> tuple[Watched, StreamedOrder]:
        shards = list_shards([str(uneven)])
        rows = tuple(shard.rows for shard in shards)
        table = Watched(shards, tmp_path / "open", limit=2 * mixed + 1)
        return table, StreamedOrder(200, batch, shard_rows=rows, mixed=mixed, num_epochs=EPOCHS)

    return make


def until(condition) -> None:
    for _ in range(500):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not within five seconds")


@pytest.mark.parametrize("mixed", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_the_same_batches_whose_shards_were_fetched_before(made, mixed, in_flight):
    table, order = made(mixed)
    found = []
    for batch in Ahead(table, order, in_flight).batches(Position()):
        needed = table.shards_of(batch.rows)
        until(lambda needed=needed: needed <= table.present())
        found.append((batch, table[list(batch.rows)]["id"]))
    assert [batch for batch, _ in found] == list(order.batches(Position()))
    assert all(ids == [f"img{row}" for row in batch.rows] for batch, ids in found)
    assert table.fetched_late == []
    assert table.most <= table.limit
    assert len(table.fetched) <= EPOCHS * len(table.shards), "a shard is fetched once an epoch at most"


def test_the_thread_goes_no_further_than_the_limit_and_ends_with_its_reader(made):
    table, order = made(1)
    batches = Ahead(table, order, in_flight=1).batches(Position())
    next(batches)
    until(lambda: len(table.present()) == table.limit)
    time.sleep(0.2)
    assert len(table.fetched) == table.limit
    batches.close()
    time.sleep(0.1)
    assert len(table.fetched) == table.limit


def test_a_batch_larger_than_many_shards_is_read_all_the_same(made):
    table, order = made(1, batch=100)
    read = [table[list(batch.rows)]["id"] for batch in Ahead(table, order, 1).batches(Position())]
    assert sorted(read[0] + read[1]) == sorted(f"img{row}" for row in range(200))


def test_a_reader_that_is_faster_than_the_thread_does_not_fill_the_disk(made):
    table, order = made(1)
    for batch in Ahead(table, order, in_flight=1).batches(Position()):
        table[list(batch.rows)]
        # One that the reader fetched while the thread was elsewhere.
        until(lambda: len(table.present()) <= table.limit + 1)
    assert len(table.fetched) + len(table.fetched_late) <= 2 * EPOCHS * len(table.shards)
