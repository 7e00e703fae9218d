"""What a file is told to be, and what is said when it cannot be told."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModelForPreTraining

from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.models.conversion import convert_checkpoint, modality_of
from retfound_hf.models.key_tables import decoder_rows, dinov2_rows, encoder_rows, pair


@pytest.mark.parametrize(
    ("name", "modality"),
    [
        ("RETFound_mae_natureCFP.pth", "cfp"),
        ("YukunZhou/RETFound_mae_natureOCT", "oct"),
        ("RETFound_cfp_weights.pth", "cfp"),
        ("oct.pth", "oct"),
        ("RETFound_mae_meh.pth", None),
        ("RETFound_dinov2_shanghai.pth", None),
        ("cfp_and_oct.pth", None),
        ("/home/doctor/October/checkpoint-best.pth", None),
    ],
)
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


def test_encoder_only_says_so_when_asked_for_pretraining(vit, save, tmp_path):
    folder = convert_checkpoint(save(vit().state_dict()), tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder_only"] is True and config["architectures"] == ["RetFoundModel"]
    with pytest.raises(BadModelError):
        AutoModelForPreTraining.from_pretrained(folder)


def fine_tuned(vit, save, **args):
    return save(vit(classes=3).state_dict(), "checkpoint-best_cfp.pth", **args)


@pytest.mark.parametrize(
    ("saved", "asked", "kept"),
    [
        ("vit_large_patch16", "auto", "single"),
        ("RETFound_mae", "auto", "double"),
        ("vit_large_patch16", "double", "double"),
        ("RETFound_mae", "single", "single"),
        ("my_model", "double", "double"),
    ],
)
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
    assert dict(processor.size) == {"shortest_edge": 73 if size == 64 else 384}
    assert dict(processor.crop_size) == {"height": size, "width": size}


def test_pretrained_processor_crops_fundus_images_to_the_network_s_input(vit, save, tmp_path):
    processor = AutoImageProcessor.from_pretrained(
        convert_checkpoint(save(vit(size=224).state_dict()), tmp_path / "a")
    )
    assert processor.do_fundus_crop is True
    assert dict(processor.size) == {"height": 256, "width": 256}
    assert dict(processor.crop_size) == {"height": 224, "width": 224}


CASES = ["blocks.1.attn.qkv.weight", "norm.bias", "decoder_blocks.0.mlp.fc2.bias", "patch_embed.proj.weight"]


@pytest.mark.parametrize("name", [*CASES, "pos_embed", "cls_token"])
def test_missing_tensor_is_named(name, autoencoder, save, tmp_path):
    state = autoencoder.state_dict()
    del state[name]
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state), tmp_path / "out")
    assert name in str(error.value)
    assert not (tmp_path / "out").exists()


def test_many_missing_tensors_are_counted(autoencoder, save, tmp_path):
    state = {
        name: tensor for name, tensor in autoencoder.state_dict().items() if "blocks.0." not in name or "fc1" in name
    }
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state), tmp_path / "out")
    assert "15 more" in str(error.value)


@pytest.mark.parametrize("name", ["head_aux.weight", "blocks.1.attn.rel_pos", "register_tokens"])
def test_unexpected_tensor_is_named(name, autoencoder, save, tmp_path):
    state = {**autoencoder.state_dict(), name: torch.zeros(3)}
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state), tmp_path / "out")
    assert name in str(error.value)


@pytest.mark.parametrize("name", CASES)
def test_mis_shaped_tensor_is_named_with_both_shapes(name, autoencoder, save, tmp_path):
    state = autoencoder.state_dict()
    shape = tuple(state[name].shape)
    state[name] = torch.zeros(5, *shape[1:])
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(save(state), tmp_path / "out")
    assert all(part in str(error.value) for part in (name, str((5, *shape[1:])), str(shape)))


def test_tables_name_every_source_and_target_once():
    tables = {
        "autoencoder": [
            *encoder_rows(1024, 4096, 24, 16, 197),
            *pair("norm", "vit.layernorm", 1024),
            *decoder_rows(1024, 512, 2048, 8, 16, 197),
        ],
        "dinov2": list(dinov2_rows(1024, 4096, 24, 14, 1370)),
    }
    for rows in tables.values():
        sources = [row.source for row in rows]
        targets = [target for row in rows for target in row.targets]
        assert len(set(sources)) == len(sources) and len(set(targets)) == len(targets)
    assert len(tables["autoencoder"]) == 398  # tensors of the official file
