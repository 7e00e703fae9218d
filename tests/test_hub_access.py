"""A mistyped path is not asked for again and again, and nothing is asked where nothing need be."""

import pytest
from huggingface_hub import constants, errors, hf_hub_download

from retfound_hf.hub_access import look_up_data_set


def questions(hub) -> list[str]:
    return [request for request in hub.requests if "/org/" in request]


def test_an_absent_data_set_is_asked_for_once(hub_here):
    with pytest.raises(errors.RepositoryNotFoundError):
        look_up_data_set("org/absent")
    assert questions(hub_here) == ["GET /api/datasets/org/absent"]


def test_the_first_broken_connection_is_the_last(hub_here):
    hub_here.create("org/scans", "dataset")
    hub_here.cut("GET", "org/scans", times=9)
    with pytest.raises(Exception, match="disconnected"):
        look_up_data_set("org/scans")
    assert len(questions(hub_here)) == 1


def test_of_what_is_cached_nothing_is_asked(hub_here):
    hub_here.create("org/scans", "dataset").add(**{"README.md": b"# Scans"})
    look_up_data_set("org/scans")
    assert len(questions(hub_here)) == 1
    hf_hub_download("org/scans", "README.md", repo_type="dataset")
    asked = questions(hub_here)
    look_up_data_set("org/scans")
    assert questions(hub_here) == asked


@pytest.mark.parametrize("name", ["/absent/org/images", "a/org/images", "../org/images", "images/org/"])
def test_paths_are_no_question_for_the_hub(hub_here, name):
    look_up_data_set(name)
    assert not hub_here.requests


def test_offline_nothing_is_asked(hub_here, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    look_up_data_set("org/absent")
    assert not hub_here.requests
