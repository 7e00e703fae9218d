"""Runs that share a --cache_dir have folders of their own in it."""

from pathlib import Path

import pytest
from accelerate import Accelerator

from retfound_hf.pretraining.data import open_training_images
from retfound_hf.pretraining.streaming import place_of


@pytest.fixture
def other(make_picture, encode, write_shard, tmp_path) -> Path:
    """Seven shards of 20 images, `other0` to `other139`."""
    image = encode(make_picture(0))
    for number in range(7):
        names = [f"other{20 * number + place}" for place in range(20)]
        write_shard(tmp_path / "others" / f"train-{number:05d}.parquet", [image] * 20, names)
    return tmp_path / "others"


@pytest.fixture
def open_table(tiny_arguments, tmp_path):
    """The streamed table of a run on `data` that writes to the folder `name`."""

    def make(name: str, data: Path):
        cache = str(tmp_path / "cache")
        _, data_args, args = tiny_arguments(tmp_path / name, train_data=[str(data)], streaming=True, cache_dir=cache)
        return open_training_images(data_args, args, Accelerator(cpu=True)).reader.table

    return make


def test_two_runs_at_once_read_their_own_images(open_table, uneven, other):
    first, second = open_table("first", uneven), open_table("second", other)
    assert first.folder.parent == second.folder.parent
    rows = [0, 45, 66, 70, 139]
    assert first[rows]["id"] == [f"img{row}" for row in rows]
    assert second[rows]["id"] == [f"other{row}" for row in rows]
    second.close()
    assert first.open_shards() and not second.folder.exists()
    assert first[[150, 199]]["id"] == ["img150", "img199"]


def test_two_runs_on_the_same_shards_do_not_remove_each_others(open_table, uneven):
    first, second = open_table("first", uneven), open_table("second", uneven)
    second[0]
    here = first.open_shards()
    second.close()
    assert here and first.open_shards() == here


@pytest.mark.parametrize("same", [True, False])
def test_what_a_killed_run_left_is_gone_when_it_starts_again(open_table, uneven, other, same):
    killed, elsewhere = open_table("run", uneven), open_table("elsewhere", uneven)
    (killed.folder / "6.arrow").write_bytes(b"half a shard")
    again = open_table("run", uneven if same else other)
    assert 6 not in again.open_shards() and again.folder.exists()
    assert {path.name for path in again.folder.parent.iterdir()} == {again.folder.name, elsewhere.folder.name}


def test_folders_of_processes_that_a_run_has_no_more_are_removed_and_those_of_others_stay(tmp_path):
    folders = [place_of(tmp_path, tmp_path / "run", "0123456789abcdef", process, 4) for process in range(4)]
    assert len(set(folders)) == 4
    for folder in folders:
        folder.mkdir()
    place_of(tmp_path, tmp_path / "run", "0123456789abcdef", 0, 2)
    assert [folder.exists() for folder in folders] == [False, True, False, False]
