"""Batches and their random numbers: the same for any number of processes and workers, from any position on."""

import pytest
import torch

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.data import ImageReader, Order, Position, make_loader, open_shards
from retfound_hf.pretraining.objectives.mae import MaskedAutoencodingDraw

DRAW = MaskedAutoencodingDraw(side=64, patches=16)
START = Position()


class CountingReader(ImageReader):
    """Keeps the rows that it was asked for, so that reading ahead would show."""

    def __init__(self, table):
        super().__init__(table)
        self.asked = []

    def read(self, rows):
        self.asked += rows
        return super().read(rows)


@pytest.fixture
def reader(shards, cache_dir) -> CountingReader:
    return CountingReader(open_shards([str(shards)], str(cache_dir)))


def batches(reader: ImageReader, order: Order, position: Position = START, workers: int = 0) -> list[dict]:
    return list(make_loader(reader, DRAW, order, position, workers, pin_memory=False))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["ids"] == other["ids"] and one["rejected"] == other["rejected"]
        assert torch.equal(one["images"], other["images"])
        assert one["draws"].keys() == other["draws"].keys() == {"crops", "flips", "noise"}
        for name, values in one["draws"].items():
            assert torch.equal(values, other["draws"][name]), name


def test_a_batch_has_the_images_of_its_ids(reader):
    order = Order(203, 8, max_steps=3, seed=4)
    rows = [batch.rows for batch in order.batches(START)]
    for batch, expected in zip(batches(reader, order), rows, strict=True):
        assert batch["ids"] == [f"img{row}" for row in expected]
        assert torch.equal(batch["images"], reader.read(expected)[0])
        assert batch["rejected"] == []
        assert len({tuple(noise.tolist()) for noise in batch["draws"]["noise"]}) == 8


def test_draws_differ_from_step_to_step_and_seed_to_seed(reader):
    noise = [
        batch["draws"]["noise"] for seed in (0, 1) for batch in batches(reader, Order(203, 8, max_steps=3, seed=seed))
    ]
    assert len({tuple(values[0].tolist()) for values in noise}) == 6


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(4, 1, 2), (2, 2, 2), (8, 1, 1), (2, 4, 1)])
def test_processes_and_accumulation_cut_the_same_batches_and_draws(reader, batch, accumulation, processes):
    whole = batches(reader, Order(203, 8, max_steps=5, seed=4))
    parts = [
        batches(reader, Order(203, batch, accumulation, processes, process, seed=4, max_steps=5))
        for process in range(processes)
    ]
    for step, expected in enumerate(whole):
        pieces = [
            parts[process][step * accumulation + number]
            for number in range(accumulation)
            for process in range(processes)
        ]
        assert sum((piece["ids"] for piece in pieces), []) == expected["ids"]  # noqa: RUF017
        assert torch.equal(torch.cat([piece["images"] for piece in pieces]), expected["images"])
        for name, values in expected["draws"].items():
            assert torch.equal(torch.cat([piece["draws"][name] for piece in pieces]), values), name


def test_workers_change_nothing(reader):
    order = Order(203, 8, 2, max_steps=7, seed=1)
    assert_same(batches(reader, order, workers=2), batches(reader, order))


@pytest.mark.parametrize("stop", [1, 24, 25, 26])
def test_a_resumed_loader_gives_the_rest_and_reads_nothing_before_it(reader, stop):
    order = Order(203, 8, num_epochs=1.2, seed=2)
    position = START
    for _ in range(stop):
        position = order.after(position)
    whole = batches(reader, order)
    reader.asked.clear()
    rest = batches(reader, order, position)
    assert_same(rest, whole[stop:])
    assert len(reader.asked) == 8 * (30 - stop)
    assert [f"img{row}" for row in reader.asked] == [name for batch in rest for name in batch["ids"]]


def test_batches_are_read_when_they_are_asked_for(reader):
    loader = iter(make_loader(reader, DRAW, Order(203, 8, num_epochs=800), START, 0, pin_memory=False))
    for count in (1, 2):
        next(loader)
        assert len(reader.asked) == 8 * count


def test_an_unreadable_image_is_reported_with_its_batch(encode, make_picture, write_shard, tmp_path):
    images = [encode(make_picture(number)) for number in range(12)]
    images[5] = images[5][:200]
    path = write_shard(tmp_path / "own.parquet", images, [str(number) for number in range(12)])
    reader = ImageReader(open_shards([str(path)], str(tmp_path / "cache")))
    found = batches(reader, Order(12, 4, num_epochs=1), workers=1)
    rejected = [(batch["ids"], name) for batch in found for name, _ in batch["rejected"]]
    assert len(rejected) == 1
    assert rejected[0][1] == "5" and "6" in rejected[0][0] and "5" not in rejected[0][0]
    strict = ImageReader(open_shards([str(path)], str(tmp_path / "cache")), max_bad_share=0)
    with pytest.raises(RetFoundError, match="1 images in a row are unreadable, from 5 on"):
        batches(strict, Order(12, 4, num_epochs=1))
