"""Shards in object stores: the same images and weights as from a folder, by a server of S3 on loopback."""

import json
import os
from pathlib import Path

import fsspec
import pytest
from small_runs import write_shards

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.pretraining import stream_shards
from retfound_hf.pretraining.pretrain import run
from retfound_hf.pretraining.stream_shards import list_shards, stream_fingerprint

ROWS = (20, 9, 14)
OPTIONS = {"max_steps": 4, "mixed_shards": 1}
KEYS = {"AWS_ACCESS_KEY_ID": "key-31415926", "AWS_SECRET_ACCESS_KEY": "secret-27182818"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write_shards(tmp_path_factory.mktemp("stored") / "shards" / "data", ROWS).parent


@pytest.fixture
def shelf(folder, monkeypatch):
    """`memory://shelf/shards`, the same shards in the memory of this process; tries follow each other at once."""
    monkeypatch.setattr(stream_shards, "RETRY_WAITS", (0, 0))
    system = fsspec.filesystem("memory")
    for path in folder.rglob("*.parquet"):
        system.pipe_file(f"/shelf/shards/{path.relative_to(folder)}", path.read_bytes())
    yield "memory://shelf/shards"
    system.rm("/shelf", recursive=True)


@pytest.fixture
def bucket(folder, monkeypatch):
    """`s3://eyes-PORT/shards`, the same on a server of S3."""
    server = pytest.importorskip("moto.server", reason="moto is not installed")
    s3fs = pytest.importorskip("s3fs", reason="s3fs is not installed")
    started = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    started.start()
    host, port = started.get_host_and_port()
    for name, value in {
        **KEYS,
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    system = s3fs.S3FileSystem()
    system.mkdir(f"eyes-{port}")  # moto keeps the buckets of earlier servers
    system.put(str(folder), f"eyes-{port}/shards", recursive=True)
    yield f"s3://eyes-{port}/shards"
    started.stop()
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture
def online(monkeypatch):
    """`datasets` may contact other machines, which are this one."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)


def test_the_shards_of_a_store_are_those_of_the_folder(folder, shelf):
    here, there = list_shards([str(folder)]), list_shards([shelf])
    assert [(each.rows, each.member, each.content) for each in here] == [
        (each.rows, each.member, each.content) for each in there
    ]
    assert stream_fingerprint(here) == stream_fingerprint(there)
    one = list_shards([f"{shelf}/data/train-00001.parquet"])
    assert [(each.rows, each.member) for each in one] == [(9, "train-00001.parquet")]
    with pytest.raises(BadDataError):
        list_shards(["memory://shelf/nothing"])


def test_a_shard_that_was_replaced_or_is_gone_is_named(shelf, tmp_path):
    first, second, _ = list_shards([shelf])
    system = fsspec.filesystem("memory")
    system.cp_file("/shelf/shards/data/train-00002.parquet", "/shelf/shards/data/train-00000.parquet")
    system.rm("/shelf/shards/data/train-00001.parquet")
    for shard in (first, second):
        with pytest.raises(BadDataError) as error:
            shard.read(Path.read_bytes, tmp_path)
        assert error.value.rows == (shard.member,)
    assert list(tmp_path.iterdir()) == []


def test_a_store_that_is_busy_is_asked_again(shelf, monkeypatch, tmp_path):
    kind, answers = fsspec.get_filesystem_class("memory"), [OSError(16, "SlowDown"), ConnectionError("reset")]
    get_file = kind.get_file

    def busy(self, *given, **options):
        if answers:
            raise answers.pop()
        return get_file(self, *given, **options)

    monkeypatch.setattr(kind, "get_file", busy)
    shard = list_shards([shelf])[0]
    assert len(shard.read(Path.read_bytes, tmp_path)) > 1000 and not answers


def weights(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


@pytest.mark.parametrize("streaming", [True, False])
def test_a_run_from_s3_equals_that_from_a_folder(
    tiny_arguments, folder, bucket, online, monkeypatch, tmp_path, streaming
):
    """The keys are in no file of the run, and a run that begins in the folder goes on from the store."""
    options = {**OPTIONS, "streaming": streaming, "cache_dir": str(tmp_path / "cache")}
    run(tiny_arguments(tmp_path / "here", train_data=[str(folder)], save_steps=2, **options))
    run(tiny_arguments(tmp_path / "there", train_data=[bucket], **options))
    assert weights(tmp_path / "here") == weights(tmp_path / "there")
    record = json.loads((tmp_path / "there" / "run.json").read_text())
    assert record["arguments"]["train_data"] == [bucket]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files and not [path for path in files for key in KEYS.values() if key.encode() in path.read_bytes()]
    assert "eyes" not in (tmp_path / "there" / "README.md").read_text()
    if streaming:
        resumed = {"resume_from_checkpoint": str(tmp_path / "here" / "checkpoint-2"), **options}
        run(tiny_arguments(tmp_path / "resumed", train_data=[bucket], **resumed))
        assert weights(tmp_path / "resumed") == weights(tmp_path / "here")


def test_keys_in_an_address_stop_the_run_before_it_begins(tiny_arguments, tmp_path):
    with pytest.raises(BadArgumentError) as error:
        tiny_arguments(tmp_path / "out", train_data=["s3://key:secret@eyes/shards"])
    assert error.value.field == "train_data" and "secret" not in str(error.value)
    assert not os.listdir(tmp_path)
