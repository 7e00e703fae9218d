"""Two processes train as one does with the same global batch, and a run may change their number."""

import itertools
import json
from pathlib import Path

import pytest
from safetensors.torch import load_file
from two_processes import pretrain_in_two

from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.pretrain import run

NUM_IMAGES, GLOBAL_BATCH, STEPS = 203, 16, 30
STEPS_PER_EPOCH = NUM_IMAGES // GLOBAL_BATCH
SETTINGS = {
    "max_steps": STEPS, "learning_rate": 3e-3, "warmup_steps": 0.25, "logging_steps": 5, "save_steps": 7,
    "save_total_limit": 99,
}  # fmt: skip


@pytest.fixture(scope="module")
def seen(tiny_arguments):
    """Runs pretraining in this process, and returns the images of every step."""

    def go(folder: Path, **options) -> list[list[str]]:
        steps: list[list[str]] = []
        step = Loop.step

        def watched(self: Loop, batches) -> None:
            step(self, batches)
            steps.append(self.buffer.ids[-1])

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Loop, "step", watched)
            run(tiny_arguments(folder, **{**SETTINGS, "per_device_train_batch_size": GLOBAL_BATCH, **options}))
        return steps

    return go


@pytest.fixture(scope="module")
def one(seen, tmp_path_factory) -> tuple[Path, list[list[str]]]:
    folder = tmp_path_factory.mktemp("runs") / "one"
    return folder, seen(folder)


@pytest.fixture(scope="module")
def two(pretrain_words, tmp_path_factory):
    """Runs pretraining in two processes: the folder, and per process the images of every step."""

    def go(**options) -> tuple[Path, list[list[list[str]]]]:
        folder = tmp_path_factory.mktemp("runs")
        return folder / "two", pretrain_in_two(pretrain_words(folder / "two", **{**SETTINGS, **options}), folder)

    return go


@pytest.fixture(scope="module")
def accumulated(two):
    """Two processes that each take four images at a time, twice a step."""
    return two(per_device_train_batch_size=4, gradient_accumulation_steps=2)


def difference(folder: Path, other: Path) -> float:
    """The largest one between the weights of two folders.

    Left out are the biases of attention keys: softmax does not see them, their gradient is rounding, and Adam makes
    steps of a usual size of it.
    """
    first, second = (load_file(path / "model.safetensors") for path in (folder, other))
    assert first.keys() == second.keys()
    seen = [name for name in first if not name.endswith("key.bias")]
    return max((first[name] - second[name]).abs().max().item() for name in seen)


def assert_equal_runs(folder: Path, other: Path) -> None:
    assert difference(folder, other) < 1e-6
    logs = [
        [json.loads(line) for line in (path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
        for path in (folder, other)
    ]
    assert len(logs[0]) == len(logs[1]) == STEPS // SETTINGS["logging_steps"]
    for line, same in zip(*logs, strict=True):
        assert [line[name] for name in ("step", "epoch", "learning_rate")] == [
            same[name] for name in ("step", "epoch", "learning_rate")
        ]
        assert line["loss"] == pytest.approx(same["loss"], abs=1e-6)
        assert line["grad_norm"] == pytest.approx(same["grad_norm"], rel=1e-5)


def assert_same_images(ranks: list[list[list[str]]], steps: list[list[str]]) -> None:
    """Every step has the images that one process gives it, no two processes share one, none comes twice an epoch."""
    assert [len(rank) for rank in ranks] == [STEPS, STEPS]
    joined = [first + second for first, second in zip(*ranks, strict=True)]
    for found, expected in zip(joined, steps, strict=True):
        assert sorted(found) == sorted(expected)
    for first in range(0, STEPS, STEPS_PER_EPOCH):
        epoch = [name for step in joined[first : first + STEPS_PER_EPOCH] for name in step]
        assert len(set(epoch)) == len(epoch)
    assert len({name for step in joined for name in step}) > STEPS_PER_EPOCH * GLOBAL_BATCH


def test_two_processes_with_accumulation_equal_one(accumulated, one):
    assert_equal_runs(accumulated[0], one[0])
    assert_same_images(accumulated[1], one[1])
    moved = difference(one[0] / "checkpoint-7", one[0])
    assert moved > 1e-2, "weights that hardly move would agree in any case"


@pytest.mark.slow
def test_two_processes_equal_one(two, one):
    folder, ranks = two(per_device_train_batch_size=8)
    assert_equal_runs(folder, one[0])
    assert_same_images(ranks, one[1])


def test_one_process_goes_on_where_two_stopped(seen, accumulated, one, tmp_path):
    checkpoint = accumulated[0] / "checkpoint-14"
    options = {"per_device_train_batch_size": 8, "gradient_accumulation_steps": 2}
    steps = seen(tmp_path / "run", resume_from_checkpoint=str(checkpoint), **options)
    assert [sorted(step) for step in steps] == [sorted(step) for step in one[1][14:]]
    assert difference(tmp_path / "run", one[0]) < 1e-6


@pytest.mark.parametrize("stopped, batch", [(7, 24), (11, 40)])
def test_another_batch_finishes_the_epoch_with_the_images_that_are_left(seen, tmp_path, stopped, batch):
    """In epochs; with 40 a step, the 27 images left after step 11 are too few, and the next epoch begins."""
    folder, epochs = tmp_path / "run", {"max_steps": -1, "num_train_epochs": 2, "logging_steps": 1}
    first = seen(folder, save_steps=stopped, **epochs)
    checkpoint = folder / f"checkpoint-{stopped}"
    rest = seen(folder, resume_from_checkpoint=str(checkpoint), per_device_train_batch_size=batch, **epochs)
    used = [name for step in first[:stopped] for name in step]
    steps_left = (NUM_IMAGES - len(used)) // batch
    assert len(rest) == steps_left + NUM_IMAGES // batch
    used += [name for step in rest[:steps_left] for name in step]
    assert len(set(used)) == len(used) > NUM_IMAGES - batch
    last_epoch = [name for step in rest[steps_left:] for name in step]
    assert len(set(last_epoch)) == len(last_epoch) == NUM_IMAGES // batch * batch
    rates = [json.loads(line)["learning_rate"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    falling = rates[6:]
    assert len(rates) == stopped + len(rest)
    assert max(before - after for before, after in itertools.pairwise(falling)) < 0.25 * rates[6]
    assert rates[-1] < 0.05 * max(rates)
