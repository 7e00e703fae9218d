"""Shards on the Hub: what is uploaded, that all readers find it, and that a push which is cut off goes on."""

import datasets
import pytest
from huggingface_hub import DatasetCard

from retfound_hf.data.prepare_images import main
from retfound_hf.errors import RetFoundError

NAME = "org/eyes"


@pytest.fixture
def on_hub(hub_here, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_here.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return hub_here


def files(hub) -> dict[str, bytes]:
    return {path: blob.content for path, blob in hub.repo(NAME, "dataset").at("main").files.items()}


def test_a_pushed_set_loads_by_its_name(prepare, on_hub, capsys):
    out = prepare("shards", "--push_to_hub", NAME)
    assert f"{on_hub.url}/datasets/{NAME}" in capsys.readouterr().out
    assert on_hub.repo(NAME, "dataset").private
    assert set(files(on_hub)) - {".gitattributes"} == {
        *(f"data/train-{number:05d}.parquet" for number in range(5)),
        "README.md", "dataset_info.json", "rejected.csv", "duplicates.csv",
    }  # fmt: skip
    local = datasets.load_dataset(str(out), split="train")
    remote = datasets.load_dataset(NAME, split="train")
    streamed = datasets.load_dataset(NAME, split="train", streaming=True)
    assert local["hash"][:] == remote["hash"][:] == [row["hash"] for row in streamed]
    card = DatasetCard.load(NAME, repo_type="dataset")
    assert f'load_dataset("{NAME}", split="train")' in card.text and card.data.pretty_name.startswith("23 ")


def test_paths_of_this_machine_stay_here(prepare, on_hub, photos):
    prepare("shards", "--push_to_hub", NAME)
    for name, content in files(on_hub).items():
        assert str(photos).encode() not in content, name


def test_a_push_that_is_cut_off_goes_on(prepare, on_hub):
    on_hub.cut("PUT", "_lfs", after=10, times=1000)
    with pytest.raises(RetFoundError, match="run the same command again"):
        prepare("shards", "--push_to_hub", NAME)
    assert not [name for name in files(on_hub) if name.endswith(".parquet")]
    on_hub.cuts.clear()
    out = prepare("shards", "--push_to_hub", NAME)
    pushed = files(on_hub)
    assert {f"data/{path.name}": path.read_bytes() for path in (out / "data").iterdir()} == {
        name: content for name, content in pushed.items() if name.endswith(".parquet")
    }
    before = len(on_hub.requests)
    prepare("shards", "--push_to_hub", NAME)
    assert not [request for request in on_hub.requests[before:] if request.startswith("PUT")]


def test_shards_that_are_gone_here_go_there(prepare, on_hub, photos):
    prepare("shards", "--push_to_hub", NAME)
    for path in sorted(photos.rglob("*.jpg"))[8:]:
        path.unlink()
    prepare("shards", "--push_to_hub", NAME)
    assert sorted(name for name in files(on_hub) if "parquet" in name) == [
        "data/train-00000.parquet", "data/train-00001.parquet",
    ]  # fmt: skip


def test_parts_push_once_all_are_there(prepare, on_hub, capsys):
    prepare("shards", "--push_to_hub", NAME, "--part", "1/2")
    assert "not pushed to the Hub yet: 2 units" in capsys.readouterr().out
    assert not on_hub.store.repos
    prepare("shards", "--push_to_hub", NAME, "--part", "2/2")
    assert len([name for name in files(on_hub) if "parquet" in name]) == 5


def test_public_only_when_asked(prepare, on_hub):
    prepare("shards", "--push_to_hub", NAME, "--public", "true")
    assert not on_hub.repo(NAME, "dataset").private


@pytest.mark.parametrize("token, reason", [("", "log in"), ("hf_reader", "may write")])
def test_one_line_where_one_may_not(prepare, on_hub, monkeypatch, token, reason):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RetFoundError, match=reason) as found:
        prepare("shards", "--push_to_hub", NAME)
    assert "\n" not in str(found.value)


def test_a_name_that_is_none_is_refused_before_the_work(photos, tmp_path):
    with pytest.raises(RetFoundError, match="eyes is no id of a data set; give ORG/NAME"):
        main([str(photos), str(tmp_path / "out"), "--modality", "cfp", "--push_to_hub", "eyes"])
    assert not (tmp_path / "out").exists()
