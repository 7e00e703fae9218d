"""Files that are hostile, broken or no checkpoints at all, and conversions that are stopped."""

import argparse
import hashlib
from pathlib import Path

import pytest
import torch
import yaml

from retfound_hf.errors import BadModelError, OutputError
from retfound_hf.models import conversion as convert
from retfound_hf.models.conversion import convert_checkpoint, read_checkpoint


class Touch:
    """A pickle that creates a file when it is read."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (self.path.touch, ())


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("place", ["beside", "args", "whole"])
def test_a_pickle_that_runs_something_is_refused_and_not_run(zipped, place, vit, tmp_path):
    path, touched = tmp_path / "natureCFP.pth", tmp_path / "touched"
    content = {"model": vit().state_dict(), "args": argparse.Namespace(model="x")}
    if place == "beside":
        content["scaler"] = Touch(touched)
    elif place == "args":
        content["args"].hook = Touch(touched)
    else:
        content = Touch(touched)
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(path, tmp_path / "out")
    assert "getattr" in str(error.value)
    assert "safe_globals" not in str(error.value)  # no advice to let it through
    assert not touched.exists()
    assert {file.name for file in tmp_path.iterdir()} == {"natureCFP.pth"}
    torch.load(path, weights_only=False)
    assert touched.exists()  # the trap was a working one


@pytest.mark.parametrize("zipped", [True, False])
def test_nested_namespaces_and_plain_values_pass(zipped, vit, tmp_path):
    args = argparse.Namespace(
        lr=1e-3, names=["a", "b"], sizes=(1, 2), none=None, flag=True, inner=argparse.Namespace(depth=24, name="x")
    )
    path = tmp_path / "natureCFP.pth"
    torch.save({"model": vit().state_dict(), "args": args, "epoch": 3}, path, _use_new_zipfile_serialization=zipped)
    checkpoint = read_checkpoint(path)
    assert checkpoint.args["inner"].depth == 24 and checkpoint.args["sizes"] == (1, 2)
    assert checkpoint.origin == "model"
    convert_checkpoint(path, tmp_path / "out")


def test_a_bare_state_dict_passes(vit, tmp_path):
    torch.save(vit().state_dict(), tmp_path / "natureCFP.pth")
    checkpoint = read_checkpoint(tmp_path / "natureCFP.pth")
    assert checkpoint.origin is None and checkpoint.args == {}
    convert_checkpoint(tmp_path / "natureCFP.pth", tmp_path / "out")


def broken(kind: str, path: Path, state: dict[str, torch.Tensor]) -> None:
    if kind == "text":
        path.write_text("not weights, but a long enough text to be read as one\n" * 20)
    elif kind == "page":
        path.write_text("<!DOCTYPE html><html><body>Sign in</body></html>")
    elif kind == "pointer":
        path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0000\nsize 12\n")
    elif kind == "empty":
        path.touch()
    else:
        torch.save({"model": state}, path, _use_new_zipfile_serialization=kind == "zip cut short")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])


@pytest.mark.parametrize("kind", ["text", "page", "pointer", "empty", "zip cut short", "legacy cut short"])
def test_files_that_are_no_checkpoint(kind, vit, tmp_path):
    path = tmp_path / "natureCFP.pth"
    broken(kind, path, vit().state_dict())
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(path, tmp_path / "out")
    assert error.value.model == str(path) and "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([1, 2], "list"),
        ({"epoch": 3, "lr": 0.1}, "epoch, lr"),
        ({"model": {}}, "nothing"),
        ({"model": {"a": torch.zeros(1), "b": 3}}, "b"),
        ({"a": torch.zeros(1)}, "such as a)"),
    ],
)
def test_files_without_weights_of_retfound(content, found, tmp_path):
    torch.save(content, tmp_path / "natureCFP.pth")
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(tmp_path / "natureCFP.pth", tmp_path / "out")
    assert found in str(error.value)


def test_missing_file(tmp_path):
    for source in (tmp_path / "cfp.pth", tmp_path):
        with pytest.raises(BadModelError) as error:
            convert_checkpoint(source, tmp_path / "out", modality="cfp")
        assert error.value.model == str(source)


@pytest.mark.parametrize("stop", [RuntimeError("disk full"), KeyboardInterrupt()])
@pytest.mark.parametrize("step", ["save_file", "write_converted_card"])
def test_a_stopped_conversion_leaves_nothing(stop, step, vit, save, tmp_path, monkeypatch):
    path = save(vit().state_dict())

    def fail(*_, **__):
        raise stop

    monkeypatch.setattr(convert, step, fail)
    with pytest.raises(type(stop)):
        convert_checkpoint(path, tmp_path / "deep" / "out")
    assert list((tmp_path / "deep").iterdir()) == []


def test_a_stopped_conversion_keeps_the_folder_it_would_have_replaced(vit, save, tmp_path, monkeypatch):
    path, out = save(vit().state_dict()), tmp_path / "out"
    convert_checkpoint(path, out)
    before = (out / "model.safetensors").read_bytes()
    monkeypatch.setattr(convert, "write_converted_card", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        convert_checkpoint(path, out, overwrite=True)
    assert (out / "model.safetensors").read_bytes() == before
    assert {file.name for file in tmp_path.iterdir()} == {path.name, "out"}


def test_existing_output_is_refused_before_anything_is_read(vit, save, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        convert_checkpoint(tmp_path / "absent.pth", out)
    assert (out / "notes.txt").read_text() == "mine"
    convert_checkpoint(save(vit().state_dict()), out, overwrite=True)
    assert not (out / "notes.txt").exists() and (out / "model.safetensors").exists()


def test_card_tells_source_licence_and_preprocessing(vit, save, tmp_path):
    path = save(vit().state_dict())
    card = (convert_checkpoint(path, tmp_path / "my-model") / "README.md").read_text()
    assert hashlib.sha256(path.read_bytes()).hexdigest() in card
    assert "RETFound_mae_natureCFP.pth" in card
    _, front, body = card.split("---\n", 2)
    metadata = yaml.safe_load(front)
    assert metadata["license"] == "cc-by-nc-4.0"
    assert metadata["library_name"] == "transformers" and "retfound" in metadata["tags"]
    assert metadata["pipeline_tag"] == "image-feature-extraction"
    assert "{{" not in card and "{%" not in card
    assert "colour fundus photographs" in body and 'from_pretrained("my-model")' in body
    assert "73 x 73 pixels" in body and "64 x 64" in body


def test_folder_is_readable_by_others(vit, save, tmp_path):
    folder = convert_checkpoint(save(vit().state_dict()), tmp_path / "out")
    reference = tmp_path / "reference"
    reference.mkdir()
    assert folder.stat().st_mode == reference.stat().st_mode
