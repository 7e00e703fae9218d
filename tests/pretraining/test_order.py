"""The order of images: every one once per epoch, whatever the number of processes and the stops in between."""

import itertools
from collections.abc import Iterable

import numpy as np
import pytest
import torch

from retfound_hf.pretraining.data import Order, Position, step_generator

SHAPES = [
    (num_images, batch, accumulation, processes)
    for num_images, batch, accumulation, processes in itertools.product(
        (1, 7, 48, 203), (1, 3, 8), (1, 2, 3), (1, 2, 4)
    )
    if num_images >= batch * accumulation * processes
]
START = Position()
SAME_PRODUCT = [(16, 1, 1), (8, 2, 1), (8, 1, 2), (4, 2, 2), (2, 2, 4), (1, 16, 1), (1, 1, 16)]


def orders(num_images: int, batch: int, accumulation: int, processes: int, **options) -> list[Order]:
    return [Order(num_images, batch, accumulation, processes, process, **options) for process in range(processes)]


def global_batches(parts: list[Order], position: Position = START) -> dict[int, list[int]]:
    """Of every step the rows by their places in the global batch; no place may be missing or taken twice."""
    batches: dict[int, dict[int, int]] = {}
    for part in parts:
        for batch in part.batches(position):
            assert len(batch.rows) == part.batch_size
            for offset, row in enumerate(batch.rows):
                assert batches.setdefault(batch.step, {}).setdefault(batch.start + offset, row) == row
    found = {}
    for step, rows in batches.items():
        assert sorted(rows) == list(range(parts[0].global_batch))
        found[step] = [rows[place] for place in range(parts[0].global_batch)]
    return found


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def walk(order: Order, position: Position = START) -> list[Position]:
    """All positions to the end."""
    found = [position]
    while not order.is_finished(found[-1]):
        found.append(order.after(found[-1]))
        assert len(found) < 10_000
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_image_at_most_once_in_an_epoch_and_the_incomplete_batch_left_out(shape):
    parts = orders(*shape, seed=3, num_epochs=3)
    batches = global_batches(parts)
    per_epoch = shape[0] // parts[0].global_batch
    assert sorted(batches) == list(range(3 * per_epoch))
    for epoch in range(3):
        rows = joined(batches[step] for step in range(epoch * per_epoch, (epoch + 1) * per_epoch))
        assert len(set(rows)) == len(rows) == per_epoch * parts[0].global_batch
        assert set(rows) <= set(range(shape[0]))


def test_every_image_has_its_turn_and_epochs_and_seeds_differ():
    order = Order(50, 8, seed=0, num_epochs=40)
    batches = global_batches([order])
    assert {row for rows in batches.values() for row in rows} == set(range(50))
    epochs = [joined(batches[6 * epoch + step] for step in range(6)) for epoch in range(40)]
    assert len({tuple(rows) for rows in epochs}) == 40
    # Positions of an image in the epochs are those of uniform permutations: mean 23.5 of 0..47, sd 13.85 / sqrt(n).
    places = [rows.index(7) for rows in epochs if 7 in rows]
    assert np.mean(places) == pytest.approx(23.5, abs=4 * 13.85 / np.sqrt(len(places)))
    assert global_batches([Order(50, 8, seed=1, num_epochs=1)])[0] != batches[0]
    assert global_batches([Order(50, 8, seed=0, num_epochs=1)])[0] == batches[0]


def test_the_global_batches_do_not_depend_on_how_they_are_cut():
    streams = [
        global_batches(orders(203, batch, accumulation, processes, seed=5, num_epochs=2))
        for batch, accumulation, processes in SAME_PRODUCT
    ]
    assert len(streams[0]) == 24
    assert all(stream == streams[0] for stream in streams[1:])


@pytest.mark.parametrize("length", [{"num_epochs": 2.5}, {"max_steps": 29}], ids=str)
@pytest.mark.parametrize("cut", [(16, 1, 1), (4, 2, 2)], ids=str)
def test_resumed_anywhere_the_rest_is_the_rest(length, cut):
    parts = orders(203, *cut, seed=1, **length)
    whole = [list(part.batches(Position())) for part in parts]
    positions = walk(parts[0])
    for position in positions:
        for part, batches in zip(parts, whole, strict=True):
            assert list(part.batches(position)) == batches[position.step * cut[1] :]
    assert positions[-1].step == parts[0].total_steps


@pytest.mark.parametrize("before", [8, 16, 30])
@pytest.mark.parametrize("after", [(8, 1, 1), (5, 2, 1), (7, 1, 3), (64, 1, 1)], ids=str)
def test_another_batch_goes_on_with_unseen_images_and_the_same_schedule(before, after):
    first = Order(203, before, seed=2, num_epochs=3)
    for stop in (1, 3, first.steps_per_epoch - 1, first.steps_per_epoch + 2):
        position = walk(first)[stop]
        used = [rows for step, rows in global_batches([first]).items() if step < stop]
        seen = {row for rows in used[position.epoch * first.steps_per_epoch :] for row in rows}
        assert len(seen) == position.offset
        parts = orders(203, *after, seed=2, num_epochs=3)
        batches = global_batches(parts, position)
        places = walk(parts[0], parts[0].at_epoch(position))
        assert [place.step for place in places[:-1]] == list(batches)
        for epoch in range(position.epoch, 3):
            rows = joined(batches[place.step] for place in places[:-1] if place.epoch == epoch)
            assert len(set(rows)) == len(rows)
            assert 203 - len(rows) - (len(seen) if epoch == position.epoch else 0) < parts[0].global_batch
            if epoch == position.epoch:
                assert not seen & set(rows)
        progress = [parts[0].progress(place) for place in places]
        assert progress == sorted(progress) and progress[-1] == 1
        assert progress[0] == pytest.approx(
            first.progress(position), abs=max(first.global_batch, parts[0].global_batch) / 203 / 3
        )


@pytest.mark.parametrize("num_images", [8, 9, 100, 203, 904_170])
@pytest.mark.parametrize("batch", [1, 3, 7, 8])
@pytest.mark.parametrize("length", [0.1, 0.5, 1, 1.7, 3, 33], ids=str)
def test_a_run_of_epochs_ends_exactly_at_its_total_steps(num_images, batch, length):
    batch = batch if num_images < 1000 else batch * 1792
    order = Order(num_images, batch, num_epochs=length)
    assert order.total_steps == max(1, round(length * order.steps_per_epoch))
    if order.total_steps < 10_000:
        assert walk(order)[-1].step == order.total_steps


@pytest.mark.parametrize("num_images", [8, 203])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 49, 997])
def test_a_run_of_steps_ends_exactly_there(num_images, max_steps):
    order = Order(num_images, 8, max_steps=max_steps, num_epochs=0.01)
    positions = walk(order)
    assert positions[-1].step == order.total_steps == max_steps
    assert [order.progress(place) for place in positions] == pytest.approx(np.linspace(0, 1, max_steps + 1))


def test_epochs_and_progress_of_epochs():
    order = Order(203, 10, num_epochs=2)
    positions = walk(order)
    assert [order.epochs(place) for place in positions] == pytest.approx(np.arange(41) / 20)
    assert [order.progress(place) for place in positions] == pytest.approx(np.linspace(0, 1, 41))
    assert positions[20] == Position(20, 1, 0)


def test_the_stream_is_read_lazily():
    """Millions of steps lie before the position and after it."""
    order = Order(904_170, 224, 1, 8, process=5, num_epochs=800_000)
    position = Position(step=504 * 700_000 + 3, epoch=700_000, offset=1792 * 3)
    first = next(order.batches(position))
    assert len(first.rows) == 224
    assert (first.step, first.start) == (504 * 700_000 + 3, 5 * 224)


def test_the_generators_of_steps_and_seeds_are_apart():
    drawn = {
        tuple(torch.rand(4, generator=step_generator(seed, step)).tolist())
        for seed in range(20)
        for step in (*range(200), 2**31)
    }
    assert len(drawn) == 20 * 201
    again = [torch.rand(4, generator=step_generator(3, 9)) for _ in range(2)]
    assert torch.equal(*again)
