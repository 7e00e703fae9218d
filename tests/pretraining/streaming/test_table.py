"""A streamed table reads as the table on disk does, and holds no more than it is told."""

import threading

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.pretraining.data import open_shards
from retfound_hf.pretraining.streaming import StreamedTable, StreamShard, list_shards


@pytest.fixture
def table(uneven, tmp_path) -> StreamedTable:
    return StreamedTable(list_shards([str(uneven)]), tmp_path / "open", limit=3)


def test_rows_are_those_of_the_table_on_disk(table, uneven, cache_dir):
    stored = open_shards([str(uneven)], str(cache_dir))
    assert len(table) == len(stored) == 200
    rows = [199, 0, 39, 40, 66, 67, 68, 150, 3, 3]
    found, expected = table[rows], stored[rows]
    assert found["id"] == expected["id"]
    assert [image["bytes"] for image in found["image"]] == [image["bytes"] for image in expected["image"]]
    assert table[66]["id"] == stored[66]["id"] == "img66"


@pytest.mark.parametrize("row_group", [7, 300, 1000])
def test_rows_are_found_whatever_the_row_groups(tmp_path, encode, make_picture, row_group):
    image = encode(make_picture(0))
    rows = [{"bytes": image, "path": None}] * 700
    columns = {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), "id": range(700)}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=row_group)
    table = StreamedTable(list_shards([str(tmp_path)]), tmp_path / "open", limit=1)
    assert table[list(range(700))]["id"] == [str(number) for number in range(700)]


def test_rows_without_ids_are_named_by_shard_and_place(tmp_path, encode, make_picture, write_shard):
    path = write_shard(tmp_path / "train.parquet", [encode(make_picture(number)) for number in range(3)])
    table = StreamedTable(list_shards([str(path)]), tmp_path / "open", limit=1)
    assert table[2]["id"] == f"{path}/2"


def test_a_shard_is_fetched_when_it_is_needed_and_again_after_it_was_removed(table):
    assert table.open_shards() == set()
    first = table[0]
    assert table.open_shards() == {0}
    table.remove(0)
    assert table.open_shards() == set() and table[1]["id"] == "img1"  # still mapped
    table[[45, 66, 70]]
    assert table.open_shards() == {1, 2, 3} and len(table._mapped) == 3
    assert table[0] == first and 0 in table.open_shards()


def test_who_asks_at_once_waits_for_the_first(on_hub, fetched, tmp_path):
    table = StreamedTable(list_shards(["org/retinas"]), tmp_path / "open", limit=3)
    threads = [threading.Thread(target=table.fetch, args=(4,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(fetched().values()) == {1} and table.open_shards() == {4}


def test_closing_removes_all_and_what_is_on_its_way(table, monkeypatch):
    table[[0, 100]]
    started, go_on = threading.Event(), threading.Event()
    read = StreamShard.read

    def slow(shard, *arguments):
        started.set()
        return go_on.wait(20) and read(shard, *arguments)

    monkeypatch.setattr(StreamShard, "read", slow)

    def fetch() -> None:
        with pytest.raises(RetFoundError):
            table.fetch(2)

    thread = threading.Thread(target=fetch)
    thread.start()
    started.wait(20)
    table.close()
    assert not table.folder.exists()
    go_on.set()
    thread.join()
    with pytest.raises(RetFoundError, match="the stream of shards is closed"):
        table[1]
    assert not table.folder.exists()


def test_a_folder_that_datasets_loads_is_one_that_streams(uneven, table):
    loaded = datasets.load_dataset(str(uneven), split="train", streaming=True)
    assert [row["id"] for row in loaded.select_columns("id")] == table[list(range(200))]["id"]
