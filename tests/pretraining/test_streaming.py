"""Streaming: order, shards, table, prefetch, and whole runs: exact, resumable, nothing left behind."""

import hashlib
import itertools
import shutil
import threading
import time
from collections import Counter
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from accelerate import Accelerator
from small_runs import assert_same_checkpoints, encoded, picture, write_parquet, write_shards
from two_processes import pretrain_in_two

from retfound_hf.errors import BadArgumentError, BadDataError, HubAccessError, RetFoundError
from retfound_hf.pretraining import stream_shards, streaming
from retfound_hf.pretraining.checkpoints import read_state
from retfound_hf.pretraining.data import Order, Position, open_shards, open_training_images
from retfound_hf.pretraining.loop import Loop
from retfound_hf.pretraining.stream_shards import StreamShard, list_shards, stream_fingerprint
from retfound_hf.pretraining.streaming import PrefetchWindow, StreamedOrder, StreamedTable

ROWS = (40, 25, 3, 31, 40, 22, 39)
TOTAL, ENDS = sum(ROWS), np.cumsum(ROWS)
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"
SHAPES = list(itertools.product((1, 3, 8), (1, 2), (1, 2, 3)))
START = Position()


@pytest.fixture(autouse=True)
def no_thread_outlives_its_run():
    """One that did would go on fetching, in the next test too."""
    yield
    for thread in threading.enumerate():
        if thread.name == streaming.THREAD_NAME:
            thread.join(timeout=20)
            assert not thread.is_alive(), "a thread still fetches shards for a run that ended"


@pytest.fixture(scope="session")
def uneven(tmp_path_factory) -> Path:
    """200 images, `img0` to `img199`, in seven shards of uneven size, laid out as `prepare_images` does."""
    folder = tmp_path_factory.mktemp("uneven")
    write_shards(folder / "data", ROWS)
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def on_hub(hub_here, uneven, monkeypatch):
    """The loopback Hub, with the same shards as the data set `org/retinas`; tries follow each other at once."""
    files = {str(path.relative_to(uneven)): path.read_bytes() for path in uneven.rglob("*") if path.is_file()}
    hub_here.create("org/retinas", "dataset").add_files(files)
    monkeypatch.setattr(stream_shards, "RETRY_WAITS", (0, 0))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_here.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    return hub_here


@pytest.fixture
def break_off(on_hub, uneven, monkeypatch):
    """Cuts downloads of the shards of some numbers: `break_off([1, 2], after=1000, times=3)`."""
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)

    def cut(numbers: list[int], after: int, times: int) -> None:
        paths = [uneven / "data" / f"train-{number:05d}.parquet" for number in numbers]
        digests = "|".join(hashlib.sha256(path.read_bytes()).hexdigest() for path in paths)
        on_hub.cut("GET", f"_cdn/({digests})", after=after, times=times)

    return cut


@pytest.fixture
def fetched(on_hub):
    """Count of requests for each shard as a whole since the last call; footers are read by ranges, uncounted."""
    seen = [0]

    def count() -> dict[str, int]:
        new, seen[0] = on_hub.requests[seen[0] :], len(on_hub.requests)
        return Counter(request for request in new if request.startswith("HEAD") and request.endswith(".parquet"))

    return count


def orders(batch: int, accumulation: int, processes: int, mixed: int = 2, **options) -> list[StreamedOrder]:
    images = TOTAL // processes * processes
    return [
        StreamedOrder(images, batch, accumulation, processes, process, shard_rows=ROWS, mixed=mixed, **options)
        for process in range(processes)
    ]


def rows_of(order: Order, position: Position = START) -> list[int]:
    return [row for batch in order.batches(position) for row in batch.rows]


def shards_of(rows: list[int]) -> list[int]:
    return np.searchsorted(ENDS, rows, side="right").tolist()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_no_image_twice_in_an_epoch_and_at_most_an_incomplete_batch_left_out(shape):
    """Indices in the global batch are those of the order on disk."""
    parts = orders(*shape, seed=1, num_epochs=1)
    seen = [row for part in parts for row in rows_of(part)]
    assert len(seen) == len(set(seen)) == parts[0].steps_per_epoch * parts[0].global_batch
    assert set(seen) <= set(range(TOTAL)) and TOTAL - len(seen) < parts[0].global_batch + parts[0].num_processes
    for part in parts:
        stored = Order(part.num_images, *shape, part.process, num_epochs=1)
        batches = [[(batch.step, batch.start) for batch in order.batches(START)] for order in (part, stored)]
        assert batches[0] == batches[1]


def test_every_image_has_its_turn_and_epochs_and_seeds_differ():
    def epoch(number: int, seed: int = 0) -> tuple[int, ...]:
        part = orders(8, 1, 1, seed=seed, num_epochs=number + 1)[0]
        return tuple(rows_of(part, Position(epoch=number)))

    epochs = [epoch(number) for number in range(30)]
    assert {row for rows in epochs for row in rows} == set(range(TOTAL))
    assert len({*epochs, epoch(0, seed=1)}) == 31


@pytest.mark.parametrize("mixed", [1, 2, 4])
def test_few_shards_are_open_at_a_time_and_none_comes_again(mixed):
    shards = shards_of(rows_of(orders(1, 1, 1, mixed=mixed, num_epochs=1)[0]))
    spans = [(shards.index(shard), len(shards) - 1 - shards[::-1].index(shard)) for shard in set(shards)]
    assert max(sum(first <= index <= last for first, last in spans) for index in range(len(shards))) == mixed
    # Images of shards that are open together come mixed: the larger ones are left and come again.
    changes = sum(one != other for one, other in itertools.pairwise(shards))
    assert (changes == len(ROWS) - 1) == (mixed == 1)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_no_more_shards_than_there_are_cuts(processes):
    for seed in range(20):
        own = [set(shards_of(rows_of(part))) for part in orders(1, 1, processes, seed=seed, num_epochs=1)]
        assert sum(map(len, own)) - len(set.union(*own)) <= processes - 1


@pytest.mark.parametrize("cut", [(8, 1, 1), (3, 2, 2)], ids=str)
def test_resumed_anywhere_the_rest_is_the_rest(cut):
    parts, position = orders(*cut, seed=4, num_epochs=2.5), START
    whole = [list(part.batches(START)) for part in parts]
    while not parts[0].is_finished(position):
        for part, batches in zip(parts, whole, strict=True):
            assert list(part.batches(position)) == batches[position.step * cut[1] :]
        position = parts[0].after(position)


def test_another_batch_goes_on_with_unseen_images():
    first, second = orders(8, 1, 2, num_epochs=1), orders(5, 2, 2, num_epochs=1)
    position = first[0].after(first[0].after(START))
    seen = {row for part in first for batch in part.batches(START) if batch.step < 2 for row in batch.rows}
    rest = [row for part in second for row in rows_of(part, position)]
    assert not seen & set(rest) and len(rest) == len(set(rest))


def test_listing_reads_footers_alone_and_finds_the_same_on_the_hub(uneven, on_hub, tmp_path):
    local, remote = list_shards([str(uneven)]), list_shards(["org/retinas"])
    assert not [request for request in on_hub.requests if request.startswith("HEAD") and "parquet" in request]
    assert tuple(shard.rows for shard in local) == tuple(shard.rows for shard in remote) == ROWS
    for one, other in zip(local, remote, strict=True):
        assert one.read(lambda path: path.read_bytes()) == other.read(lambda path: path.read_bytes())
    write_parquet(tmp_path / "one.parquet", [b"a", b"b"], ["a", "b"])
    write_parquet(tmp_path / "none" / "none.parquet", [], [])
    found = list_shards([str(tmp_path / "one.parquet"), str(tmp_path / "none"), str(uneven)])
    assert [shard.rows for shard in found] == [2, *ROWS], "sources follow each other without empty shards"


@pytest.mark.parametrize("source", ["org/absent", "org/texts", "org/broken", "no_column", "nothing", "none"])
def test_sources_without_shards_are_named(on_hub, tmp_path, monkeypatch, source):
    on_hub.create("org/texts", "dataset").add_files({"train.csv": b"a,b\n1,2\n"})
    on_hub.create("org/broken", "dataset").add_files({"data/train-00000.parquet": b"PAR1 and no more"})
    for name in ("no_column", "nothing", "none"):
        (tmp_path / name).mkdir()
    pq.write_table(pa.table({"picture": [1]}), tmp_path / "no_column" / "train.parquet")
    write_parquet(tmp_path / "none" / "train.parquet", [], [])
    monkeypatch.chdir(tmp_path)
    with pytest.raises((BadDataError, HubAccessError)) as error:
        list_shards([source])
    assert source in (getattr(error.value, "source", ""), getattr(error.value, "repo_id", ""))
    assert "\n" not in str(error.value)


def test_the_fingerprint_tells_other_images_and_not_where_they_lie(uneven, on_hub, tmp_path):
    shards = list_shards([str(uneven)])
    staged = shutil.copytree(uneven, tmp_path / "job-17" / "shards")
    same = stream_fingerprint(list_shards([str(staged)]))
    assert same == stream_fingerprint(shards)
    renamed, changed = (shutil.copytree(uneven, tmp_path / name) / "data" for name in ("renamed", "changed"))
    (renamed / "train-00000.parquet").rename(renamed / "train-00009.parquet")
    ids = pq.read_table(changed / "train-00002.parquet")["id"].to_pylist()
    write_parquet(changed / "train-00002.parquet", [encoded(picture(900 + number)) for number in range(3)], ids)
    others = [shards[1:], shards[::-1], list_shards([str(renamed)]), list_shards([str(changed)])]
    assert len({same, *map(stream_fingerprint, others)}) == 5
    before, repo = list_shards(["org/retinas"]), on_hub.repo("org/retinas", "dataset")
    repo.add_files({"README.md": CARD + "Retinas.\n"})
    after = list_shards(["org/retinas"])
    assert before[0].revision != after[0].revision == repo.at("main").oid
    assert stream_fingerprint(before) == stream_fingerprint(after)


def test_a_run_stays_with_the_commit_it_found(on_hub):
    before = list_shards(["org/retinas"])
    on_hub.repo("org/retinas", "dataset").add_files({"data/train-00000.parquet": b"other"})
    assert before[0].read(lambda path: path.stat().st_size) > 10_000


@pytest.mark.parametrize("times", [2, 8])
def test_a_download_that_is_cut_off_goes_on(on_hub, uneven, break_off, times):
    """Twice the client goes on by itself; eight times in a row it gives up, and is asked again."""
    shard = list_shards(["org/retinas"])[0]
    break_off([0], after=20_000 if times == 2 else 0, times=times)
    assert shard.read(lambda path: path.read_bytes()) == (uneven / shard.path).read_bytes()


def test_access_that_is_lost_is_not_tried_again(on_hub):
    shard = list_shards(["org/retinas"])[0]
    del on_hub.store.repos["dataset", "org/retinas"]
    before = len(on_hub.requests)
    with pytest.raises(HubAccessError) as error:
        shard.read(lambda path: path)
    assert error.value.repo_id == "org/retinas"
    assert len([request for request in on_hub.requests[before:] if "resolve" in request]) == 1


@pytest.fixture
def table(uneven, tmp_path) -> StreamedTable:
    return StreamedTable(list_shards([str(uneven)]), tmp_path / "open", limit=3)


def test_rows_are_those_of_the_table_on_disk(table, uneven, cache_dir):
    stored = open_shards([str(uneven)], str(cache_dir))
    loaded = datasets.load_dataset(str(uneven), split="train", streaming=True)
    assert [row["id"] for row in loaded.select_columns("id")] == table[list(range(TOTAL))]["id"]
    assert len(table) == len(stored) == TOTAL
    rows = [199, 0, 39, 40, 66, 67, 68, 150, 3, 3]
    found, expected = table[rows], stored[rows]
    assert found["id"] == expected["id"]
    assert [image["bytes"] for image in found["image"]] == [image["bytes"] for image in expected["image"]]
    assert table[66]["id"] == stored[66]["id"] == "img66"


@pytest.mark.parametrize("row_group", [7, 1000])
def test_rows_are_found_whatever_the_row_groups(tmp_path, row_group):
    rows = [{"bytes": encoded(picture(0)), "path": None}] * 700
    columns = {"image": pa.array(rows, pa.struct([("bytes", pa.binary()), ("path", pa.string())])), "id": range(700)}
    pq.write_table(pa.table(columns), tmp_path / "train.parquet", row_group_size=row_group)
    table = StreamedTable(list_shards([str(tmp_path)]), tmp_path / "open", limit=1)
    assert table[list(range(700))]["id"] == [str(number) for number in range(700)]
    path = write_parquet(tmp_path / "bare.parquet", [encoded(picture(number)) for number in range(3)])
    assert StreamedTable(list_shards([str(path)]), tmp_path / "bare", limit=1)[2]["id"] == f"{path}/2"


def test_a_shard_is_fetched_when_it_is_needed_and_again_after_it_was_removed(table):
    assert table.open_shards() == set()
    first = table[0]
    assert table.open_shards() == {0}
    table.remove(0)
    assert table.open_shards() == set() and table[1]["id"] == "img1"  # still mapped
    table[[45, 66, 70]]
    assert table.open_shards() == {1, 2, 3} and len(table._mapped) == 3
    assert table[0] == first and 0 in table.open_shards()


def test_threads_that_ask_at_once_wait_for_the_first(on_hub, fetched, tmp_path):
    table = StreamedTable(list_shards(["org/retinas"]), tmp_path / "open", limit=3)
    threads = [threading.Thread(target=table.fetch, args=(4,)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(fetched().values()) == {1} and table.open_shards() == {4}


def test_closing_removes_all_and_what_is_on_its_way(table, monkeypatch):
    table[[0, 100]]
    started, go_on, failures = threading.Event(), threading.Event(), []
    read = StreamShard.read

    def slow(shard, *arguments):
        started.set()
        return go_on.wait(20) and read(shard, *arguments)

    def fetch() -> None:
        try:
            table.fetch(2)
        except RetFoundError as error:
            failures.append(error)

    monkeypatch.setattr(StreamShard, "read", slow)
    thread = threading.Thread(target=fetch)
    thread.start()
    started.wait(20)
    table.close()
    assert not table.folder.exists()
    go_on.set()
    thread.join()
    with pytest.raises(RetFoundError):
        table[1]
    assert len(failures) == 1 and not table.folder.exists()


class Watched(StreamedTable):
    """Notes what was fetched by the thread and what by the reader, and how many shards were open at once.

    The thread stands still before its fetch number `hold_at`, until `go_on` is set.
    """

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.early, self.late = [], []
        self.most = self.asked = 0
        self.hold_at, self.go_on = -1, threading.Event()

    def fetch(self, number: int):
        if threading.current_thread() is not threading.main_thread():
            self.asked += 1
            if self.asked == self.hold_at:
                assert self.go_on.wait(20)
        path = super().fetch(number)
        self.most = max(self.most, len(self.open_shards()))
        return path


@pytest.fixture
def made(uneven, tmp_path, monkeypatch):
    def make(mixed: int, batch: int = 4, epochs: int = 3) -> tuple[Watched, StreamedOrder]:
        table, read = Watched(list_shards([str(uneven)]), tmp_path / "open", limit=2 * mixed + 1), StreamShard.read

        def noted(shard: StreamShard, *arguments):
            reads = threading.current_thread() is threading.main_thread()
            (table.late if reads else table.early).append(shard.path)
            return read(shard, *arguments)

        monkeypatch.setattr(StreamShard, "read", noted)
        return table, orders(batch, 1, 1, mixed=mixed, num_epochs=epochs)[0]

    return make


def until(condition) -> None:
    for _ in range(1000):
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError("not within ten seconds")


@pytest.mark.parametrize("mixed", [1, 2])
@pytest.mark.parametrize("in_flight", [1, 8])
def test_the_same_batches_whose_shards_were_fetched_before(made, mixed, in_flight):
    table, order = made(mixed)
    found = []
    for batch in table.prefetch(order, START, in_flight):
        needed = table.shards_of(batch.rows)
        until(lambda needed=needed: needed <= table.open_shards())
        found.append((batch, table[list(batch.rows)]["id"]))
    assert [batch for batch, _ in found] == list(order.batches(START))
    assert all(ids == [f"img{row}" for row in batch.rows] for batch, ids in found)
    assert table.late == [] and table.most <= table.limit
    assert len(table.early) <= 3 * len(ROWS), "a shard is fetched once an epoch at most"


def test_the_thread_goes_no_further_than_the_limit_and_ends_with_its_reader(made):
    table, order = made(1)
    batches = table.prefetch(order, START, in_flight=1)
    next(batches)
    until(lambda: len(table.open_shards()) == table.limit)
    time.sleep(0.2)
    batches.close()
    time.sleep(0.1)
    assert len(table.early) == table.limit


def test_a_batch_larger_than_many_shards_is_read_all_the_same(made):
    table, order = made(1, batch=100)
    read = [table[list(batch.rows)]["id"] for batch in table.prefetch(order, START, 1)]
    assert sorted(read[0] + read[1]) == sorted(f"img{row}" for row in range(TOTAL))


def test_a_reader_that_is_faster_than_the_thread_does_not_fill_the_disk(made):
    table, order = made(1)
    for batch in table.prefetch(order, START, in_flight=1):
        table[list(batch.rows)]
        # One that the reader fetched while the thread was elsewhere.
        until(lambda: len(table.open_shards()) <= table.limit + 1)
    assert len(table.early) + len(table.late) <= 2 * 3 * len(ROWS)


@pytest.mark.parametrize("hold_at, until_batch", [(1, 14), (3, 40), (4, 45)])
def test_a_thread_that_was_held_up_removes_nothing_that_is_read(made, hold_at, until_batch):
    """It stands still while the reader goes on by itself, through more shards than the limit."""
    table, order = made(1, epochs=1)
    table.hold_at = hold_at
    read = []
    for number, batch in enumerate(table.prefetch(order, START, in_flight=1)):
        if number == until_batch:
            table._mapped.clear()  # what was read from here on is read from open shards
            asked = table.asked
            table.go_on.set()
            until(lambda asked=asked: table.asked > asked or len(table.open_shards()) <= table.limit)
            time.sleep(0.1)
            assert table.shards_of(batch.rows) <= table.open_shards()
        read += table[list(batch.rows)]["id"]
    assert sorted(read) == sorted(f"img{row}" for row in range(TOTAL))
    assert set(Counter(table.early + table.late).values()) == {1}, "no shard is fetched again in its epoch"


@pytest.mark.parametrize("how", ["table", "iterator"])
def test_the_thread_fetches_nothing_after_the_end(made, how):
    """A run that failed keeps its iterator alive, in the error's traceback; closing the table ends the thread too."""
    table, order = made(1)
    table.hold_at = 2
    batches = table.prefetch(order, START, in_flight=1)
    next(batches)
    until(lambda: table.asked == 2)
    (thread,) = [each for each in threading.enumerate() if each.name == streaming.THREAD_NAME]
    (table if how == "table" else batches).close()
    table.go_on.set()
    thread.join(timeout=5)
    assert not thread.is_alive()
    assert table.asked == 2 and table.folder.exists() == (how == "iterator")


def test_the_window_holds_what_is_read_and_what_fits_in_the_order_in_which_it_comes():
    batches = [{5}, {5, 2}, {2}, {7, 8}, {7}, {1}, {5}]
    window = PrefetchWindow(iter(batches), limit=3)
    assert window.shards(oldest=-1, newest=0) == [5, 2], "7 and 8 do not fit"
    assert window.shards(1, 2) == [5, 2]
    assert window.shards(2, 3) == [2, 7, 8]
    assert window.shards(3, 4) == [7, 8, 1], "5 comes again, and does not fit yet"
    assert window.shards(4, 5) == [7, 1, 5]
    assert window.shards(7, 7) == []
    assert PrefetchWindow(iter(batches), limit=3).shards(5, 6) == [1, 5], "what the reader is done with is passed over"
    many_in_flight = PrefetchWindow(iter(batches), limit=3)
    assert many_in_flight.shards(0, 5) == [5, 2, 7, 8], "all that may still be read, whatever the limit"


@pytest.fixture
def open_table(tiny_arguments, tmp_path):
    """The streamed table of a run that writes to the folder `name`; all share a cache."""

    def make(name: str, data: Path) -> StreamedTable:
        cache = str(tmp_path / "cache")
        given = tiny_arguments(tmp_path / name, train_data=[str(data)], streaming=True, cache_dir=cache)
        return open_training_images(given.data, given.training, Accelerator(cpu=True)).reader.table

    return make


def test_runs_that_share_a_cache_have_folders_of_their_own(open_table, uneven, tmp_path):
    """The remains of a killed attempt are removed, also those of processes that the run no longer has."""
    image = encoded(picture(0))
    write_parquet(tmp_path / "others" / "train-00000.parquet", [image] * 60, [f"other{row}" for row in range(60)])
    first, second = open_table("first", uneven), open_table("second", tmp_path / "others")
    third = open_table("third", uneven)
    assert first.folder.parent == second.folder.parent == third.folder.parent
    assert first[[0, 45, 199]]["id"] == ["img0", "img45", "img199"]
    assert second[[0, 45]]["id"] == ["other0", "other45"] and third[0]["id"] == "img0"
    second.close()
    assert first.open_shards() and third.open_shards() and not second.folder.exists()
    (first.folder / "6.arrow").write_bytes(b"half a shard")
    gone = first.folder.with_name(first.folder.name.replace("-0-", "-5-"))
    gone.mkdir()
    again = open_table("first", uneven)
    assert again.folder == first.folder and 6 not in again.open_shards()
    assert {path.name for path in again.folder.parent.iterdir()} == {again.folder.name, third.folder.name}


STEPS = 30
# 12 steps an epoch.
SETTINGS = {
    "train_data": ["org/retinas"], "streaming": True, "mixed_shards": 2, "max_steps": STEPS, "cache_dir": None,
    "per_device_train_batch_size": 16, "logging_steps": 4, "save_steps": 5, "save_total_limit": 99,
}  # fmt: skip


@pytest.fixture
def stream(start):
    return lambda name, **options: start(name, **{**SETTINGS, **options}).output_dir


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_that_stopped_goes_on_as_if_nothing_had_happened(stream, on_hub, fetched, monkeypatch, workers):
    whole = stream("whole")
    step = Loop.step

    def step_or_die(self, batches):
        if self.position.step == 17:
            raise KeyboardInterrupt
        step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Loop, "step", step_or_die)
        stream("stopped", dataloader_num_workers=workers)
    fetched()
    stopped = stream("stopped", dataloader_num_workers=workers, resume_from_checkpoint="latest")
    # 15 of 30 steps are left, which are one epoch and a quarter of 7 shards; and one is looked at first.
    assert sum(fetched().values()) <= 7 + 5 + 1
    assert_same_checkpoints(whole / "checkpoint-30", stopped / "checkpoint-30", "training_state.json")
    assert not list(whole.glob(".stream*")) and not list(stopped.glob(".stream*"))


def test_connections_that_break_do_not_end_the_run_nor_change_it(stream, on_hub, break_off, uneven):
    undisturbed = stream("undisturbed", max_steps=15, train_data=[str(uneven)])
    break_off([1, 2, 3, 4, 5, 6], after=10_000, times=5)
    disturbed = stream("disturbed", max_steps=15, dataloader_num_workers=1)
    assert not any(cut.times for cut in on_hub.cuts)
    assert weights(undisturbed) == weights(disturbed)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_network_that_stays_gone_ends_the_run_in_one_line(stream, break_off, monkeypatch, workers):
    step = Loop.step

    def step_and_cut(self, batches):
        step(self, batches)
        if self.position.step == 1:
            break_off([0, 1, 2, 3, 4, 5, 6], after=0, times=10_000)

    monkeypatch.setattr(Loop, "step", step_and_cut)
    with pytest.raises(HubAccessError) as error:
        stream("run", dataloader_num_workers=workers)
    assert error.value.repo_id == "org/retinas" and "\n" not in str(error.value)


@pytest.mark.parametrize("how", ["removed", "cut", "other rows"])
@pytest.mark.parametrize("workers", [0, 1])
def test_a_local_shard_that_is_lost_ends_the_run_in_one_line(stream, uneven, tmp_path, monkeypatch, workers, how):
    shards = shutil.copytree(uneven, tmp_path / "shards")
    monkeypatch.setattr(stream_shards, "LOCAL_WAITS", (0.01,))
    step = Loop.step

    def step_and_lose(self, batches):
        step(self, batches)
        if self.position.step == 1:
            for path in shards.rglob("*.parquet"):
                if how == "removed":
                    path.unlink()
                elif how == "cut":
                    path.write_bytes(path.read_bytes()[:200])
                else:
                    write_parquet(path, [encoded(picture(0))], ["one"])

    monkeypatch.setattr(Loop, "step", step_and_lose)
    with pytest.raises(BadDataError) as error:
        stream("run", dataloader_num_workers=workers, train_data=[str(shards)])
    assert str(shards) in error.value.source and "\n" not in str(error.value)


@pytest.mark.parametrize("options", [{"mixed_shards": 3}, {"streaming": False}], ids=str)
def test_in_the_middle_of_an_epoch_another_order_is_refused_and_at_its_end_it_may_begin(stream, uneven, options):
    data = {"train_data": [str(uneven)]}
    folder = stream("first", max_steps=12, save_steps=6, **data)
    with pytest.raises(BadArgumentError) as error:
        stream("second", max_steps=14, resume_from_checkpoint=str(folder / "checkpoint-6"), **data, **options)
    assert error.value.field in ("mixed_shards", "train_data")
    assert read_state(folder / "checkpoint-12")["position"] == {"step": 12, "epoch": 1, "offset": 0}
    if "mixed_shards" in options:
        stream("third", max_steps=14, resume_from_checkpoint=str(folder / "checkpoint-12"), **data, **options)


def test_a_run_goes_on_with_the_same_shards_from_another_folder(stream, uneven, tmp_path):
    """As a job finds them that stages them anew at every start."""
    folders = [shutil.copytree(uneven, tmp_path / job / "shards") for job in ("job-1", "job-2")]
    whole = stream("whole", train_data=[str(folders[0])], max_steps=8)
    shutil.rmtree(folders[0])
    shutil.copytree(whole / "checkpoint-5", tmp_path / "stopped" / "checkpoint-5")
    stopped = stream("stopped", train_data=[str(folders[1])], max_steps=8, resume_from_checkpoint="latest")
    assert weights(whole) == weights(stopped)


def test_a_run_goes_on_with_the_images_that_it_began_with_whatever_the_hub_has_now(stream, on_hub, uneven, tmp_path):
    """Other images are refused after the history was squashed, so that the commit is gone."""
    whole, repo = stream("whole", max_steps=8), on_hub.repo("org/retinas", "dataset")
    revision = repo.at("main").oid
    repo.add_files({"data/train-00004.parquet": (uneven / "data" / "train-00000.parquet").read_bytes()})
    shutil.copytree(whole / "checkpoint-5", tmp_path / "stopped" / "checkpoint-5")
    stopped = stream("stopped", max_steps=8, resume_from_checkpoint="latest")
    assert weights(whole) == weights(stopped)
    assert read_state(stopped / "checkpoint-8")["revisions"] == {"org/retinas": revision}
    del repo.commits[:-1]
    with pytest.raises(BadArgumentError) as error:
        stream("third", resume_from_checkpoint=str(whole / "checkpoint-5"))
    assert error.value.field == "train_data"


def test_each_process_reads_its_own_shards(on_hub, fetched, pretrain_words, tmp_path):
    """One epoch in two real processes: no image twice, and no shard in both but where the two meet."""
    options = {**SETTINGS, "streaming": "true", "per_device_train_batch_size": 10, "max_steps": 10, "save_steps": 0}
    steps = pretrain_in_two(pretrain_words(tmp_path / "two", **options), tmp_path, on_hub.env(tmp_path / "home"))
    ranks = [[name for step in rank for name in step] for rank in steps]
    assert len(ranks[0]) == len(ranks[1]) == 100
    assert len({*ranks[0], *ranks[1]}) == TOTAL, "every image of the epoch, each once"
    shards = [set(shards_of([int(name[3:]) for name in rank])) for rank in ranks]
    assert len(shards[0] & shards[1]) <= 1, "no shard in common but the one at the cut"
    # Besides the one at the cut: both look at the first one, for the side of the images and a preview.
    assert sum(fetched().values()) <= 7 + 1 + 2
    assert not list((tmp_path / "two").glob(".stream*"))
