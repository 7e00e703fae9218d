"""The official weights from a gated repository: small files in the official format on the loopback Hub."""

import io
import json

import pytest
import torch
from huggingface_hub import constants
from timm.models.vision_transformer import VisionTransformer

from retfound_hf import RetFoundModel
from retfound_hf.errors import HubAccessError, OutputError, RetFoundError
from retfound_hf.hub.fetch import fetch, main
from retfound_hf.models.loading import STARTING_POINTS
from retfound_hf.options import run_command


def official_bytes(name: str) -> bytes:
    """An encoder file as the official code saves it, some 2 MB."""
    torch.manual_seed(len(name))
    model = VisionTransformer(img_size=64, patch_size=16, embed_dim=128, depth=2, num_heads=2, num_classes=0)
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "epoch": 3}, file)
    return file.getvalue()


@pytest.fixture
def official(hub_here, monkeypatch, tmp_path):
    """Gated repositories with the official names; the user is `reader`, with access."""
    for weights in STARTING_POINTS.values():
        if weights.file and "dinov2" not in weights.file:
            repo = hub_here.create(weights.hub_id, gated=True)
            repo.add_files({weights.file: official_bytes(weights.file)})
            repo.granted.add("reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    monkeypatch.chdir(tmp_path)
    return hub_here


def refused(*words: str) -> RetFoundError:
    with pytest.raises(RetFoundError) as error:
        main(list(words))
    return error.value


def gets(hub) -> int:
    return sum("_cdn" in request for request in hub.requests if request.startswith("GET"))


@pytest.mark.parametrize(("name", "modality"), [("retfound-cfp", "cfp"), ("retfound-oct", "oct")])
def test_the_name_alone_is_enough(official, tmp_path, name, modality, capsys):
    assert run_command(main, [name]) == 0
    config = json.loads((tmp_path / name / "config.json").read_text())
    assert config["modality"] == modality and config["weights_license"] == "cc-by-nc-4.0"
    weights = STARTING_POINTS[name]
    state = torch.load(io.BytesIO(official_bytes(weights.file)))["model"]
    model = RetFoundModel.from_pretrained(tmp_path / name)
    assert torch.equal(model.embeddings.cls_token, state["cls_token"])
    assert json.loads((tmp_path / name / "run.json").read_text())["command"] == "fetch"
    assert f"base_model: {weights.hub_id}" in (tmp_path / name / "README.md").read_text()
    assert f"{name}: README.md, config.json, model.safetensors" in capsys.readouterr().out


def test_what_the_name_does_not_tell_is_asked_for(official, tmp_path):
    assert refused("retfound-meh").field == "modality"
    main(["retfound-meh", "--modality", "cfp"])
    assert json.loads((tmp_path / "retfound-meh" / "config.json").read_text())["modality"] == "cfp"


def test_the_wrong_modality_is_refused_before_the_download(official):
    error = refused("retfound-cfp", "--modality", "oct")
    assert (error.field, error.value) == ("modality", "oct")
    assert official.requests == []


@pytest.mark.parametrize(
    ("token", "status", "said"), [("", 401, "natureCFP"), ("hf_of_nobody", 401, "not valid"), ("hf_reader", 403, "no")]
)
def test_without_a_token_or_access_it_says_what_to_do(official, monkeypatch, token, status, said, tmp_path):
    monkeypatch.setenv("HF_TOKEN", token)
    official.repo("YukunZhou/RETFound_mae_natureCFP").granted.clear()
    error = refused("retfound-cfp")
    assert (error.repo_id, error.status) == ("YukunZhou/RETFound_mae_natureCFP", status) and said in str(error)
    assert not (tmp_path / "retfound-cfp").exists()


def test_offline_the_cache_serves_and_nothing_else(official, monkeypatch, tmp_path):
    main(["retfound-cfp"])
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    asked = len(official.requests)
    fetch("retfound-cfp", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").is_file()
    assert "HF_HUB_OFFLINE" in str(refused("retfound-oct"))
    assert len(official.requests) == asked


def test_no_network(official, monkeypatch):
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    nowhere = "http://127.0.0.1:9"
    monkeypatch.setattr(constants, "ENDPOINT", nowhere)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", nowhere + "/{repo_id}/resolve/{revision}/{filename}")
    error = refused("retfound-cfp")
    assert nowhere in str(error) and error.status is None


def test_a_download_cut_half_way_goes_on_where_it_stopped(official, monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda _: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1 << 16)
    size = len(official_bytes("RETFound_mae_natureCFP.pth"))
    official.cut("GET", "_cdn", after=size // 2, times=1)
    official.cut("GET", "_cdn", after=0, times=100)
    assert isinstance(refused("retfound-cfp"), HubAccessError)
    assert not (tmp_path / "retfound-cfp").exists()
    official.cuts.clear()
    before = gets(official)
    main(["retfound-cfp"])
    assert (tmp_path / "retfound-cfp" / "model.safetensors").is_file()
    assert gets(official) == before + 1
    start = int([request for request in official.requests if "_cdn" in request][-1].split("bytes=")[1].rstrip("-"))
    assert size // 2 - (1 << 16) <= start <= size // 2


def test_a_damaged_download_is_found_and_removed(official, tmp_path):
    main(["retfound-cfp"])
    (blob,) = (tmp_path / "hub-home").glob("hub/*/blobs/*")
    content = bytearray(blob.read_bytes())
    content[len(content) // 2] ^= 1
    blob.write_bytes(content)
    assert "SHA-256" in str(refused("retfound-cfp", "--output_dir", "again")) and not blob.exists()
    main(["retfound-cfp", "--output_dir", "again"])
    assert (tmp_path / "again" / "config.json").is_file()


def test_an_existing_folder_is_not_written_over(official, tmp_path):
    main(["retfound-cfp"])
    asked = len(official.requests)
    assert isinstance(refused("retfound-cfp"), OutputError)
    assert len(official.requests) == asked
    main(["retfound-cfp", "--overwrite_output_dir"])


def test_too_little_space_is_said_before_the_download(official, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1000})())
    assert "GB left" in str(refused("retfound-cfp"))
    assert gets(official) == 0
