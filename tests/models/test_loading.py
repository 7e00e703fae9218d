"""Starting points by name, and what is said where their weights are not at hand."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tiny import tiny_config
from transformers import AutoModel

from retfound_hf import RetFoundImageProcessor
from retfound_hf.errors import BadModelError
from retfound_hf.images.synthetic import draw_patient, render
from retfound_hf.models import loading
from retfound_hf.models.adapters import adapter_base
from retfound_hf.models.cards import hub_id_of, license_of
from retfound_hf.models.loading import (
    STARTING_POINTS,
    StartingPoint,
    find_starting_point,
    load_autoencoder,
    load_classifier,
    load_encoder,
    load_processor,
    resolve,
)


@pytest.fixture(autouse=True)
def empty_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_names_stand_for_published_weights():
    assert resolve("sl-imagenet") == "google/vit-large-patch16-224-in21k"
    assert resolve("ssl-imagenet") == "facebook/vit-mae-large"
    assert find_starting_point("sl-imagenet") is find_starting_point("google/vit-large-patch16-224-in21k")
    assert find_starting_point("retfound-cfp").license == "cc-by-nc-4.0"
    assert find_starting_point("somewhere/else") is None


@pytest.mark.parametrize("name", [*STARTING_POINTS, "retfound", "YukunZhou/RETFound_mae_meh"])
def test_a_folder_of_that_name_wins(empty_directory, name):
    (empty_directory / name).mkdir(parents=True)
    assert resolve(name) == name
    assert find_starting_point(name) is None


@pytest.mark.parametrize("name", ["my-folder", "runs/classifier", "facebook/dinov2-large", "/absolute"])
def test_other_names_pass(name):
    assert resolve(name) == name


@pytest.mark.parametrize(
    ("name", "command"),
    [*((row.name, row.make) for row in STARTING_POINTS.values() if row.make),
     *((row.hub_id, row.make) for row in STARTING_POINTS.values() if row.file),
     ("YukunZhou/another", "retfound convert_checkpoint YukunZhou/another FOLDER"),
     ("swav_800ep_pretrain.pth.tar", "retfound convert_checkpoint swav_800ep_pretrain.pth.tar FOLDER"),
     ("folder/model.safetensors", "give the folder, folder"), ("retfound", "retfound-cfp or retfound-oct")]
)  # fmt: skip
def test_what_has_to_be_made_first_says_how(empty_directory, name, command):
    from retfound_hf.cli import COMMANDS

    if "." in name:
        (empty_directory / "folder").mkdir()
        (empty_directory / "folder" / "config.json").write_text("{}")
        (empty_directory / name).write_bytes(b"PK")
    with pytest.raises(BadModelError) as error:
        resolve(name)
    assert error.value.model == name and command in str(error.value) and "\n" not in str(error.value)
    assert not command.startswith("retfound ") or command.split()[1] in COMMANDS


def test_a_row_added_at_run_time_is_taken(monkeypatch):
    monkeypatch.setitem(STARTING_POINTS, "mine", StartingPoint("mine", "Weights of mine", "org/mine", "mit"))
    assert resolve("mine") == "org/mine" and find_starting_point("org/mine").license == "mit"
    assert "mine" in loading.accepted_weights() and "--local-dir mine`" in loading.how_to_bring("org/mine")


def test_a_mistyped_starting_point_brings_the_right_one():
    assert "mean retfound-mini" in loading.how_to_bring("retfound-minni")
    assert "retfound fetch" in loading.how_to_bring("retfound-cfp") and "mean" not in loading.how_to_bring(
        "retfound-cfp"
    )


PACKAGED = [row.name for row in STARTING_POINTS.values() if row.folder]


@pytest.mark.parametrize("name", PACKAGED)
def test_weights_of_the_package_are_small_and_load_offline(name):
    file = Path(resolve(name)) / "model.safetensors"
    assert file.stat().st_size < 12e6
    assert {tensor.dtype for tensor in load_file(file).values()} == {torch.float16}
    encoder, autoencoder, processor = load_encoder(name), load_autoencoder(name), load_processor(name)
    assert {tensor.dtype for tensor in (*encoder.parameters(), *autoencoder.parameters())} == {torch.float32}
    assert processor.size.height == encoder.config.image_size
    assert AutoModel.from_pretrained(resolve(name)).dtype == torch.float32
    assert license_of(name) == "apache-2.0" and hub_id_of(name) is None
    assert name in (Path(resolve(name)) / "README.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", PACKAGED)
def test_weights_of_the_package_have_learned(name):
    """Hidden patches of an eye that they have not seen are painted better than by each patch's own mean."""
    model, processor = load_autoencoder(name), load_processor(name)
    eyes = [draw_patient(np.random.default_rng(seed), "cfp")[0] for seed in range(4)]
    pictures = [Image.fromarray(render(eye, "normal", 0, 128, np.random.default_rng(7)).image) for eye in eyes]
    pixels = processor(pictures, return_tensors="pt")["pixel_values"]
    torch.manual_seed(0)
    with torch.no_grad():
        learned, untrained = model(pixels).loss, type(model)(model.config).eval()(pixels).loss
    assert learned < 0.8 < 0.95 < untrained


def test_an_adapter_finds_the_weights_of_the_package_where_the_package_is_now(empty_directory):
    (empty_directory / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "/of/another/retfound_hf/models/weights/retfound-mini"}
    (empty_directory / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    assert adapter_base("adapter") == resolve("retfound-mini")


def test_the_guide_names_them():
    guide = (Path(__file__).parents[2] / "retfound_hf" / "models" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w/-]+)`", guide))
    assert {row.name for row in STARTING_POINTS.values() if not row.file} <= named


MODEL = {"image_size": 32, "patch_size": 8}
KINDS = {
    "cut": lambda text: text[:200], "empty": lambda text: "", "no object": lambda text: "[1, 2]",
    "nameless": lambda text: "{}", "no such type": lambda text: text.replace("RetFoundImage", "NoSuchImage"),
    "another type": lambda text: text.replace("RetFoundImage", "ViTImage"),
    "another kind": lambda text: text.replace("RetFoundImageProcessor", "Wav2Vec2FeatureExtractor"),
    "binary": lambda text: b"\xff\xfe" + text.encode(), "size of nothing": lambda text: text.replace(": 32", ": 0"),
    "mean of a word": lambda text: text.replace("0.485", '"red"'),
    "two channels": lambda text: text.replace("0.485,", ""),
    "no number": lambda text: text.replace("0.485", "NaN"),
    "sizes at odds": lambda text: text.replace('"crop_size": {\n    "height": 32', '"crop_size": {\n    "height": 31'),
}  # fmt: skip


@pytest.fixture
def folder_without_weights(empty_directory):
    tiny_config(**MODEL).save_pretrained(empty_directory / "model")
    RetFoundImageProcessor.for_image_size(32, do_fundus_crop=False).save_pretrained(empty_directory / "model")
    return empty_directory / "model"


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_or_foreign_processor_is_refused(folder_without_weights, kind):
    path = folder_without_weights / "preprocessor_config.json"
    text = path.read_text()
    changed = KINDS[kind](text)
    assert changed != text
    path.write_bytes(changed if isinstance(changed, bytes) else changed.encode())
    with pytest.raises(BadModelError) as error:
        load_processor(str(folder_without_weights))
    assert error.value.model == str(folder_without_weights) and "\n" not in str(error.value)


def test_the_default_processor_is_for_a_file_that_is_not_there(folder_without_weights):
    path = folder_without_weights / "preprocessor_config.json"
    assert not load_processor(str(folder_without_weights)).do_fundus_crop
    path.unlink()
    assert load_processor(str(folder_without_weights)).to_dict() == RetFoundImageProcessor.for_image_size(32).to_dict()
    path.symlink_to(folder_without_weights / "gone.json")
    with pytest.raises(BadModelError):
        load_processor(str(folder_without_weights))
    path.unlink()
    path.mkdir()
    with pytest.raises(BadModelError):
        load_processor(str(folder_without_weights))


@pytest.mark.parametrize("load", [load_classifier, load_encoder, load_autoencoder, load_processor])
@pytest.mark.parametrize("kind", ["mine", "vit"])
def test_code_of_a_folder_is_never_run(empty_directory, monkeypatch, load, kind):
    """Also where somebody's "y" is waiting for a question."""
    (empty_directory / "code.py").write_text(f"open({str(empty_directory / 'ran')!r}, 'w')\n")
    classes = {name: f"code.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForImageClassification",
                                                 "AutoModelForPreTraining", "AutoImageProcessor")}  # fmt: skip
    (empty_directory / "config.json").write_text(json.dumps({"model_type": kind, "auto_map": classes}))
    (empty_directory / "preprocessor_config.json").write_text(json.dumps({"auto_map": classes}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(BadModelError):
        load(str(empty_directory))
    assert not (empty_directory / "ran").exists()
