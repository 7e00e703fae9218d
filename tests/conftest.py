import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("MPLBACKEND", "Agg")

import pytest


def pytest_addoption(parser):
    parser.addoption("--slow", action="store_true", help="run the tests marked slow too")


def pytest_collection_modifyitems(config, items):
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="slow: run with --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)


@pytest.fixture(autouse=True, scope="session")
def _quiet_and_single_threaded():
    import datasets
    import torch

    from retfound_hf.evaluation import plots

    torch.set_num_threads(1)
    datasets.disable_progress_bars()
    plots.STYLE["savefig.dpi"] = 100  # a ninth of the pixels; tests/evaluation/test_plots.py draws all of them


@pytest.fixture
def hub():
    """An empty Hub on loopback; `hub.env(folder)` is the environment of a process that speaks to it."""
    from loopback_hub import LoopbackHub

    with LoopbackHub() as hub:
        yield hub


@pytest.fixture
def hub_here(hub, monkeypatch, tmp_path):
    """The same Hub for the client in this process, logged in as its writer, with a cache of its own."""
    from huggingface_hub import constants, hf_api

    for name, value in hub.env(tmp_path / "hub-home").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(constants, "ENDPOINT", hub.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-home" / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hub-home" / "token"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(hf_api.api, "endpoint", hub.url)
    return hub


@pytest.fixture
def cluster_here(monkeypatch):
    """A cluster whose jobs run in this process, one after the other."""
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    from submitit.local.debug import DebugExecutor

    monkeypatch.setattr(submitit, "AutoExecutor", lambda folder, cluster: DebugExecutor(folder))
