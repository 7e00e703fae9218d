"""Whole runs from a stream: resumed as if never killed, each process with its own shards, nothing left behind."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from two_processes import pretrain_in_two

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.checkpoints import read_state
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.pretrain import run as pretrain

STEPS = 30
ROWS = (40, 25, 3, 31, 40, 22, 39)  # of the shards
# 12 steps an epoch.
SETTINGS = {
    "train_data": ["org/retinas"], "streaming": True, "mixed_shards": 2, "max_steps": STEPS, "cache_dir": None,
    "per_device_train_batch_size": 16, "logging_steps": 4, "save_steps": 5, "save_total_limit": 99,
}  # fmt: skip


@pytest.fixture
def start(tiny_arguments, tmp_path):
    return lambda name, **options: pretrain(tiny_arguments(tmp_path / name, **{**SETTINGS, **options}))


def state_of(folder: Path) -> dict:
    return read_state(folder / f"checkpoint-{STEPS}")


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stopped_goes_on_as_if_nothing_had_happened(start, on_hub, fetched, monkeypatch, workers):
    whole = start("whole", dataloader_num_workers=0)
    step = Loop.step

    def step_or_die(self, batches):
        if self.position.step == 17:
            raise KeyboardInterrupt
        step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "step", step_or_die)
        start("stopped", dataloader_num_workers=workers)
    fetched()
    stopped = start("stopped", dataloader_num_workers=workers, resume_from_checkpoint="latest")
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
    assert state_of(whole) == state_of(stopped)
    # 15 of 30 steps are left, which are one epoch and a quarter of 7 shards; and one is looked at first.
    assert sum(fetched().values()) <= 7 + 5 + 1
    optimisers = [torch.load(f / f"checkpoint-{STEPS}" / "optimizer.bin", weights_only=True) for f in (whole, stopped)]
    for number, moments in optimisers[0]["state"].items():
        assert all(torch.equal(value, optimisers[1]["state"][number][name]) for name, value in moments.items())
    assert not list(whole.glob(".stream*")) and not list(stopped.glob(".stream*"))


def test_a_stream_from_a_folder_and_from_the_hub_trains_the_same(start, on_hub, uneven):
    one, other = start("hub", max_steps=8), start("folder", max_steps=8, train_data=[str(uneven)])
    assert (one / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()


def test_connections_that_break_do_not_end_the_run(start, on_hub, break_off):
    undisturbed = start("undisturbed", max_steps=15)
    break_off([1, 2, 3, 4, 5, 6], after=10_000, times=5)
    disturbed = start("disturbed", max_steps=15, dataloader_num_workers=1)
    assert not any(cut.times for cut in on_hub.cuts)
    assert (undisturbed / "model.safetensors").read_bytes() == (disturbed / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_that_stays_gone_ends_the_run_in_one_line(start, break_off, monkeypatch, workers):
    step = Loop.step

    def step_and_cut(self, batches):
        step(self, batches)
        if self.position.step == 1:
            break_off([0, 1, 2, 3, 4, 5, 6], after=0, times=10_000)

    monkeypatch.setattr(Loop, "step", step_and_cut)
    with pytest.raises(RetFoundError, match=r"^shard org/retinas/data/.* cannot be fetched .* latest$"):
        start("run", dataloader_num_workers=workers)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"mixed_shards": 3}, "with --streaming, 1 processes and --mixed_shards 2, and now .* --mixed_shards 3"),
        ({"streaming": False, "train_data": None}, "fingerprint"),
    ],
)
def test_in_the_middle_of_an_epoch_another_order_is_refused(start, on_hub, uneven, options, said):
    folder = start("first", max_steps=5)
    if options.get("train_data", 0) is None:
        options = {**options, "train_data": [str(uneven)]}
    with pytest.raises(RetFoundError, match=said):
        start("second", max_steps=10, resume_from_checkpoint=str(folder / "checkpoint-5"), **options)


def test_a_run_goes_on_with_the_same_shards_from_another_folder(start, uneven, tmp_path):
    """As a job finds them that stages them anew at every start."""
    folders = [shutil.copytree(uneven, tmp_path / job / "shards") for job in ("job-1", "job-2")]
    whole = start("whole", train_data=[str(folders[0])], max_steps=8)
    shutil.rmtree(folders[0])
    shutil.copytree(whole / "checkpoint-5", tmp_path / "stopped" / "checkpoint-5")
    stopped = start("stopped", train_data=[str(folders[1])], max_steps=8, resume_from_checkpoint="latest")
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()


def test_a_run_goes_on_with_the_images_that_it_began_with_whatever_the_hub_has_now(start, on_hub, uneven, tmp_path):
    whole, repo = start("whole", max_steps=8), on_hub.repo("org/retinas", "dataset")
    revision = repo.at("main").oid
    repo.add_files({"README.md": (uneven / "README.md").read_text(encoding="utf-8") + "Retinas.\n"})
    repo.add_files({"data/train-00004.parquet": (uneven / "data" / "train-00000.parquet").read_bytes()})
    shutil.copytree(whole / "checkpoint-5", tmp_path / "stopped" / "checkpoint-5")
    stopped = start("stopped", max_steps=8, resume_from_checkpoint="latest")
    assert (whole / "model.safetensors").read_bytes() == (stopped / "model.safetensors").read_bytes()
    assert read_state(stopped / "checkpoint-8")["revisions"] == {"org/retinas": revision}


@pytest.mark.parametrize("source", ["hub", "folder"])
def test_other_images_are_refused(start, on_hub, uneven, tmp_path, source):
    """On the Hub where the history was squashed, so that the commit is gone."""
    staged = shutil.copytree(uneven, tmp_path / "shards")
    data = ["org/retinas"] if source == "hub" else [str(staged)]
    folder, repo = start("first", max_steps=5, train_data=data), on_hub.repo("org/retinas", "dataset")
    other = (uneven / "data" / "train-00000.parquet").read_bytes()
    repo.add_files({"data/train-00004.parquet": other})
    del repo.commits[:-1]
    (staged / "data" / "train-00004.parquet").write_bytes(other)
    with pytest.raises(RetFoundError, match="the shards are not the same: give the same --train_data"):
        start("second", train_data=data, resume_from_checkpoint=str(folder / "checkpoint-5"))


def test_at_the_end_of_an_epoch_another_order_may_begin(start, on_hub):
    folder = start("first", max_steps=12, save_steps=12)
    assert read_state(folder / "checkpoint-12")["position"] == {"step": 12, "epoch": 1, "offset": 0}
    checkpoint = str(folder / "checkpoint-12")
    assert start("second", max_steps=14, mixed_shards=3, resume_from_checkpoint=checkpoint) is not None


def test_each_process_reads_its_own_shards(on_hub, fetched, pretrain_words, tmp_path):
    """One epoch in two real processes: no image twice, and no shard in both but where the two meet."""
    options = {**SETTINGS, "streaming": "true", "per_device_train_batch_size": 10, "max_steps": 10, "save_steps": 0}
    words = pretrain_words(tmp_path / "two", **options)
    steps = pretrain_in_two(words, tmp_path, on_hub.env(tmp_path / "home"))
    ranks = [[name for step in rank for name in step] for rank in steps]
    assert len(ranks[0]) == len(ranks[1]) == 100
    assert len({*ranks[0], *ranks[1]}) == 200, "every image of the epoch, each once"
    ends = np.cumsum(ROWS)
    shards = [set(np.searchsorted(ends, [int(name[3:]) for name in rank], side="right").tolist()) for rank in ranks]
    assert len(shards[0] & shards[1]) <= 1, "no shard in common but the one at the cut"
    # Besides the one at the cut: both look at the first one, for the side of the images and a preview.
    assert sum(fetched().values()) <= 7 + 1 + 2
    assert not list((tmp_path / "two").glob(".stream*"))
