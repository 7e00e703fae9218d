"""The table of backbones: every row fits its architecture, and one that a script adds is taken everywhere."""

import json

import pytest
import torch
from tiny import save_planted_set
from torch import nn
from transformers import AutoConfig, AutoModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from retfound_hf import RetFoundForImageClassification
from retfound_hf.errors import BadModelError
from retfound_hf.models.backbones import BACKBONES, Backbone, accepted_models, backbone_of, parameter_depths
from retfound_hf.models.loading import load_classifier, load_encoder, network_config


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


@pytest.mark.parametrize("method", ["full", "lora"])
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
