"""A shard is brought here whole, from the commit that was found, however often the connection breaks."""

import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.streaming import list_shards


def test_a_run_stays_with_the_commit_it_found(on_hub):
    before = list_shards(["org/retinas"])
    on_hub.repo("org/retinas", "dataset").add_files({"data/train-00000.parquet": b"other"})
    assert before[0].revision != on_hub.repo("org/retinas", "dataset").at("main").oid
    assert before[0].read(lambda path: path.stat().st_size) > 10_000


@pytest.mark.parametrize("times", [2, 8])
def test_a_download_that_is_cut_off_goes_on(on_hub, uneven, break_off, times):
    """Twice the client goes on by itself; eight times in a row it gives up, and is asked again."""
    shard = list_shards(["org/retinas"])[0]
    break_off([0], after=20_000 if times == 2 else 0, times=times)
    original = (uneven / shard.path).read_bytes()
    assert shard.read(lambda path: path.read_bytes()) == original


def test_a_network_that_is_gone_is_said_in_one_line(on_hub, break_off):
    shard = list_shards(["org/retinas"])[0]
    break_off([0], after=0, times=100)
    with pytest.raises(RetFoundError, match=r"shard org/retinas/data/train-00000.parquet cannot be fetched .*latest"):
        shard.read(lambda path: path)


def test_access_that_is_lost_is_not_tried_again(on_hub):
    shard = list_shards(["org/retinas"])[0]
    del on_hub.store.repos["dataset", "org/retinas"]
    before = len(on_hub.requests)
    with pytest.raises(RetFoundError, match="cannot be fetched"):
        shard.read(lambda path: path)
    assert len([request for request in on_hub.requests[before:] if "resolve" in request]) == 1
