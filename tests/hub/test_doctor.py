"""`doctor`: what it finds, that it asks the Hub only when it is told to, and what it says to do."""

import shutil
from collections import namedtuple
from importlib import metadata

import pytest
import torch
from huggingface_hub import constants

from retfound_hf.hub import doctor
from retfound_hf.hub.doctor import Finding, diagnose
from retfound_hf.models.loading import STARTING_POINTS
from retfound_hf.options import run_command

OFFICIAL = [row for row in STARTING_POINTS.values() if row.file]
Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def ample(monkeypatch):
    """A machine with free disk and memory and no GPU, whatever the tests run on."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1e12, 0, 1e12))
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1e11)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: None)


@pytest.fixture
def official(hub_here, monkeypatch, tmp_path):
    """The official repositories on a Hub of the tests; `reader` may read all but `retfound-oct`."""
    for row in OFFICIAL:
        repo = hub_here.create(row.hub_id, gated=True)
        repo.add_files({row.file: b"weights"})
        if row.name != "retfound-oct":
            repo.granted.add("reader")
    monkeypatch.setenv("HF_TOKEN", "hf_reader")
    monkeypatch.chdir(tmp_path)
    return hub_here


def found(name: str, online: bool = False) -> Finding:
    return next(finding for finding in diagnose(online).findings if finding.name == name)


def test_nothing_is_asked_unless_told_and_no_token_is_shown(official):
    said = diagnose()
    assert not official.requests
    assert "hf_reader" not in str(said)
    other = found("other weights")
    assert other.fix == "retfound doctor --online" and all(row.name in other.value for row in OFFICIAL)


def test_access_to_each_of_the_official_weights(official):
    states = {finding.name: finding for finding in diagnose(online=True).findings}
    assert "reader" in states["token"].value and states["token"].state == "ok"
    assert states["retfound-cfp"].fix == "retfound fetch retfound-cfp"
    refused = states["retfound-oct"]
    assert refused.state == "missing" and "YukunZhou/RETFound_mae_natureOCT" in refused.value and refused.fix


def test_a_token_that_the_hub_does_not_know(official, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "")
    assert found("token").fix == "hf auth login"


def test_folders_at_hand_are_not_asked_for(official, tmp_path):
    (tmp_path / "retfound-oct").mkdir()
    (tmp_path / "retfound-oct" / "config.json").write_text("{}")
    assert found("retfound-oct", online=True) == Finding("Hub", "retfound-oct", "a folder here")
    assert not any("natureOCT" in request for request in official.requests)


def test_offline_and_online_contradict_each_other(official, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert found("connection", online=True).fix == "unset HF_HUB_OFFLINE"
    assert not official.requests


def test_packages_that_are_old_or_absent(monkeypatch):
    asked = ["torch>=99", "no-such-package>=1", "numpy", 'no-such-extra>=2; extra == "app"']
    monkeypatch.setattr(metadata, "requires", lambda name: asked)
    assert {finding.fix for finding in diagnose().wrong} == {
        "pip install 'torch>=99'",
        "pip install 'no-such-package>=1'",
    }
    assert found("torch>=99").value == f"{metadata.version('torch')} is installed"
    assert found("packages").value.startswith("1 of 3 ")
    app = found("app")
    assert app.state == "missing" and app.fix == "pip install 'retfound-hf[app]'" and "no-such-extra" in app.value


def test_too_little_disk_and_memory(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10, 9, 1e8))
    monkeypatch.setattr(doctor, "_available_memory", lambda: 1e9)
    wrong = {finding.name: finding.fix for finding in diagnose().wrong}
    assert {"working folder", "Hub cache"} <= set(wrong) and "HF_HOME" in wrong["Hub cache"]
    assert found("memory").state == "missing" and "1.0 GB" in found("memory").value


@pytest.mark.parametrize(("capability", "flag"), [((7, 5), "--fp16"), ((8, 0), "--bf16"), ((9, 0), "--bf16")])
def test_precision_of_a_gpu(monkeypatch, capability, flag):
    for name, value in {
        "is_available": True, "device_count": 1, "mem_get_info": (15e9, 16e9), "get_device_name": "A card",
        "get_device_capability": capability,
    }.items():  # fmt: skip
        monkeypatch.setattr(torch.cuda, name, lambda *_, value=value: value)
    card = next(doctor._device())
    assert card.name == "GPU 0" and flag in card.value and "15.0 GB of 16.0 GB" in card.value


def test_a_gpu_that_pytorch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for version, fix in ((None, "pip install"), ("12.8", "nvidia-smi")):
        monkeypatch.setattr(torch.version, "cuda", version)
        card = next(doctor._device())
        assert card.state == "wrong" and fix in card.fix


def test_the_exit_status_tells(monkeypatch, capsys):
    assert run_command(doctor.main, []) == 0
    assert capsys.readouterr().out.startswith("versions\n  ok")
    monkeypatch.setattr(
        doctor, "diagnose", lambda online: doctor.Diagnosis((Finding("a", "b", "c", "wrong", "mend"),))
    )
    assert run_command(doctor.main, []) == 2
    said = capsys.readouterr()
    assert "-> mend" in said.out and said.err.count("\n") == 1 and "b" in said.err
