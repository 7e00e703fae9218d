"""Hub ids, and the command as a user meets it."""

import json
from unittest.mock import MagicMock

import pytest
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)

from retfound_hf.errors import HubAccessError
from retfound_hf.models.conversion import convert_checkpoint, locate, main
from retfound_hf.options import run_command

HUB_ID = "YukunZhou/RETFound_mae_natureOCT"


@pytest.fixture
def hub(monkeypatch):
    """Puts a function in the place of the Hub's download."""
    return lambda function: monkeypatch.setattr("huggingface_hub.hf_hub_download", function)


def answer(kind: type[HfHubHTTPError], message: str, status: int) -> HfHubHTTPError:
    return kind(message, response=MagicMock(headers={}, status_code=status))


def test_hub_id_is_fetched_and_tells_the_modality(hub, vit, save, tmp_path):
    asked = []
    path = save(vit().state_dict(), "blob.pth")
    hub(lambda repo, name, **_: asked.append((repo, name)) or str(path))
    folder = convert_checkpoint(HUB_ID, tmp_path / "out")
    assert asked == [(HUB_ID, "RETFound_mae_natureOCT.pth")]
    assert json.loads((folder / "config.json").read_text())["modality"] == "oct"


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (answer(GatedRepoError, "403", 403), 403),
        (answer(RepositoryNotFoundError, "404", 404), 404),
        (LocalEntryNotFoundError("offline"), None),
        (answer(HfHubHTTPError, "503 busy", 503), 503),
    ],
    ids=["gated", "unknown", "offline", "other"],
)
def test_what_the_hub_may_answer(hub, error, status, tmp_path):
    def fail(*_, **__):
        raise error

    hub(fail)
    with pytest.raises(HubAccessError) as found:
        convert_checkpoint(HUB_ID, tmp_path / "out")
    assert (found.value.repo_id, found.value.status) == (HUB_ID, status)
    assert not (tmp_path / "out").exists()


def test_offline_without_a_copy():
    with pytest.raises(HubAccessError):
        locate("nobody/RETFound_that_was_never_fetched_cfp")


def test_local_path_wins_over_the_hub(hub, tmp_path, monkeypatch):
    hub(lambda *_, **__: 1 / 0)
    (tmp_path / "org").mkdir()
    (tmp_path / "org" / "name").touch()
    monkeypatch.chdir(tmp_path)
    assert locate("org/name").name == "name"
    assert locate("org/absent.pth").name == "absent.pth"
    assert locate("my folder/weights").name == "weights"


def test_command_converts_and_records(vit, save, tmp_path, capsys):
    path = save(vit(classes=3).state_dict(), "checkpoint-best.pth")
    out = tmp_path / "out"
    words = [str(path), str(out), "--modality", "oct", "--head_norm", "double", "--class_names", "a", "b", "c"]
    assert run_command(main, words) == 0
    assert {file.name for file in out.iterdir()} == {
        "config.json",
        "model.safetensors",
        "preprocessor_config.json",
        "README.md",
        "run.json",
    }
    config = json.loads((out / "config.json").read_text())
    assert (config["modality"], config["head_norm"]) == ("oct", "double")
    assert config["id2label"] == {"0": "a", "1": "b", "2": "c"}
    record = json.loads((out / "run.json").read_text())
    assert record["command"] == "convert_checkpoint"
    assert record["arguments"]["checkpoint"] == str(path) and record["arguments"]["head_norm"] == "double"
    assert str(out) in capsys.readouterr().out
    assert run_command(main, words) == 2
    assert "--overwrite_output_dir" in capsys.readouterr().err
    assert run_command(main, [*words, "--overwrite_output_dir"]) == 0


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["absent_cfp.pth", "OUT"], "absent_cfp.pth does not exist"),
        (["absent.pth"], "required: OUT"),
        (["absent.pth", "OUT", "--modality", "mri"], "invalid choice: 'mri'"),
        (["absent.pth", "OUT", "--modalty", "cfp"], "unknown option --modalty; did you mean --modality?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(words, message, tmp_path, capsys):
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    assert run_command(main, words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert list(tmp_path.iterdir()) == []
