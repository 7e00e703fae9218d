"""Weights of stock classes in our networks: the same features, nothing lost, nothing random in silence."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTModel,
    ResNetConfig,
    ResNetModel,
    ViTConfig,
    ViTForImageClassification,
    ViTForMaskedImageModeling,
    ViTMAEConfig,
    ViTMAEModel,
    ViTModel,
)

from retfound_hf import RetFoundForImageClassification, RetFoundModel
from retfound_hf.errors import BadModelError
from retfound_hf.models.backbones import StockEncoderForImageClassification, StockEncoderModel
from retfound_hf.models.loading import load_network, network_config

SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
DINO = {**SIZES, "mlp_ratio": 2}
# name -> class, configuration, tokens before the patches
STOCK = {
    "vit": (ViTModel, ViTConfig(**SIZES, layer_norm_eps=1e-5), 1),
    "vit-no-bias": (ViTModel, ViTConfig(**SIZES, qkv_bias=False, hidden_act="relu"), 1),
    "vit-classifier": (ViTForImageClassification, ViTConfig(**SIZES, num_labels=3), 1),
    "vit-masked": (ViTForMaskedImageModeling, ViTConfig(**SIZES), 1),
    "vit_mae": (ViTMAEModel, ViTMAEConfig(**SIZES, mask_ratio=0.0), 1),
    "dinov2": (Dinov2Model, Dinov2Config(**DINO), 1),
    "dinov2-swiglu": (Dinov2Model, Dinov2Config(**DINO, use_swiglu_ffn=True), 1),
    "dinov2-classifier": (Dinov2ForImageClassification, Dinov2Config(**DINO, num_labels=3), 1),
    "dinov2-registers": (Dinov2WithRegistersModel, Dinov2WithRegistersConfig(**DINO, num_register_tokens=4), 5),
    "dinov3": (DINOv3ViTModel, DINOv3ViTConfig(**SIZES, num_register_tokens=4), 5),
    "dinov3-gated": (DINOv3ViTModel, DINOv3ViTConfig(**SIZES, num_register_tokens=2, use_gated_mlp=True), 3),
    "resnet": (ResNetModel, ResNetConfig(hidden_sizes=[16, 32], depths=[1, 2], embedding_size=8), 0),
}  # fmt: skip
PIXELS = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
LABELS = {"id2label": {0: "a", 1: "b", 2: "c"}, "label2id": {"a": 0, "b": 1, "c": 2}}


@pytest.fixture(params=STOCK)
def stock(request, tmp_path):
    """Folder, stock encoder in evaluation mode, and how many tokens stand before the patches."""
    return saved(request.param, tmp_path)


def saved(name, tmp_path):
    model_class, config, prefix = STOCK[name]
    torch.manual_seed(0)
    model = model_class(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # off the initial zeros and ones
            parameter += 0.05 * torch.randn_like(parameter)
    folder = tmp_path / name
    model.save_pretrained(folder)
    is_headed = "classifier" in name or "masked" in name
    return folder, getattr(model, model.base_model_prefix) if is_headed else model, prefix


def load(folder, classifier, **options):
    from transformers import AutoConfig

    own = AutoConfig.from_pretrained(folder)
    network, is_whole = load_network(str(folder), own, network_config(own, **options), classifier)
    return network.eval(), is_whole


def expected_tokens(model, pixels):
    if isinstance(model, ViTMAEModel):  # shuffles even when it hides nothing, unless told the order
        noise = torch.arange(float((pixels.shape[-1] // 8) ** 2)).expand(len(pixels), -1)
        return model(pixels, noise=noise).last_hidden_state
    return model(pixels).last_hidden_state


def test_features_equal_those_of_the_stock_class(stock):
    folder, model, prefix = stock
    encoder, _ = load(folder, classifier=False)
    is_retfound = "vit" in folder.name
    assert isinstance(encoder, RetFoundModel if is_retfound else StockEncoderModel)
    with torch.no_grad():
        outputs, expected = encoder(PIXELS), expected_tokens(model, PIXELS)
    assert torch.allclose(outputs.last_hidden_state, expected, atol=1e-5)
    if not is_retfound:
        patches = expected.flatten(2).transpose(1, 2) if expected.ndim == 4 else expected[:, prefix:]
        assert folder.name == "resnet" or patches.shape[1] == 16
        assert torch.allclose(outputs.patch_mean, patches.mean(dim=1), atol=1e-6)
    assert torch.allclose(outputs.pooler_output.mean(dim=1), torch.zeros(2), atol=1e-5)


def test_a_classifier_comes_back_from_its_folder(stock, tmp_path):
    folder, _, _ = stock
    model, is_whole = load(folder, classifier=True, drop_path_rate=0.2, **LABELS)
    assert not is_whole
    with torch.no_grad():
        for parameter in (*model.classifier.parameters(), *model.fc_norm.parameters()):
            parameter.normal_(generator=torch.Generator().manual_seed(0))
    model.save_pretrained(tmp_path / "saved")
    again = AutoModelForImageClassification.from_pretrained(tmp_path / "saved").eval()
    is_retfound = "vit" in folder.name
    assert type(again) is (RetFoundForImageClassification if is_retfound else StockEncoderForImageClassification)
    assert again.config.id2label == LABELS["id2label"]
    kept, is_whole = load(tmp_path / "saved", classifier=True)
    assert is_whole
    with torch.no_grad():
        assert torch.allclose(again(PIXELS).logits, model(PIXELS).logits, atol=1e-6)
        assert torch.equal(again(PIXELS).logits, kept(PIXELS).logits)
        encoder = AutoModel.from_pretrained(tmp_path / "saved").eval()
        assert torch.allclose(encoder(PIXELS).patch_mean, model.vit(PIXELS).patch_mean, atol=1e-6)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov2-registers", "dinov3", "resnet"])
def test_other_image_sizes_and_gradients(name, tmp_path):
    folder, _, _ = saved(name, tmp_path)
    model, _ = load(folder, classifier=True, drop_path_rate=0.5, **LABELS)
    if name != "resnet":  # which has none
        model.gradient_checkpointing_enable({"use_reentrant": False})
    torch.nn.init.normal_(model.classifier.weight)
    model.train()(torch.randn(4, 3, 48, 48), labels=torch.tensor([0, 1, 2, 0])).loss.backward()
    without = {
        name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None
    }
    assert {name.rsplit(".", 1)[-1] for name in without} <= {"mask_token"}


@pytest.mark.parametrize(
    ("name", "lost"), [("vit", "encoder.layer.1."), ("dinov3", "layer.1."), ("vit_mae", "layernorm.")]
)
def test_weights_that_are_missing_are_refused(name, lost, tmp_path):
    folder, _, _ = saved(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    kept = {key: value for key, value in tensors.items() if not key.removeprefix("vit.").startswith(lost)}
    assert len(kept) < len(tensors)
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    for classifier in (True, False):
        with pytest.raises(BadModelError) as error:
            load(folder, classifier)
        assert f"lacks {len(tensors) - len(kept)} tensors" in str(error.value)


@pytest.mark.parametrize("name", ["vit", "dinov2", "dinov3"])
def test_weights_of_no_known_use_are_refused(name, tmp_path):
    folder, _, _ = saved(name, tmp_path)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "adapter.weight": torch.ones(2)}, folder / "model.safetensors", metadata={"format": "pt"})
    for classifier in (True, False):
        with pytest.raises(BadModelError) as error:
            load(folder, classifier)
        assert error.value.model == str(folder) and "adapter.weight" in str(error.value)


def test_only_the_pooler_of_a_vit_is_left_out(tmp_path):
    """Every tensor of the file is in the network, but for the two that are named."""
    folder, _, _ = saved("vit", tmp_path)
    tensors = load_file(folder / "model.safetensors")
    own = load(folder, classifier=True)[0].state_dict()
    assert {name for name in tensors if f"vit.{name}" not in own} == {"pooler.dense.weight", "pooler.dense.bias"}
    assert all(torch.equal(own[f"vit.{name}"], value) for name, value in tensors.items() if f"vit.{name}" in own)
    assert {name for name in own if name.removeprefix("vit.") not in tensors} == {
        "fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias",
    }  # fmt: skip
