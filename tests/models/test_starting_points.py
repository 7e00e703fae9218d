"""The names of the paper's comparison models, and what is said where their weights are not at hand."""

import re
from pathlib import Path

import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.models.starting_points import STARTING_POINTS, how_to_bring, published, resolve


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_stand_for_published_weights():
    assert resolve("sl-imagenet") == "google/vit-large-patch16-224-in21k"
    assert resolve("ssl-imagenet") == "facebook/vit-mae-large"


@pytest.mark.parametrize("name", [*STARTING_POINTS, "retfound", "YukunZhou/RETFound_mae_meh"])
def test_a_folder_of_that_name_wins(empty_directory, name):
    (empty_directory / name).mkdir(parents=True)
    assert resolve(name) == name
    assert published(name) is None


@pytest.mark.parametrize("name", ["my-folder", "runs/classifier", "facebook/dinov2-large", "/absolute"])
def test_other_names_pass(name):
    assert resolve(name) == name


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("retfound-cfp", "`retfound fetch retfound-cfp`"),
        ("retfound-oct", "`retfound fetch retfound-oct`"),
        ("ssl-retinal", "`retfound pretrain --config_name retfound-cfp --train_data SHARDS --output_dir ssl-retinal`"),
        ("YukunZhou/RETFound_mae_meh", "`retfound fetch YukunZhou/RETFound_mae_meh`"),
        ("retfound", "say which one, retfound-cfp or retfound-oct"),
    ],
)
def test_what_has_to_be_made_first_says_how(name, told):
    with pytest.raises(RetFoundError) as raised:
        resolve(name)
    assert str(raised.value).startswith(f"model {name}")
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("swav_800ep_pretrain.pth.tar", "checkpoint file, no model folder; .*`retfound convert_checkpoint swav_800ep"),
        ("folder/model.safetensors", "file of a model folder; give the folder, folder$"),
    ],
)
def test_a_file_is_no_folder_and_what_to_do_about_it(empty_directory, name, told):
    (empty_directory / "folder").mkdir()
    (empty_directory / "folder" / "config.json").write_text("{}")
    (empty_directory / name).write_bytes(b"PK")
    with pytest.raises(RetFoundError, match=f"^model {name} is a {told}") as raised:
        resolve(name)
    assert "\n" not in str(raised.value)


def test_the_commands_that_are_told_exist():
    from retfound_hf.cli import COMMANDS

    for start in STARTING_POINTS.values():
        if start.make is not None:
            assert start.make.split()[:1] == ["retfound"]
            assert start.make.split()[1] in COMMANDS


def test_how_to_bring_weights_names_the_folder():
    told = how_to_bring("google/vit-large-patch16-224-in21k")
    assert "`hf download google/vit-large-patch16-224-in21k --local-dir sl-imagenet`" in told
    assert "--local-dir dinov2-large`" in how_to_bring("facebook/dinov2-large")
    assert how_to_bring("/somewhere/else") == ""
    assert "`retfound fetch NAME`" in how_to_bring("retfound-meh")
    assert how_to_bring("sl-imagnet") == "; did you mean sl-imagenet?"


def test_published_weights_are_known_by_name_and_id():
    assert published("sl-imagenet") is published("google/vit-large-patch16-224-in21k")
    assert published("retfound-cfp").license == "cc-by-nc-4.0"
    assert published("somewhere/else") is None


def test_the_readme_has_the_table():
    readme = (Path(__file__).parents[2] / "retfound_hf" / "models" / "README.md").read_text(encoding="utf-8")
    section = readme.split("## Starting points")[1].split("\n## ")[0]
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row.split("|")[1])}
    assert named == set(STARTING_POINTS)
    for name in ("sl-imagenet", "ssl-imagenet"):
        assert any(f"`{name}`" in row and f"`{STARTING_POINTS[name].hub_id}`" in row for row in rows)
