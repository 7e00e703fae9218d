"""Converted weights compute what timm and torchvision compute with the official files."""

import json
from functools import partial

import pytest
import torch
import transformers
import yaml
from timm.models.vision_transformer import VisionTransformer
from torch.nn import functional
from torchvision.models.resnet import Bottleneck, ResNet, resnet50
from transformers import AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoModelForPreTraining

from retfound_hf import RetFoundForImageClassification, RetFoundModel
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.models.conversion import convert_checkpoint, main
from retfound_hf.models.key_tables import encoder_rows, pair, rename, resnet_rows
from retfound_hf.options import run_command
from retfound_hf.pretraining.arguments import ModelArguments
from retfound_hf.pretraining.objectives.base import build_encoder

close = partial(torch.testing.assert_close, atol=1e-4, rtol=0)
very_close = partial(torch.testing.assert_close, atol=1e-5, rtol=0)


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


@pytest.mark.parametrize("mask_ratio", [0.75, 0.85])
def test_autoencoder_loss_of_the_stock_class(mask_ratio, autoencoder, save, images, tmp_path):
    path = save(autoencoder.state_dict(), mask_ratio=mask_ratio, norm_pix_loss=True)
    folder = convert_checkpoint(path, tmp_path / "out")
    noise = torch.rand(3, 16, generator=torch.Generator().manual_seed(2))
    expected = autoencoder(images(3), noise, mask_ratio).item()
    for cls in (transformers.ViTMAEForPreTraining, AutoModelForPreTraining):
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
    assert type(model) is transformers.Dinov2Model
    assert not report["missing_keys"] and not report["unexpected_keys"]
    pixels = images(1, 518)
    with torch.no_grad():
        close(model.eval()(pixels).last_hidden_state, official.forward_features(pixels))
        processor = AutoImageProcessor.from_pretrained(folder)
        assert dict(processor.size) == {"height": 224, "width": 224} and processor.do_fundus_crop
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


def test_half_precision_sources_become_float32(vit, save, tmp_path):
    official = vit()
    state = {name: tensor.half() for name, tensor in official.state_dict().items()}
    model = RetFoundModel.from_pretrained(convert_checkpoint(save(state), tmp_path / "out"))
    assert model.dtype == torch.float32
    torch.testing.assert_close(model.embeddings.cls_token, official.cls_token.half().float())


NORM = partial(torch.nn.LayerNorm, eps=1e-6)


def with_statistics(network: ResNet) -> ResNet:
    """Batch norms that are no identity: random scales, shifts, running means and variances."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low in ((module.weight, 0.3), (module.running_var, 0.5), (module.bias, -0.2)):
                    tensor.uniform_(low, low + 0.5, generator=generator)
                module.running_mean.uniform_(-0.3, 0.3, generator=generator)
                module.num_batches_tracked.fill_(7)
    return network.eval()


def feature_map(network: ResNet, pixels: torch.Tensor) -> torch.Tensor:
    """(batch, channels, height, width) before the mean over places."""
    for name, module in network.named_children():
        if name == "avgpool":
            return pixels
        pixels = module(pixels)
    raise AssertionError


@pytest.fixture
def small():
    torch.manual_seed(0)
    return with_statistics(ResNet(Bottleneck, [2, 1, 1, 2]))


def encoder_of(network, prefix="") -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in network.state_dict().items() if not name.startswith("fc.")}


def prefixed(state, prefix):
    return {f"{prefix}{name}": value for name, value in state.items()}


def head(*names):
    return {name: torch.zeros(4, 3) for name in names}


def written(content, tmp_path, name="file.pth.tar"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@torch.no_grad()
@pytest.mark.slow
def test_swav_s_resnet_50_is_torchvision_s_on_the_last_map(images, tmp_path):
    torch.manual_seed(0)
    official = with_statistics(resnet50())
    state = encoder_of(official, "module.")
    state |= head(
        "module.projection_head.0.weight", "module.projection_head.1.running_var", "module.prototypes.weight"
    )
    path = written(state, tmp_path, "swav_800ep_pretrain.pth.tar")
    folder = convert_checkpoint(path, tmp_path / "out")
    path.unlink()
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert type(model) is transformers.ResNetModel
    assert not report["missing_keys"] and not report["unexpected_keys"] and not report["mismatched_keys"]
    pixels = images(2, 224)
    expected = feature_map(official, pixels)
    assert expected.shape == (2, 2048, 7, 7) and expected.std() > 0.1
    very_close(model.eval()(pixels).last_hidden_state, expected)
    assert len(model.state_dict()) == len(state) - 3
    start = build_encoder(ModelArguments(model_name_or_path=str(folder), modality="cfp"))
    very_close(start.eval()(pixels).last_hidden_state, expected)
    assert (start.config.image_size, start.config.modality) == (224, "cfp")


LAYOUTS = {
    "flat": lambda e: {**e, **head("fc.weight", "fc.bias")},
    "module": lambda e: {"state_dict": {**prefixed(e, "module."), **head("module.fc.0.weight")}, "epoch": 3},
    "encoder": lambda e: {"state_dict": {**prefixed(e, "encoder."), **head("projector.0.weight")}},
    "backbone": lambda e: {"state_dict": {**prefixed(e, "backbone."), **head("backbone.fc.2.bias")}, "arch": "x"},
    "encoder_q": lambda e: {
        "state_dict": {
            **prefixed(e, "module.encoder_q."),
            **{f"module.encoder_k.{name}": value * 0 for name, value in e.items()},
            **head("module.encoder_q.fc.0.weight", "module.queue", "module.queue_ptr"),
        }
    },
    "model": lambda e: {"model": {**prefixed(e, "encoder.module."), **head("head.0.weight")}},
    "vissl": lambda e: {
        "classy_state_dict": {"base_model": {"model": {"trunk": prefixed(e, "_feature_blocks."), "heads": {}}}}
    },
}


@torch.no_grad()
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_resnet_in_any_layout(layout, small, images, tmp_path):
    path = written(LAYOUTS[layout](encoder_of(small)), tmp_path)
    model = AutoModel.from_pretrained(convert_checkpoint(path, tmp_path / "out"))
    pixels = images(2, 64)
    very_close(model.eval()(pixels).last_hidden_state, feature_map(small, pixels))
    assert model.state_dict()["encoder.stages.3.layers.1.layer.2.normalization.num_batches_tracked"] == 7


def test_running_statistics_and_counters_train_on_as_torchvision_s(small, images, tmp_path):
    """A step in training mode would change other statistics if they were mapped wrongly."""
    model = transformers.ResNetModel.from_pretrained(
        convert_checkpoint(written(encoder_of(small), tmp_path), tmp_path / "out")
    )
    pixels = images(4, 64)
    model.train()(pixels)
    feature_map(small.train(), pixels)
    for name, tensor in rename(encoder_of(small), resnet_rows(encoder_of(small))).items():
        torch.testing.assert_close(model.state_dict()[name], tensor, atol=1e-5, rtol=1e-5)


def test_counters_may_be_absent_and_nothing_else(small, tmp_path):
    state = {name: value for name, value in encoder_of(small).items() if not name.endswith("num_batches_tracked")}
    model = transformers.ResNetModel.from_pretrained(convert_checkpoint(written(state, tmp_path), tmp_path / "out"))
    assert model.state_dict()["embedder.embedder.normalization.num_batches_tracked"] == 0
    for name in ("layer2.0.bn1.running_mean", "layer3.0.downsample.0.weight", "bn1.weight", "layer4.1.conv2.weight"):
        assert name in refused({other: value for other, value in state.items() if other != name}, tmp_path)
    assert "layer2.0.se.weight" in refused({**state, "layer2.0.se.weight": torch.zeros(3)}, tmp_path)
    assert "(64, 3, 7, 7)" in refused({**state, "conv1.weight": torch.zeros(64, 3, 3, 3)}, tmp_path)
    assert not (tmp_path / "no").exists()


def refused(state, tmp_path) -> str:
    with pytest.raises(BadModelError) as error:
        convert_checkpoint(written(state, tmp_path), tmp_path / "no")
    return str(error.value)


def moco(vit):
    """A checkpoint of MoCo v3: both encoders with their projectors, the momentum encoder with other weights."""
    state = vit.state_dict()
    return {
        "epoch": 300, "arch": "vit_small",
        "state_dict": {
            **prefixed(state, "module.base_encoder."),
            **{f"module.momentum_encoder.{name}": value * 0.5 for name, value in state.items()},
            **head("module.base_encoder.head.0.weight", "module.base_encoder.head.1.running_mean"),
            **head("module.momentum_encoder.head.0.weight", "module.predictor.0.weight"),
        },
        "optimizer": {"state": {}, "param_groups": []}
    }  # fmt: skip


def dino(vit):
    """A full checkpoint of DINO: the student with other weights, the heads of both."""
    state, heads = vit.state_dict(), head("head.mlp.0.weight", "head.last_layer.weight_g")
    return {
        "student": {**{f"module.backbone.{name}": value * 0.5 for name, value in state.items()}},
        "teacher": {**prefixed(state, "backbone."), **heads}, "dino_loss": {"center": torch.zeros(1, 3)}, "epoch": 100
    }  # fmt: skip


VITS = {
    "moco_v3": (moco, "cc-by-nc-4.0"),
    "dino": (dino, "apache-2.0"),
    "dino, wrapped": (lambda vit: {"teacher": prefixed(dino(vit)["teacher"], "module.")}, "apache-2.0"),
    "dino, backbone alone": (lambda vit: vit.state_dict(), "apache-2.0"),
}


@torch.no_grad()
@pytest.mark.parametrize("kind", VITS)
def test_a_vit_of_each_method(kind, vit, images, tmp_path):
    official = vit()
    content, licence = VITS[kind]
    path = written(content(official), tmp_path, "dino_vitbase16_pretrain.pth" if "alone" in kind else "x.pth.tar")
    folder = convert_checkpoint(path, tmp_path / "out")
    model, report = AutoModel.from_pretrained(folder, output_loading_info=True)
    assert isinstance(model, RetFoundModel) and not report["missing_keys"] and not report["unexpected_keys"]
    expected = official.forward_features(images())
    very_close(model.eval()(images()).last_hidden_state, expected)
    config = json.loads((folder / "config.json").read_text())
    assert config.get("modality") is None and config["weights_license"] == licence and config["encoder_only"]
    assert yaml.safe_load((folder / "README.md").read_text().split("---\n")[1])["license"] == licence
    start = build_encoder(ModelArguments(model_name_or_path=str(folder), modality="oct"))
    assert start.config.modality == "oct"
    very_close(start.eval()(images()).last_hidden_state, expected)


SIZES = {
    "moco-S": (384, 12, moco), "dino-S": (384, 6, dino), "moco-B": (768, 12, moco), "dino-B": (768, 12, dino),
    "moco-L": (1024, 16, moco), "moco-H": (1280, 16, moco),
}  # fmt: skip


@torch.no_grad()
@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=pytest.mark.slow if size[-1] in "LH" else ()) for size in SIZES]
)
def test_heads_of_the_released_sizes(size, images, tmp_path):
    """MoCo v3's ViT-S has twelve heads and DINO's six, of which no tensor tells."""
    width, heads, content = SIZES[size]
    torch.manual_seed(0)
    official = VisionTransformer(
        img_size=32, patch_size=16, embed_dim=width, depth=2, num_heads=heads, num_classes=0, norm_layer=NORM
    ).eval()
    for block in official.blocks:
        block.attn.qkv.weight.mul_(10)  # attention that is far from even, so that heads matter
    path = written(content(official), tmp_path)
    model = AutoModel.from_pretrained(convert_checkpoint(path, tmp_path / "out")).eval()
    assert model.config.num_attention_heads == heads
    very_close(model(images(2, 32)).last_hidden_state, official.forward_features(images(2, 32)))


def test_a_bare_vit_is_retfound_s_unless_it_is_said_to_be_none(vit, tmp_path):
    path = written(vit().state_dict(), tmp_path, "vit.pth")
    with pytest.raises(BadArgumentError) as error:
        convert_checkpoint(path, tmp_path / "out")
    assert error.value.field == "modality" and "none" in error.value.accepted
    folder = convert_checkpoint(path, tmp_path / "out", modality="none")
    config = json.loads((folder / "config.json").read_text())
    assert config.get("modality") is None and config.get("weights_license") is None
    assert (
        json.loads((convert_checkpoint(path, tmp_path / "b", "cfp") / "config.json").read_text())["modality"] == "cfp"
    )
    with pytest.raises(BadArgumentError) as error:
        convert_checkpoint(written(vit(classes=3).state_dict(), tmp_path, "vit.pth"), tmp_path / "c", "none")
    assert (error.value.value, error.value.accepted) == ("none", ("cfp", "oct"))


def test_one_s_own_resnet_keeps_its_modality(small, tmp_path):
    folder = convert_checkpoint(written(encoder_of(small), tmp_path, "simclr_oct.pth"), tmp_path / "out")
    assert AutoModel.from_pretrained(folder).config.modality == "oct"
    assert AutoImageProcessor.from_pretrained(folder).do_fundus_crop is False
    assert "license: unknown" in (folder / "README.md").read_text()


UNKNOWN = {
    "vit under state_dict": lambda vit, _: {"state_dict": prefixed(vit.state_dict(), "module.")},
    "other names": lambda *_: {"state_dict": head("features.0.weight", "features.1.weight")},
    "two resnets": lambda _, small: {"state_dict": {**encoder_of(small, "a."), **encoder_of(small, "b.")}},
}


@pytest.mark.parametrize(
    ("kind", "named"),
    [("vit under state_dict", "module.cls_token"), ("other names", "features.0.weight"), ("two resnets", "'a.', 'b.'")]
)  # fmt: skip
def test_what_is_none_of_these_is_said_in_one_line(kind, named, vit, small, tmp_path, capsys):
    path = written(UNKNOWN[kind](vit(), small), tmp_path)
    assert run_command(main, [str(path), str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and named in said and not (tmp_path / "out").exists()
