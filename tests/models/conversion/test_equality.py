"""Converted weights compute what an independent implementation, timm's, computes with the official file."""

import json

import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    Dinov2Model,
    ViTMAEForPreTraining,
)

from retfound_hf import RetFoundForImageClassification, RetFoundModel
from retfound_hf.models.conversion import convert_checkpoint
from retfound_hf.models.key_tables import encoder_rows, pair, rename


def close(found: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("width", "depth"), [(256, 5), pytest.param(1024, 24, marks=pytest.mark.slow)])
def test_features_and_logits_at_full_resolution(width, depth, vit, save, tokens, images, tmp_path):
    official = vit(classes=5, width=width, depth=depth, size=224)
    pixels = images(2, 224)
    with torch.no_grad():
        encoded = tokens(official, pixels)
        features = functional.layer_norm(encoded[:, 1:].mean(dim=1), (width,), eps=1e-6)
        logits = official.head(official.fc_norm(encoded[:, 1:].mean(dim=1)))
        path = save(official.state_dict(), "checkpoint-best.pth", model="vit_large_patch16")
        del official
        folder = convert_checkpoint(path, tmp_path / "large", modality="cfp")
        path.unlink()
        model = RetFoundForImageClassification.from_pretrained(folder).eval()
        found = model.vit(pixels)
        assert features.std() > 0.5 and logits.std() > 0.1
        close(found.pooler_output, features)
        close(model(pixels).logits, logits)
    (folder / "model.safetensors").unlink()  # 1.2 GB that pytest would keep


def test_encoder_forward(vit, save, tokens, images, tmp_path):
    official = vit()
    folder = convert_checkpoint(save(official.state_dict()), tmp_path / "out")
    out = AutoModel.from_pretrained(folder).eval()(images())
    encoded = tokens(official, images())
    close(out.last_hidden_state, official.norm(encoded))
    close(out.last_hidden_state, official.forward_features(images()))
    close(out.pooler_output, functional.layer_norm(encoded[:, 1:].mean(dim=1), (128,), eps=1e-6))


@pytest.mark.parametrize(("generation", "norms"), [("vit_large_patch16", 1), ("RETFound_mae", 2)])
def test_classifier_of_both_generations_forward_and_gradients(generation, norms, vit, save, tokens, images, tmp_path):
    official = vit(classes=3)
    path = save(official.state_dict(), "checkpoint-best.pth", model=generation)
    model = AutoModelForImageClassification.from_pretrained(
        convert_checkpoint(path, tmp_path / "out", modality="cfp")
    ).eval()
    results = []
    for run in (model, official):
        pixels = images().requires_grad_()
        if run is model:
            logits = model(pixels).logits
        else:
            features = tokens(official, pixels)[:, 1:].mean(dim=1)
            for _ in range(norms):
                features = official.fc_norm(features)
            logits = official.head(features)
        logits.square().sum().backward()
        results.append((logits, pixels.grad))
    close(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1], atol=1e-4, rtol=1e-4)
    if norms == 1:
        close(results[0][0], official(images()))  # timm's own classifier is the one of 2023
    rows = [*encoder_rows(128, 512, 2, 16, 17), *pair("fc_norm", "fc_norm", 128), *pair("head", "classifier", 3, 128)]
    expected = rename({name: parameter.grad for name, parameter in official.named_parameters()}, rows)
    for name, gradient in expected.items():
        assert gradient.abs().max() > 0
        found = model.get_parameter(name).grad
        torch.testing.assert_close(found, gradient, atol=1e-4, rtol=1e-3, msg=lambda text, n=name: f"{n}: {text}")


def test_the_generations_differ_on_the_same_weights(vit, save, images, tmp_path):
    path = save(vit(classes=3).state_dict(), "checkpoint-best_oct.pth")
    logits = [
        AutoModelForImageClassification.from_pretrained(
            convert_checkpoint(path, tmp_path / asked, head_norm=asked)
        ).eval()(images()).logits
        for asked in ("single", "double")
    ]  # fmt: skip
    assert (logits[0] - logits[1]).abs().max() > 1e-2


@pytest.mark.parametrize("mask_ratio", [0.75, 0.85])
def test_autoencoder_loss_of_the_stock_class(mask_ratio, autoencoder, save, images, tmp_path):
    path = save(autoencoder.state_dict(), mask_ratio=mask_ratio, norm_pix_loss=True)
    folder = convert_checkpoint(path, tmp_path / "out")
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    expected = autoencoder(images(3), noise, mask_ratio).item()
    for cls in (ViTMAEForPreTraining, AutoModelForPreTraining):
        model, report = cls.from_pretrained(folder, output_loading_info=True)
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert model.eval()(images(3), noise=noise).loss.item() == pytest.approx(expected, rel=1e-5)


def test_autoencoder_without_saved_arguments_takes_the_ratio_of_its_modality(autoencoder, tmp_path):
    for name, ratio in (("RETFound_cfp_weights.pth", 0.75), ("RETFound_oct_weights.pth", 0.85)):
        torch.save({"model": autoencoder.state_dict()}, tmp_path / name)
        folder = convert_checkpoint(tmp_path / name, tmp_path / name[:-4])
        config = json.loads((folder / "config.json").read_text())
        assert (config["mask_ratio"], config["norm_pix_loss"]) == (ratio, True)
        assert config["modality"] == name.split("_")[1]
        assert config["architectures"] == ["RetFoundForPreTraining"] and config["encoder_only"] is False


def dinov2_teacher(model) -> dict[str, torch.Tensor]:
    """The teacher's state dict as DINOv2 saves it, with the heads of its losses."""
    names = {"mlp.fc1.": "mlp.w12.", "mlp.fc2.": "mlp.w3."}
    state = {}
    for name, tensor in model.state_dict().items():
        for plain, saved in names.items():
            name = name.replace(plain, saved)
        state[f"backbone.{name}"] = tensor
    state["backbone.mask_token"] = torch.zeros(1, 128)
    state["dino_head.mlp.0.weight"] = torch.zeros(7, 5)
    state["dino_head.last_layer.weight_g"] = torch.zeros(7)
    state["ibot_head.mlp.0.bias"] = torch.zeros(2)
    return state


def test_dinov2_becomes_a_stock_folder(vit, save, images, tmp_path):
    official = vit(patch=14, size=518, init_values=0.3)
    assert official.pos_embed.shape == (1, 1 + 37 * 37, 128)
    path = save(dinov2_teacher(official), "RETFound_dinov2_meh.pth", key="teacher")
    folder = convert_checkpoint(path, tmp_path / "out", modality="cfp")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is Dinov2Model
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixels = images(1, 518)
    with torch.no_grad():
        close(model.eval()(pixels).last_hidden_state, official.forward_features(pixels))
        processor = AutoImageProcessor.from_pretrained(folder)
        assert dict(processor.crop_size) == {"height": 224, "width": 224} and processor.do_fundus_crop
        assert model(images(1, 224)).last_hidden_state.shape == (1, 1 + 16 * 16, 128)


@pytest.mark.parametrize("names", ["plain", "w12"])
def test_dinov2_under_either_name_of_the_mlp(names, vit, save, tmp_path):
    official = vit(patch=14, size=56, init_values=0.3)
    state = dinov2_teacher(official)
    if names == "plain":
        state = {name.replace("w12", "fc1").replace("w3", "fc2"): tensor for name, tensor in state.items()}
    folder = convert_checkpoint(save(state, key="teacher"), tmp_path / "out")
    weights = AutoModel.from_pretrained(folder).state_dict()
    assert torch.equal(weights["encoder.layer.1.mlp.fc1.weight"], official.blocks[1].mlp.fc1.weight)


def test_q_k_and_v_are_the_thirds_in_this_order(vit, save, tmp_path):
    official = vit()
    model = RetFoundModel.from_pretrained(convert_checkpoint(save(official.state_dict()), tmp_path / "out"))
    attention, fused = model.encoder.layer[1].attention.attention, official.blocks[1].attn.qkv.weight
    for index, layer in enumerate((attention.query, attention.key, attention.value)):
        assert torch.equal(layer.weight, fused[128 * index : 128 * (index + 1)])


def test_half_precision_sources_become_float32(vit, save, tmp_path):
    official = vit()
    state = {name: tensor.half() for name, tensor in official.state_dict().items()}
    model = RetFoundModel.from_pretrained(convert_checkpoint(save(state), tmp_path / "out"))
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.embeddings.cls_token, official.cls_token.half().float())
