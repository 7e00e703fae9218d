"""The loopback Hub against the real client: what the other tests rely on."""

import hashlib
import json
from pathlib import Path

import pytest
from huggingface_hub import HfApi, ModelCard, hf_hub_download, snapshot_download
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

LARGE = bytes(range(256)) * 4096


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "folder"
    (folder / "plots").mkdir(parents=True)
    (folder / "config.json").write_text('{"a": 1}')
    (folder / "model.safetensors").write_bytes(LARGE)
    (folder / "plots" / "roc.png").write_bytes(b"\x89PNG")
    return folder


@pytest.mark.parametrize("kind", ["model", "dataset"])
def test_what_is_uploaded_comes_back(hub_here, folder, tmp_path, kind):
    api = HfApi()
    url = api.create_repo("org/name", repo_type=kind, private=True)
    assert url.repo_id == "org/name" and url.repo_type == kind
    commit = api.upload_folder(repo_id="org/name", repo_type=kind, folder_path=folder)
    api.create_tag("org/name", tag="v1", repo_type=kind)
    api.upload_file(path_or_fileobj=b"{}", path_in_repo="config.json", repo_id="org/name", repo_type=kind)
    place = snapshot_download("org/name", repo_type=kind, revision="v1")
    for path in ("config.json", "model.safetensors", "plots/roc.png"):
        assert (folder / path).read_bytes() == Path(place, path).read_bytes()
    latest = hf_hub_download("org/name", "config.json", repo_type=kind)
    assert json.loads(Path(latest).read_text()) == {}
    info = api.repo_info("org/name", repo_type=kind, revision="v1", files_metadata=True)
    assert info.sha == commit.oid and info.private
    sizes = {sibling.rfilename: sibling.size for sibling in info.siblings}
    assert sizes == {"config.json": 8, "model.safetensors": len(LARGE), "plots/roc.png": 4}
    lfs = next(sibling.lfs for sibling in info.siblings if sibling.rfilename == "model.safetensors")
    assert lfs.sha256 == hashlib.sha256(LARGE).hexdigest()
    listed = {item.path for item in api.list_repo_tree("org/name", repo_type=kind, recursive=True)}
    assert listed == {"config.json", "model.safetensors", "plots", "plots/roc.png"}
    assert {item.path for item in api.list_repo_tree("org/name", repo_type=kind)} == listed - {"plots/roc.png"}
    (found,) = api.get_paths_info("org/name", ["model.safetensors", "absent"], repo_type=kind)
    assert found.lfs.size == len(LARGE)
    assert {ref.name for ref in api.list_repo_refs("org/name", repo_type=kind).tags} == {"v1"}


def test_the_same_content_is_not_sent_twice(hub_here, folder):
    api = HfApi()
    for name in ("org/one", "org/two"):
        api.create_repo(name)
        api.upload_folder(repo_id=name, folder_path=folder)
    assert sum(request.startswith("PUT") for request in hub_here.requests) == 2  # weights and picture, once each


def test_tokens_and_gates(hub_here, monkeypatch):
    repo = hub_here.create("org/gated", gated=True)
    repo.add_files({"config.json": "{}"})
    hub_here.create("org/secret", private=True)
    cases = [("", "org/gated", GatedRepoError), ("hf_reader", "org/gated", GatedRepoError)]
    cases += [("hf_reader", "org/secret", RepositoryNotFoundError), ("hf_reader", "org/no", RepositoryNotFoundError)]
    for token, name, error in cases:
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(error):
            hf_hub_download(name, "config.json")
    assert HfApi().model_info("org/gated").gated == "manual"
    repo.granted.add("reader")
    assert Path(hf_hub_download("org/gated", "config.json")).read_text() == "{}"
    with pytest.raises(HfHubHTTPError, match="rights to write"):
        HfApi().create_repo("org/mine")
    assert HfApi().whoami()["name"] == "reader"
    with pytest.raises(HfHubHTTPError):
        HfApi().whoami("hf_unknown")


def test_a_download_cut_half_way_resumes_where_it_stopped(hub_here):
    hub_here.create("org/name").add_files({"model.safetensors": LARGE})
    hub_here.cut("GET", "_cdn", after=300_000, times=1)
    assert Path(hf_hub_download("org/name", "model.safetensors")).read_bytes() == LARGE
    assert sum("_cdn" in request for request in hub_here.requests if request.startswith("GET")) == 2


def test_an_upload_cut_half_way_leaves_no_commit(hub_here, folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    hub_here.create("org/name")
    hub_here.cut("PUT", "_lfs", after=100_000, times=100)
    with pytest.raises(Exception, match="Error while uploading"):
        HfApi().upload_folder(repo_id="org/name", folder_path=folder)
    assert hub_here.repo("org/name").at("main").files == {}
    hub_here.cuts.clear()
    HfApi().upload_folder(repo_id="org/name", folder_path=folder)
    assert hub_here.repo("org/name").at("main").files["model.safetensors"].content == LARGE


def test_offline_the_cache_answers(hub_here, monkeypatch):
    from huggingface_hub import constants

    hub_here.create("org/name").add_files({"config.json": "{}"})
    path = hf_hub_download("org/name", "config.json")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(hub_here.requests)
    assert hf_hub_download("org/name", "config.json") == path
    with pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("org/name", "other.json")
    assert len(hub_here.requests) == asked


def test_a_card_is_validated(hub_here):
    ModelCard("---\nlicense: cc-by-nc-4.0\nbase_model: org/name\n---\n# Title\n").validate()
    with pytest.raises(ValueError, match="is not valid"):
        ModelCard("---\nbase_model: /some/folder\n---\n# Title\n").validate()
