"""Conversion: files recognised and refused, hostile or broken files, stops, Hub ids and the command."""

import argparse
import json
from pathlib import Path
from unittest.mock import MagicMock

import pytest
import torch
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor

from retfound_hf.errors import BadArgumentError, BadModelError, HubAccessError, OutputError
from retfound_hf.models import conversion as convert
from retfound_hf.models.conversion import convert_checkpoint, locate, main, modality_of, read_checkpoint
from retfound_hf.models.key_tables import configure, rename
from retfound_hf.options import run_command


@pytest.mark.parametrize(
    ("name", "modality"),
    [("RETFound_mae_natureCFP.pth", "cfp"), ("YukunZhou/RETFound_mae_natureOCT", "oct"),
     ("RETFound_cfp_weights.pth", "cfp"), ("oct.pth", "oct"), ("RETFound_mae_meh.pth", None),
     ("RETFound_dinov2_shanghai.pth", None), ("cfp_and_oct.pth", None),
     ("/home/doctor/October/checkpoint-best.pth", None)],
)  # fmt: skip
def test_modality_is_read_from_the_name(name, modality):
    assert modality_of(name) == modality


def test_undecidable_modality_is_asked_for(vit, save, tmp_path):
    path = save(vit().state_dict(), "RETFound_mae_meh.pth")
    for modality in (None, "mri"):
        with pytest.raises(BadArgumentError) as error:
            convert_checkpoint(path, tmp_path / "out", modality=modality)
        assert (error.value.field, error.value.value) == ("modality", modality)
        assert error.value.accepted == ("cfp", "oct", "none")
    folder = convert_checkpoint(path, tmp_path / "out", modality="oct")
    assert AutoConfig.from_pretrained(folder).modality == "oct"
    assert AutoImageProcessor.from_pretrained(folder).do_fundus_crop is False


def fine_tuned(vit, save, **args):
    return save(vit(classes=3).state_dict(), "checkpoint-best_cfp.pth", **args)


@pytest.mark.parametrize(
    ("saved", "asked", "kept"),
    [("vit_large_patch16", "auto", "single"), ("RETFound_mae", "auto", "double"),
     ("vit_large_patch16", "double", "double"), ("RETFound_mae", "single", "single"), ("my_model", "double", "double")]
)  # fmt: skip
def test_head_norm_is_kept_in_the_config(saved, asked, kept, vit, save, tmp_path):
    folder = convert_checkpoint(fine_tuned(vit, save, model=saved), tmp_path / "out", head_norm=asked)
    assert AutoConfig.from_pretrained(folder).head_norm == kept


@pytest.mark.parametrize("args", [{"model": "my_model"}, {}])
def test_unknown_generation_is_asked_for(args, vit, save, tmp_path):
    with pytest.raises(BadArgumentError) as error:
        convert_checkpoint(fine_tuned(vit, save, **args), tmp_path / "out")
    assert error.value.field == "head_norm"


def test_class_names_are_kept(vit, save, tmp_path):
    names = ["none", "mild", "severe"]
    path = fine_tuned(vit, save, model="RETFound_mae")
    config = AutoConfig.from_pretrained(convert_checkpoint(path, tmp_path / "out", class_names=names))
    assert config.id2label == dict(enumerate(names)) and config.label2id["severe"] == 2
    assert config.problem_type == "single_label_classification" and config.num_labels == 3
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert "class_names" not in written
    unnamed = AutoConfig.from_pretrained(convert_checkpoint(path, tmp_path / "unnamed"))
    assert unnamed.id2label == {0: "LABEL_0", 1: "LABEL_1", 2: "LABEL_2"}


def test_wrong_number_of_class_names(vit, save, tmp_path):
    for path in (fine_tuned(vit, save, model="RETFound_mae"), save(vit().state_dict())):
        with pytest.raises(BadArgumentError) as error:
            convert_checkpoint(path, tmp_path / "out", class_names=["a", "b"])
        assert error.value.field == "class_names"


def test_classifier_on_the_class_token_is_refused(vit, save, tmp_path):
    state = {name.replace("fc_norm.", "norm."): tensor for name, tensor in vit(classes=3).state_dict().items()}
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state, model="RETFound_mae"), tmp_path / "out")
    assert "fc_norm" in str(error.value)


@pytest.mark.parametrize("size", [64, 384])
def test_fine_tuned_processor_is_the_official_evaluation_transform(size, vit, save, tmp_path):
    """No fundus crop; the shorter side resized to 256/224 of the input, or above 224 to the input itself."""
    state = vit(classes=3, size=size).state_dict()
    path = save(state, "checkpoint-best_cfp.pth", model="RETFound_mae")
    processor = AutoImageProcessor.from_pretrained(convert_checkpoint(path, tmp_path / "out"))
    assert processor.do_fundus_crop is False
    assert processor.resized_size == {"shortest_edge": 73 if size == 64 else 384}
    assert dict(processor.size) == {"height": size, "width": size}


CASES = ["blocks.1.attn.qkv.weight", "norm.bias", "decoder_blocks.0.mlp.fc2.bias", "patch_embed.proj.weight"]


@pytest.mark.parametrize(
    ("name", "damage"),
    [*((name, "missing") for name in [*CASES, "pos_embed", "cls_token"]), *((name, "mis-shaped") for name in CASES),
     *((name, "unexpected") for name in ("head_aux.weight", "blocks.1.attn.rel_pos", "register_tokens"))],
)  # fmt: skip
def test_a_tensor_that_does_not_fit_is_named(name, damage, autoencoder, save, tmp_path):
    state = autoencoder.state_dict()
    named = [name]
    if damage == "missing":
        del state[name]
    elif damage == "unexpected":
        state[name] = torch.zeros(3)
    else:
        shape = tuple(state[name].shape)
        state[name] = torch.zeros(5, *shape[1:])
        named += [str(shape), str((5, *shape[1:]))]
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state), tmp_path / "out")
    assert all(part in str(error.value) for part in named) and not (tmp_path / "out").exists()


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


def test_tensors_of_one_memory_are_written_apart_and_others_without_a_copy(vit, tmp_path):
    state = vit().state_dict()
    both = torch.stack([state["blocks.0.norm1.weight"], state["blocks.0.norm2.weight"]])
    state["blocks.0.norm1.weight"], state["blocks.0.norm2.weight"] = both  # two views of one storage
    state["blocks.1.norm2.weight"] = state["blocks.1.norm1.weight"]
    torch.save(state, tmp_path / "natureCFP.pth")
    written = load_file(convert_checkpoint(tmp_path / "natureCFP.pth", tmp_path / "out") / "model.safetensors")
    for name, key in (
        ("0.layernorm_before", "0.norm1"),
        ("0.layernorm_after", "0.norm2"),
        ("1.layernorm_after", "1.norm1"),
    ):
        (found,) = (tensor for target, tensor in written.items() if target.endswith(f"layer.{name}.weight"))
        assert torch.equal(found, state[f"blocks.{key}.weight"])
    file = convert.recognise(read_checkpoint(tmp_path / "natureCFP.pth"), "cfp")
    rows = configure(file.kind, file.state, "cfp", file.args)[1]
    places = {tensor.data_ptr() for tensor in file.state.values()}
    shared = {name: tensor.data_ptr() in places for name, tensor in rename(file.state, rows).items()}
    assert sum(shared.values()) > len(shared) / 2  # of query, key and value the first begins where the whole did


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
    [([1, 2], "list"), ({"epoch": 3, "lr": 0.1}, "epoch, lr"), ({"model": {}}, "nothing"),
     ({"model": {"a": torch.zeros(1), "b": 3}}, "b"), ({"a": torch.zeros(1)}, "such as a)")],
)  # fmt: skip
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


def test_folder_is_readable_by_others(vit, save, tmp_path):
    folder = convert_checkpoint(save(vit().state_dict()), tmp_path / "out")
    reference = tmp_path / "reference"
    reference.mkdir()
    assert folder.stat().st_mode == reference.stat().st_mode


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
    [(answer(GatedRepoError, "403", 403), 403), (answer(RepositoryNotFoundError, "404", 404), 404),
     (LocalEntryNotFoundError("offline"), None), (answer(HfHubHTTPError, "503 busy", 503), 503)],
    ids=["gated", "unknown", "offline", "other"],
)  # fmt: skip
def test_what_the_hub_may_answer(hub, error, status, tmp_path):
    def fail(*_, **__):
        raise error

    hub(fail)
    with pytest.raises(HubAccessError) as found:
        convert_checkpoint(HUB_ID, tmp_path / "out")
    assert (found.value.repo_id, found.value.status) == (HUB_ID, status)
    assert not (tmp_path / "out").exists()


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
        "config.json", "model.safetensors", "preprocessor_config.json", "README.md", "run.json",
    }  # fmt: skip
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
    [(["absent_cfp.pth", "OUT"], "absent_cfp.pth does not exist"), (["absent.pth"], "required: OUT"),
     (["absent.pth", "OUT", "--modality", "mri"], "invalid choice: 'mri'"),
     (["absent.pth", "OUT", "--modalty", "cfp"], "unknown option --modalty; did you mean --modality?")],
)  # fmt: skip
def test_bad_input_is_one_line_and_status_2(words, message, tmp_path, capsys):
    words = [word.replace("OUT", str(tmp_path / "out")) for word in words]
    assert run_command(main, words) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ") and said.count("\n") == 1 and message in said
    assert list(tmp_path.iterdir()) == []
