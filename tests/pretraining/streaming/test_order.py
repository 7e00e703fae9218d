"""The order of a stream: every image at most once per epoch, few shards at a time, each on one process."""

import itertools

import numpy as np
import pytest

from retfound_hf.pretraining.data import Order, Position, StreamedOrder

ROWS = (50, 1, 37, 60, 12, 40)
TOTAL = sum(ROWS)
SHAPES = list(itertools.product((1, 3, 8), (1, 2), (1, 2, 3)))


def orders(batch: int, accumulation: int, processes: int, rows=ROWS, mixed: int = 2, **options) -> list[StreamedOrder]:
    images = sum(rows) // processes * processes
    return [
        StreamedOrder(images, batch, accumulation, processes, process, shard_rows=rows, mixed=mixed, **options)
        for process in range(processes)
    ]


START = Position()


def rows_of(order: Order, position: Position = START) -> list[int]:
    return [row for batch in order.batches(position) for row in batch.rows]


def shards_of(rows: list[int]) -> list[int]:
    return np.searchsorted(np.cumsum(ROWS), rows, side="right").tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_image_twice_in_an_epoch_and_at_most_an_incomplete_batch_left_out(shape):
    parts = orders(*shape, seed=1, num_epochs=1)
    seen = [row for part in parts for row in rows_of(part)]
    assert len(seen) == len(set(seen)) == parts[0].steps_per_epoch * parts[0].global_batch
    assert set(seen) <= set(range(TOTAL))
    assert TOTAL - len(seen) < parts[0].global_batch + parts[0].num_processes


def test_every_image_has_its_turn_and_epochs_and_seeds_differ():
    def epoch(number: int, seed: int = 0) -> list[int]:
        part = orders(8, 1, 1, seed=seed, num_epochs=number + 1)[0]
        return rows_of(part, Position(epoch=number))

    epochs = [epoch(number) for number in range(30)]
    assert {row for rows in epochs for row in rows} == set(range(TOTAL))
    assert len({tuple(rows) for rows in epochs}) == 30
    assert epoch(0, seed=1) != epochs[0]


@pytest.mark.parametrize("mixed", [1, 2, 4])
def test_few_shards_are_open_at_a_time_and_none_comes_again(mixed):
    shards = shards_of(rows_of(orders(1, 1, 1, mixed=mixed, num_epochs=1)[0]))
    spans = [(shards.index(shard), len(shards) - 1 - shards[::-1].index(shard)) for shard in set(shards)]
    open_at = [sum(first <= place <= last for first, last in spans) for place in range(len(shards))]
    assert max(open_at) == mixed
    # Images of shards that are open together come mixed: the larger ones are left and come again.
    changes = sum(one != other for one, other in itertools.pairwise(shards))
    assert (changes == len(ROWS) - 1) == (mixed == 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_no_more_shards_than_there_are_cuts(processes):
    for seed in range(20):
        parts = orders(1, 1, processes, seed=seed, num_epochs=1)
        own = [set(shards_of(rows_of(part))) for part in parts]
        assert sum(map(len, own)) - len(set.union(*own)) <= processes - 1


@pytest.mark.parametrize("cut", [(8, 1, 1), (3, 2, 2)], ids=str)
def test_resumed_anywhere_the_rest_is_the_rest(cut):
    parts = orders(*cut, seed=4, num_epochs=2.5)
    whole = [list(part.batches(Position())) for part in parts]
    position = Position()
    while not parts[0].is_finished(position):
        for part, batches in zip(parts, whole, strict=True):
            assert list(part.batches(position)) == batches[position.step * cut[1] :]
        position = parts[0].after(position)


def test_another_batch_goes_on_with_unseen_images():
    first, second = orders(8, 1, 2, num_epochs=1), orders(5, 2, 2, num_epochs=1)
    position = first[0].after(first[0].after(Position()))
    seen = {row for part in first for batch in part.batches(Position()) if batch.step < 2 for row in batch.rows}
    rest = [row for part in second for row in rows_of(part, position)]
    assert not seen & set(rest) and len(rest) == len(set(rest))


def test_places_in_the_global_batch_are_those_of_the_order_on_disk():
    for shape in SHAPES:
        for streamed in orders(*shape, num_epochs=1):
            stored = Order(streamed.num_images, *shape, streamed.process, num_epochs=1)
            places = [(batch.step, batch.start) for batch in streamed.batches(Position())]
            assert places == [(batch.step, batch.start) for batch in stored.batches(Position())]
