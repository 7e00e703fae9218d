"""Small classifiers with random weights, and images."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import Image
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

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.synthetic import draw_patient, render

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


@dataclass(frozen=True)
class Planted:
    """A classifier that learned to find one bright lesion, and photographs that it has not seen.

    healthy, diseased: (images, 3, 64, 64), standardised, the same eyes without and with a lesion.
    lesions: bool (images, 64, 64), the lesion's pixels.
    """

    model: RetFoundForImageClassification
    healthy: Tensor
    diseased: Tensor
    lesions: Tensor


def healthy_eyes(count: int, seed: int) -> Tensor:
    """(count, 3, 64, 64) in 0..1: synthetic photographs cut to their field of view."""
    eyes = []
    for index in range(count):
        rng = np.random.default_rng((seed, index))
        image = render(draw_patient(rng, "cfp")[index % 2], "normal", 0.0, 96, rng).image
        eyes.append(np.asarray(crop_field_of_view(Image.fromarray(image)).resize((64, 64)), np.float32) / 255)
    return torch.from_numpy(np.stack(eyes)).permute(0, 3, 1, 2)


def plant(images: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Put a pale round lesion of 4 to 7 pixels somewhere into each image; the images and the lesions' pixels."""
    radius, angle, distance = torch.rand(3, len(images), 1, 1, generator=generator)
    distance, angle = 20 * distance.sqrt(), 2 * torch.pi * angle
    y, x = torch.meshgrid(torch.arange(64) + 0.5, torch.arange(64) + 0.5, indexing="ij")
    away = ((x - 32 - distance * angle.cos()) ** 2 + (y - 32 - distance * angle.sin()) ** 2).sqrt()
    opacity = 0.85 * (2.5 + 1.5 * radius - away).clamp(0, 1)
    colour = torch.tensor([250, 232, 140])[:, None, None] / 255
    return images + opacity[:, None] * (colour - images), opacity > 0.3


def standardised(images: Tensor) -> Tensor:
    mean, std = (torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (images - mean) / std


def make_planted(seed: int = 0, images: int = 32, steps: int = 200) -> Planted:
    """Trained in some 20 seconds."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    eyes, labels = healthy_eyes(64, seed=1), torch.arange(64) % 2
    sizes = {**SIZES, "hidden_size": 48, "num_hidden_layers": 4, "intermediate_size": 96, "image_size": 64}
    model = RetFoundForImageClassification(RetFoundConfig(**sizes, num_labels=2)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=steps)
    for _ in range(steps):
        batch = eyes[torch.randint(len(eyes), (64,), generator=generator)]
        batch = batch * (0.7 + 0.6 * torch.rand(64, 1, 1, 1, generator=generator))
        batch = torch.where(torch.rand(64, 1, 1, 1, generator=generator) < 0.5, batch, batch.flip(-1))
        batch[1::2], _ = plant(batch[1::2], generator)
        optimizer.zero_grad()
        model(standardised(batch.clamp(0, 1)), labels=labels).loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    unseen = healthy_eyes(images, seed=2)
    diseased, lesions = plant(unseen, torch.Generator().manual_seed(99))
    return Planted(model.eval(), standardised(unseen), standardised(diseased), lesions)


@pytest.fixture(scope="session")
def planted() -> Planted:
    return make_planted()


@pytest.fixture(scope="session")
def plant_anew():
    return make_planted


@pytest.fixture(scope="session")
def autoencoder():
    """Makes masked autoencoders with the sizes of the classifiers."""

    def make(**overrides) -> RetFoundForPreTraining:
        torch.manual_seed(0)
        return with_noise(RetFoundForPreTraining(RetFoundConfig(**{**SIZES, **DECODER, **overrides})))

    return make


@pytest.fixture(scope="session")
def processor() -> RetFoundImageProcessor:
    return RetFoundImageProcessor.for_image_size(32)
