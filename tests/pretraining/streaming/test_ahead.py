"""Shards are here before they are read, and not longer than they are needed."""

import threading
import time
from collections import Counter

import pytest

from retfound_hf.pretraining.data import Position, StreamedOrder
from retfound_hf.pretraining.streaming import (
    THREAD_NAME,
    Ahead,
    PrefetchWindow,
    StreamedTable,
    StreamShard,
    list_shards,
)

EPOCHS = 3


class Watched(StreamedTable):
    """Notes what was fetched by the thread and what by the reader, and how many shards were here at once.

    The thread stands still before its fetch number `hold_at`, until `go_on` is set.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.fetched: list[str] = []
        self.fetched_late: list[str] = []
        self.most = 0
        self.listed = 0
        self.asked = 0
        self.hold_at = -1
        self.go_on = threading.Event()

    def fetch(self, number: int):
        if threading.current_thread() is not threading.main_thread():
            self.asked += 1
            if self.asked == self.hold_at:
                assert self.go_on.wait(20)
        path = super().fetch(number)
        self.most = max(self.most, len(super().open_shards()))
        return path

    def present(self) -> set[int]:
        self.listed += 1
        return super().open_shards()


@pytest.fixture
def made(uneven, tmp_path, monkeypatch):
    def make(mixed: int, batch: int = 4, epochs: int = EPOCHS) -> tuple[Watched, StreamedOrder]:
        shards = list_shards([str(uneven)])
        rows = tuple(shard.rows for shard in shards)
        table = Watched(shards, tmp_path / "open", limit=2 * mixed + 1)
        read = StreamShard.read

        def noted(shard: StreamShard, *arguments):
            reads = threading.current_thread() is threading.main_thread()
            (table.fetched_late if reads else table.fetched).append(shard.path)
            return read(shard, *arguments)

        monkeypatch.setattr(StreamShard, "read", noted)
        return table, StreamedOrder(200, batch, shard_rows=rows, mixed=mixed, num_epochs=epochs)

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
        until(lambda needed=needed: needed <= table.open_shards())
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
    until(lambda: len(table.open_shards()) == table.limit)
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
        until(lambda: len(table.open_shards()) <= table.limit + 1)
    assert len(table.fetched) + len(table.fetched_late) <= 2 * EPOCHS * len(table.shards)


@pytest.mark.parametrize("hold_at, until_batch", [(1, 14), (2, 20), (3, 30), (3, 40), (4, 45)])
def test_a_thread_that_was_held_up_removes_nothing_that_is_read(made, hold_at, until_batch):
    """It stands still while the reader goes on by itself, through more shards than the limit."""
    table, order = made(1, epochs=1)
    table.hold_at = hold_at
    read = []
    for number, batch in enumerate(Ahead(table, order, in_flight=1).batches(Position())):
        if number == until_batch:
            table._mapped.clear()  # what was read from here on is read from what is here
            asked = table.asked
            table.go_on.set()
            until(lambda asked=asked: table.asked > asked or len(table.open_shards()) <= table.limit)
            time.sleep(0.1)
            assert table.shards_of(batch.rows) <= table.open_shards()
        read += table[list(batch.rows)]["id"]
    assert sorted(read) == sorted(f"img{row}" for row in range(200))
    assert set(Counter(table.fetched + table.fetched_late).values()) == {1}, "no shard is fetched again in its epoch"


def test_the_folder_is_listed_once_for_each_shard_and_not_for_each_batch(made):
    table, order = made(1, batch=1)
    for batch in Ahead(table, order, in_flight=1).batches(Position()):
        until(lambda batch=batch: table.shards_of(batch.rows) <= StreamedTable.present(table))
        table[list(batch.rows)]
    assert table.listed <= EPOCHS * len(table.shards) + 1


def test_a_slow_listing_does_not_keep_the_reader_waiting(made, monkeypatch):
    table, order = made(2, epochs=1)
    go_on = threading.Event()
    monkeypatch.setattr(table, "present", lambda: go_on.wait(20) and set())
    batches = Ahead(table, order, in_flight=1).batches(Position())
    start = time.monotonic()
    assert len([table[list(batch.rows)] for batch in batches]) == order.steps_per_epoch
    assert time.monotonic() - start < 10
    go_on.set()


@pytest.mark.parametrize("how", ["table", "iterator"])
def test_the_thread_fetches_nothing_after_the_end(made, how):
    """A run that failed keeps its iterator alive, in the error's traceback; closing the table ends the thread too."""
    table, order = made(1)
    table.hold_at = 2
    batches = Ahead(table, order, in_flight=1).batches(Position())
    next(batches)
    until(lambda: table.asked == 2)
    (thread,) = [each for each in threading.enumerate() if each.name == THREAD_NAME]
    (table if how == "table" else batches).close()
    table.go_on.set()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert table.asked == 2 and table.folder.exists() == (how == "iterator")


def test_the_window_holds_what_is_read_and_what_fits_in_the_order_in_which_it_comes():
    batches = [{5}, {5, 2}, {2}, {7, 8}, {7}, {1}, {5}]
    window = PrefetchWindow(iter(batches), limit=3)
    assert window.shards(oldest=-1, newest=0) == [5, 2], "7 and 8 do not fit"
    assert window.shards(1, 2) == [5, 2]
    assert window.shards(2, 3) == [2, 7, 8]
    assert window.shards(3, 4) == [7, 8, 1], "5 comes again, and does not fit yet"
    assert window.shards(4, 5) == [7, 1, 5]
    assert window.shards(7, 7) == []
    held_up = PrefetchWindow(iter(batches), limit=3)
    assert held_up.shards(5, 6) == [1, 5], "what the reader is done with is passed over"
    many_in_flight = PrefetchWindow(iter(batches), limit=3)
    assert many_in_flight.shards(0, 5) == [5, 2, 7, 8], "all that may still be read, whatever the limit"
