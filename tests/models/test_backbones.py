"""The table of backbones, and weights of stock classes in our networks: the same features, nothing lost."""

import json

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from tiny import save_autoencoder, save_planted_set, tiny_config
from torch import nn
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoModel,
    AutoModelForImageClassification,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.modeling_outputs import BaseModelOutput

from retfound_hf import RetFoundBackbone, RetFoundConfig, RetFoundForImageClassification, RetFoundModel
from retfound_hf.errors import BadArgumentError, BadModelError
from retfound_hf.models import backbones
from retfound_hf.models.backbones import BACKBONES, Backbone, accepted_models, backbone_of, parameter_depths
from retfound_hf.models.loading import load_classifier, load_encoder, load_network, network_config


class PatchMixerConfig(PreTrainedConfig):
    model_type = "patch_mixer"

    def __init__(self, hidden_size=24, num_hidden_layers=2, image_size=32, patch_size=8, **kwargs):
        self.hidden_size, self.num_hidden_layers = hidden_size, num_hidden_layers
        self.image_size, self.patch_size = image_size, patch_size
        super().__init__(**kwargs)


class PatchMixerModel(PreTrainedModel):
    """An architecture that the package does not know: two linear layers per stage, no class token."""

    config_class = PatchMixerConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        width, patch = config.hidden_size, config.patch_size
        self.stem = nn.Conv2d(3, width, patch, patch)
        self.mixers = nn.ModuleList(
            nn.ModuleDict({"enter": nn.Linear(width, width), "leave": nn.Linear(width, width)})
            for _ in range(config.num_hidden_layers)
        )
        self.post_init()

    def forward(self, pixel_values, **kwargs):
        tokens = self.stem(pixel_values).flatten(2).transpose(1, 2)
        for mixer in self.mixers:
            tokens = tokens + mixer["leave"](mixer["enter"](tokens).relu())
        return BaseModelOutput(last_hidden_state=tokens)


ROW = Backbone(
    "patch_mixer", "PatchMixer", pretrains=True, blocks=r"mixers\.(\d+)\.", embeddings="stem",
    projections={"query": "enter", "value": "leave"}, prefix_tokens=lambda config: 0,
    image_mean=(0.25, 0.5, 0.75),
)  # fmt: skip


@pytest.fixture
def added(monkeypatch, tmp_path):
    """The row in the table, its classes with transformers, and a folder of weights without an image processor."""
    AutoConfig.register("patch_mixer", PatchMixerConfig, exist_ok=True)
    AutoModel.register(PatchMixerConfig, PatchMixerModel, exist_ok=True)
    monkeypatch.setitem(BACKBONES, "patch_mixer", ROW)
    torch.manual_seed(0)
    PatchMixerModel(PatchMixerConfig()).save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def test_depths_of_retfound(small_config):
    depths = parameter_depths(RetFoundForImageClassification(small_config(num_labels=2)))
    assert depths["vit.embeddings.cls_token"] == depths["vit.embeddings.patch_embeddings.projection.bias"] == 0
    assert depths["vit.encoder.layer.2.attention.output.dense.weight"] == 3
    assert depths["vit.layernorm.weight"] == depths["classifier.weight"] == 4


@pytest.mark.parametrize("pattern", ["blocks", "embeddings"])
def test_a_pattern_that_misses_is_an_error(pattern, added, monkeypatch):
    config = network_config(AutoConfig.from_pretrained(added))
    model = AutoModel.from_config(config)
    assert set(parameter_depths(model).values()) == {0, 1, 2}
    monkeypatch.setitem(BACKBONES, "patch_mixer", Backbone(**{**vars(ROW), pattern: r"other\.(\d+)"}))
    with pytest.raises(BadModelError) as error:
        parameter_depths(model)
    assert pattern in str(error.value)


def test_an_architecture_without_a_row_is_refused():
    from transformers import SwinConfig

    with pytest.raises(BadModelError) as error:
        backbone_of(SwinConfig())
    assert "swin" in str(error.value) and all(name in str(error.value) for name in BACKBONES)


@pytest.mark.parametrize("method", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_an_added_backbone_is_fine_tuned_evaluated_and_described(added, method, tmp_path):
    from retfound_hf.finetuning.finetune import main as finetune
    from retfound_hf.inference.evaluate import main as evaluate

    assert "PatchMixer" in accepted_models()
    data = save_planted_set(tmp_path / "data", {"train": 4, "val": 2, "test": 4})
    finetune(
        ["--model_name_or_path", str(added), "--data", str(data), "--output_dir", str(tmp_path / "out"),
         "--method", method, "--num_train_epochs", "1", "--dataloader_num_workers", "0", "--disable_tqdm", "true"]
    )  # fmt: skip
    card = (tmp_path / "out" / "README.md").read_text()
    assert "AUROC" in card and "mean (0.25, 0.5, 0.75)" in card
    classifier = load_classifier(str(tmp_path / "out"))
    pixels = torch.randn(2, 3, 32, 32)
    assert torch.equal(load_encoder(str(tmp_path / "out"))(pixels).patch_mean, classifier.vit(pixels).patch_mean)
    evaluate(
        ["--model_name_or_path", str(tmp_path / "out"), "--data", str(data), "--output_dir", str(tmp_path / "again"),
         "--dataloader_num_workers", "0"]
    )  # fmt: skip
    first, again = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "again"))
    assert again["auroc"] == pytest.approx(first["auroc"])


SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
DINO = {**SIZES, "mlp_ratio": 2}
# name -> class, configuration, tokens before the patches
STOCK = {
    "vit": (hf.ViTModel, hf.ViTConfig(**SIZES, layer_norm_eps=1e-5), 1),
    "vit-no-bias": (hf.ViTModel, hf.ViTConfig(**SIZES, qkv_bias=False, hidden_act="relu"), 1),
    "vit-classifier": (hf.ViTForImageClassification, hf.ViTConfig(**SIZES, num_labels=3), 1),
    "vit-masked": (hf.ViTForMaskedImageModeling, hf.ViTConfig(**SIZES), 1),
    "vit_mae": (hf.ViTMAEModel, hf.ViTMAEConfig(**SIZES, mask_ratio=0.0), 1),
    "dinov2": (hf.Dinov2Model, hf.Dinov2Config(**DINO), 1),
    "dinov2-swiglu": (hf.Dinov2Model, hf.Dinov2Config(**DINO, use_swiglu_ffn=True), 1),
    "dinov2-classifier": (hf.Dinov2ForImageClassification, hf.Dinov2Config(**DINO, num_labels=3), 1),
    "dinov2-registers": (hf.Dinov2WithRegistersModel, hf.Dinov2WithRegistersConfig(**DINO, num_register_tokens=4), 5),
    "dinov3": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**SIZES, num_register_tokens=4), 5),
    "dinov3-gated": (hf.DINOv3ViTModel, hf.DINOv3ViTConfig(**SIZES, num_register_tokens=2, use_gated_mlp=True), 3),
    "resnet": (hf.ResNetModel, hf.ResNetConfig(hidden_sizes=[16, 32], depths=[1, 2], embedding_size=8), 0),
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
    if isinstance(model, hf.ViTMAEModel):  # shuffles even when it hides nothing, unless told the order
        noise = torch.arange(float((pixels.shape[-1] // 8) ** 2)).expand(len(pixels), -1)
        return model(pixels, noise=noise).last_hidden_state
    return model(pixels).last_hidden_state


def test_features_equal_those_of_the_stock_class(stock):
    folder, model, prefix = stock
    encoder, _ = load(folder, classifier=False)
    is_retfound = "vit" in folder.name
    assert isinstance(encoder, RetFoundModel if is_retfound else backbones.StockEncoderModel)
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
    assert type(again) is (
        RetFoundForImageClassification if is_retfound else backbones.StockEncoderForImageClassification
    )
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
    given = {"labels": torch.tensor([0, 1, 2, 0]), "interpolate_pos_encoding": True}
    model.train()(torch.randn(4, 3, 48, 48), **given).loss.backward()
    trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert [name for name, parameter in trained if parameter.grad is None] == []


def test_a_wrapped_encoder_has_no_image_size_to_set():
    config = backbones.StockEncoderConfig(hf.Dinov2Config(image_size=56))
    config.image_size = 56
    with pytest.raises(BadArgumentError) as error:
        config.image_size = 112
    assert (error.value.field, error.value.value, config.image_size) == ("image_size", 112, 56)


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


def test_feature_maps_of_chosen_blocks(tmp_path):
    """Of any folder of RETFound, in raster order, and at another size than the configuration's."""
    folder = save_autoencoder(tmp_path / "autoencoder")
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        states = AutoModel.from_pretrained(folder)(pixels, output_hidden_states=True)
        found = RetFoundBackbone.from_pretrained(folder, out_indices=[1, 2])
        maps = found(pixels).feature_maps
        tokens = RetFoundBackbone.from_pretrained(
            folder, out_features=["stem", "stage1"], reshape_hidden_states=False, apply_layernorm=False
        )(pixels)
        larger = found(torch.zeros(1, 3, 48, 24)).feature_maps
    assert torch.equal(maps[1], states.last_hidden_state[:, 1:].transpose(1, 2).reshape(2, 32, 4, 4))
    assert all(map(torch.equal, tokens.feature_maps, states.hidden_states[:2]))
    assert found.layernorm.weight.requires_grad
    assert (found.channels, larger[0].shape) == ([32, 32], (1, 32, 6, 3))
    assert found.out_features == ["stage1", "stage2"] and found(pixels).hidden_states is None
    by_auto_class = AutoBackbone.from_config(found.config)
    assert isinstance(by_auto_class, RetFoundBackbone) and by_auto_class.out_indices == [1, 2]


def test_the_default_of_a_backbone_is_not_stored():
    """It names the last block, which is another one when the depth changes."""
    stored = tiny_config().to_dict()
    assert not {"out_features", "out_indices", "stage_names"} & set(stored)
    assert RetFoundConfig(**{**stored, "num_hidden_layers": 1}).out_features == ["stage1"]
    kept = RetFoundConfig.from_dict(tiny_config(out_indices=[0, 1]).to_dict())
    assert (kept.out_features, kept.out_indices) == (["stem", "stage1"], [0, 1])


def test_a_segmentation_head_of_transformers_trains_on_it(tmp_path):
    """UPerNet finds bright squares; everything that it trains gets a gradient, and its folder loads again."""
    backbone = RetFoundBackbone.from_pretrained(save_autoencoder(tmp_path / "autoencoder"), out_indices=[1, 2])
    config = UperNetConfig(
        backbone_config=backbone.config, num_labels=2, hidden_size=16, pool_scales=[1, 2], use_auxiliary_head=False
    )
    torch.manual_seed(0)
    model = UperNetForSemanticSegmentation(config)
    model.backbone.load_state_dict(backbone.state_dict())
    labels = torch.zeros(4, 32, 32, dtype=torch.long)
    for image, (row, column) in enumerate(((0, 0), (0, 16), (16, 0), (16, 16))):
        labels[image, row : row + 16, column : column + 16] = 1
    pixels = labels[:, None].float().expand(-1, 3, -1, -1) * 2 - 1
    optimizer, losses = torch.optim.AdamW(model.parameters(), lr=1e-2), []
    for _ in range(40):
        loss = model(pixels, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert not [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    model.eval().save_pretrained(tmp_path / "segmenter")
    with torch.no_grad():
        logits = UperNetForSemanticSegmentation.from_pretrained(tmp_path / "segmenter")(pixels).logits
        assert torch.allclose(logits, model(pixels).logits, atol=1e-5)
    assert (logits.argmax(1) == labels).float().mean() > 0.9
