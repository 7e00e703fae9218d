"""Which shards a stream has, and what is said when there are none."""

import pytest

from retfound_hf.pretraining.streaming.shards import list_shards
from retfound_hf.runs.errors import RetFoundError

ROWS = (40, 25, 3, 31, 40, 22, 39)


def test_shards_of_a_folder_and_of_the_hub_are_the_same(uneven, on_hub):
    local, remote = list_shards([str(uneven)]), list_shards(["org/retinas"])
    assert tuple(shard.rows for shard in local) == tuple(shard.rows for shard in remote) == ROWS
    assert [shard.path for shard in remote] == [f"data/train-{number:05d}.parquet" for number in range(7)]
    for one, other in zip(local, remote, strict=True):
        assert one.read(lambda path: path.read_bytes()) == other.read(lambda path: path.read_bytes())


def test_listing_reads_footers_alone(uneven, on_hub):
    list_shards(["org/retinas"])
    size = sum(path.stat().st_size for path in uneven.rglob("*.parquet"))
    assert size > 500_000
    assert not [request for request in on_hub.requests if request.startswith("HEAD") and "parquet" in request]


def test_a_run_stays_with_the_commit_it_found(on_hub):
    before = list_shards(["org/retinas"])
    on_hub.repo("org/retinas", "dataset").add_files({"data/train-00000.parquet": b"other"})
    assert before[0].revision != on_hub.repo("org/retinas", "dataset").at("main").oid
    assert before[0].read(lambda path: path.stat().st_size) > 10_000


def test_several_sources_follow_each_other_and_empty_shards_are_passed_over(uneven, write_shard, tmp_path):
    write_shard(tmp_path / "one.parquet", [b"a", b"b"], ["a", "b"])
    write_shard(tmp_path / "none" / "none.parquet", [], [])
    found = list_shards([str(tmp_path / "one.parquet"), str(tmp_path / "none"), str(uneven)])
    assert [shard.rows for shard in found] == [2, *ROWS]


@pytest.mark.parametrize(
    "source, reason",
    [
        ("org/absent", "org/absent is neither here nor a data set that the Hub gives"),
        ("org/texts", "org/texts has no train split of parquet files, as --streaming needs"),
        ("org/broken", "org/broken has a shard that cannot be read"),
        ("no_column", "has no column image; its columns are picture"),
        ("nothing", "holds no parquet shards; make them with prepare_images"),
        ("none", "holds no image; make shards with prepare_images"),
    ],
)
def test_one_line_where_there_is_no_shard(on_hub, tmp_path, write_shard, monkeypatch, source, reason):
    import pyarrow as pa
    import pyarrow.parquet as pq

    on_hub.create("org/texts", "dataset").add_files({"train.csv": b"a,b\n1,2\n"})
    on_hub.create("org/broken", "dataset").add_files({"data/train-00000.parquet": b"PAR1 and no more"})
    for name in ("no_column", "nothing", "none"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "no_column" / "train.parquet")
    write_shard(tmp_path / "none" / "train.parquet", [], [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RetFoundError, match=reason) as found:
        list_shards([source])
    assert "\n" not in str(found.value)


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
