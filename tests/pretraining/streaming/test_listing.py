"""Which shards a stream has, what tells them from others, and what is said when there are none."""

import shutil

import pyarrow.parquet as pq
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.streaming import list_shards, stream_fingerprint

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


def test_the_fingerprint_tells_other_shards_and_not_where_they_lie(uneven, tmp_path):
    shards = list_shards([str(uneven)])
    staged = shutil.copytree(uneven, tmp_path / "job-17" / "shards")
    assert (
        stream_fingerprint(list_shards([str(staged)])) == stream_fingerprint(shards) != stream_fingerprint(shards[1:])
    )
    assert stream_fingerprint(shards) != stream_fingerprint(shards[::-1])
    (staged / "data" / "train-00000.parquet").rename(staged / "data" / "train-00009.parquet")
    assert stream_fingerprint(list_shards([str(staged)])) != stream_fingerprint(shards)


def test_the_fingerprint_tells_other_images_of_the_same_number(uneven, write_shard, encode, make_picture, tmp_path):
    staged = shutil.copytree(uneven, tmp_path / "shards")
    path = staged / "data" / "train-00002.parquet"
    ids = pq.read_table(path)["id"].to_pylist()
    write_shard(path, [encode(make_picture(900 + number)) for number in range(len(ids))], ids)
    shards, others = list_shards([str(uneven)]), list_shards([str(staged)])
    assert [shard.rows for shard in others] == [shard.rows for shard in shards]
    assert stream_fingerprint(others) != stream_fingerprint(shards)


def test_the_stream_fingerprint_a_data_set_passes_over_its_card(uneven, on_hub):
    before, repo = list_shards(["org/retinas"]), on_hub.repo("org/retinas", "dataset")
    repo.add_files({"README.md": (uneven / "README.md").read_text(encoding="utf-8") + "Retinas.\n"})
    after = list_shards(["org/retinas"])
    assert before[0].revision != after[0].revision == repo.at("main").oid
    assert stream_fingerprint(before) == stream_fingerprint(after)
    repo.add_files({"data/train-00004.parquet": (uneven / "data" / "train-00000.parquet").read_bytes()})
    swapped = list_shards(["org/retinas"])
    assert [shard.rows for shard in swapped] == [shard.rows for shard in before], "it has as many images"
    assert stream_fingerprint(swapped) != stream_fingerprint(before)
    assert list_shards(["org/retinas"], {"org/retinas": before[0].revision}) == before


def test_of_a_commit_that_was_squashed_the_newest_is_taken(on_hub):
    found = list_shards(["org/retinas"], {"org/retinas": "0" * 40})
    assert found == list_shards(["org/retinas"])
