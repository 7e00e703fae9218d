"""Small classifiers with random weights, and images."""

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    DeiTConfig,
    DeiTForImageClassification,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersForImageClassification,
    PreTrainedModel,
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from retfound_hf import RetFoundConfig, RetFoundForImageClassification

CLASSES = ("mild", "none", "severe")
NAMED = {"id2label": dict(enumerate(CLASSES)), "label2id": {name: index for index, name in enumerate(CLASSES)}}
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 32,
    "patch_size": 8,
}  # fmt: skip
DECODER = {
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}  # fmt: skip
STOCK = {
    "vit": (ViTForImageClassification, ViTConfig, SIZES),
    "deit": (DeiTForImageClassification, DeiTConfig, SIZES),
    "dinov2": (Dinov2ForImageClassification, Dinov2Config, {**SIZES, "mlp_ratio": 2}),
    "registers": (Dinov2WithRegistersForImageClassification, Dinov2WithRegistersConfig, {**SIZES, "mlp_ratio": 2}),
    "resnet": (
        ResNetForImageClassification,
        ResNetConfig,
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1]},
    ),
    "swin": (
        SwinForImageClassification,
        SwinConfig,
        {"image_size": 32, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2], "window_size": 4},
    ),
}


def with_noise(model: nn.Module, scale: float = 0.1, seed: int = 0) -> nn.Module:
    """Every parameter off its initial zero or one, positions too; in evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def make_classifier(**overrides) -> RetFoundForImageClassification:
    """16 patches, 3 blocks; classes mild, none, severe."""
    torch.manual_seed(0)
    return with_noise(RetFoundForImageClassification(RetFoundConfig(**{**SIZES, **DECODER, **NAMED, **overrides})))


def make_stock(kind: str) -> PreTrainedModel:
    """A classifier of transformers with the same classes."""
    torch.manual_seed(0)
    model_class, config_class, sizes = STOCK[kind]
    return with_noise(model_class(config_class(**sizes, **NAMED)))


def make_images(count: int = 2, size: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def classifier():
    return make_classifier


@pytest.fixture(scope="session")
def stock():
    return make_stock


@pytest.fixture(scope="session")
def images():
    return make_images
