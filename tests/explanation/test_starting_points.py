"""Relevance maps of encoders that keep their own class under RETFound's head."""

import pytest
import torch
from transformers import Dinov2Config, DINOv3ViTConfig

from retfound_hf.explanation.relevance import relevance
from retfound_hf.models.backbones import StockEncoderConfig, StockEncoderForImageClassification

SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}


@pytest.mark.parametrize(
    "encoder_config",
    [Dinov2Config(**SIZES, mlp_ratio=2), DINOv3ViTConfig(**SIZES, intermediate_size=64, num_register_tokens=3)],
    ids=["dinov2", "dinov3"],
)
@pytest.mark.parametrize("method", ["relevance", "rollout", "integrated_gradients"])
def test_maps_lie_on_the_patches(encoder_config, method):
    torch.manual_seed(0)
    model = StockEncoderForImageClassification(StockEncoderConfig(encoder_config=encoder_config, num_labels=3)).eval()
    torch.nn.init.normal_(model.classifier.weight)
    found = relevance(model, torch.randn(2, 3, 32, 32), method=method).patches
    assert found.shape == (2, 4, 4)  # 16 patches, whatever class and register tokens stand before them
    assert found.isfinite().all()
    assert found.std() > 0
    assert model.config._attn_implementation == "sdpa"
