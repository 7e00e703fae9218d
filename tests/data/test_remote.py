"""Addresses of object stores: what is refused before anything is contacted, and what lies below one."""

import fsspec
import pytest

from retfound_hf.data.remote import check_address, fetch_remote, list_remote, open_remote
from retfound_hf.errors import BadArgumentError, BadDataError, MissingPackageError
from retfound_hf.files import is_remote


@pytest.mark.parametrize("source, found", [
    ("s3://bucket/my-shards", True), ("hf://datasets/ORG/my-shards@v1/data", True), ("memory://bucket", True),
    ("my-shards", False), ("ORG/my-shards", False), ("/a/s3:/b", False), ("C:\\shards", False),
])  # fmt: skip
def test_an_address_has_a_scheme(source, found):
    assert is_remote(source) == found


@pytest.mark.parametrize("source", [
    "s3://AKIA123:secret456@bucket/shards", "s3://AKIA123@bucket/shards", "https://host/shards?X-Amz-Signature=secret456",
    "gs://token:secret456@bucket/shards",
])  # fmt: skip
def test_credentials_in_an_address_are_refused_and_not_repeated(source):
    with pytest.raises(BadArgumentError) as error:
        check_address(source, "train_data")
    assert error.value.field == "train_data"
    assert not [key for key in ("AKIA123", "secret456") if key in f"{error.value} {error.value.value}"]


@pytest.mark.parametrize("source, package, extra", [("s3://b/c", "s3fs", "s3"), ("gs://b/c", "gcsfs", "gs")])
def test_a_missing_package_is_named_with_its_extra(monkeypatch, source, package, extra):
    def absent(name):
        raise ImportError(f"no {name}")

    monkeypatch.setattr(fsspec, "get_filesystem_class", absent)
    with pytest.raises(MissingPackageError) as error:
        check_address(source, "train_data")
    assert (error.value.package, error.value.extra) == (package, extra)


def test_an_unknown_scheme_is_refused():
    with pytest.raises(BadArgumentError) as error:
        check_address("retina://eyes", "train_data")
    assert error.value.value == "retina://eyes"


@pytest.fixture
def store():
    """`memory://shelf`: two shards, one of them in a folder, a hidden one and a card."""
    system = fsspec.filesystem("memory")
    for name in ("train-1.parquet", "data/train-0.parquet", ".train-2-abc.parquet", "README.md"):
        system.pipe_file(f"/shelf/shards/{name}", name.encode())
    yield "memory://shelf/shards"
    system.rm("/shelf", recursive=True)


def test_a_folder_is_listed_and_its_files_are_read(store, tmp_path):
    folder, members = list_remote(f"{store}/", "train_data")
    assert (folder, members) == (store, ["data/train-0.parquet", "train-1.parquet"])
    assert list_remote(f"{store}/train-1.parquet", "train_data") == (store, ["train-1.parquet"])
    for member in members:
        with open_remote(folder, member) as file:
            assert file.read() == member.encode()
        assert fetch_remote(folder, member, tmp_path / "copy").read_bytes() == member.encode()
    assert list_remote("memory://shelf/nothing", "train_data")[1] == []


def test_a_store_that_refuses_is_told_in_one_line(store, monkeypatch):
    def refuse(*given, **options):
        raise PermissionError("Forbidden")

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "find", refuse)
    with pytest.raises(BadDataError) as error:
        list_remote(store, "train_data")
    assert error.value.source == store and "Forbidden" in str(error.value)
