"""Seven shards of uneven size, on this machine and on the loopback Hub."""

import hashlib
import threading
import time
from pathlib import Path

import datasets
import pytest

from retfound_hf.pretraining import streaming as shards_module
from retfound_hf.pretraining.streaming import THREAD_NAME

ROWS = (40, 25, 3, 31, 40, 22, 39)
CARD = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: data/*.parquet\n---\n"


@pytest.fixture(autouse=True)
def no_thread_outlives_its_run(monkeypatch):
    """One that did would go on fetching, in the next test too."""
    yield
    end = time.monotonic() + 20
    while any(thread.name == THREAD_NAME for thread in threading.enumerate()):
        assert time.monotonic() < end, "a thread still fetches shards for a run that ended"
        time.sleep(0.01)


@pytest.fixture(scope="session")
def uneven(make_picture, encode, write_shard, tmp_path_factory) -> Path:
    """200 images, `img0` to `img199`, in `data/train-00000.parquet` and on, as `prepare_images` lays them out."""
    folder = tmp_path_factory.mktemp("uneven")
    first = 0
    for number, count in enumerate(ROWS):
        names = range(first, first + count)
        images = [encode(make_picture(name)) for name in names]
        write_shard(folder / "data" / f"train-{number:05d}.parquet", images, [f"img{name}" for name in names])
        first += count
    (folder / "README.md").write_text(CARD, encoding="utf-8")
    return folder


@pytest.fixture
def on_hub(hub_here, uneven, monkeypatch):
    """The loopback Hub, with the same shards as the data set `org/retinas`; tries follow each other at once."""
    files = {str(path.relative_to(uneven)): path.read_bytes() for path in uneven.rglob("*") if path.is_file()}
    hub_here.create("org/retinas", "dataset").add_files(files)
    monkeypatch.setattr(shards_module, "RETRY_WAITS", (0, 0))
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
    """How often each shard was asked for as a whole since the last call; footers are read by ranges, uncounted."""
    seen = [0]

    def count() -> dict[str, int]:
        new, seen[0] = on_hub.requests[seen[0] :], len(on_hub.requests)
        heads = [request for request in new if request.startswith("HEAD") and request.endswith(".parquet")]
        return {name: heads.count(name) for name in heads}

    return count
