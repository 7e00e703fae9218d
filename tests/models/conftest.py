"""Small models with random weights, images, and the folders that they are saved to."""

import pytest
import torch
from torch import nn

from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundImageProcessor


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    torch.set_num_threads(1)


@pytest.fixture
def small_config():
    """Makes configurations of a model with 16 patches; keyword arguments override."""

    def make(**overrides) -> RetFoundConfig:
        sizes = {
            "hidden_size": 64,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "intermediate_size": 128,
            "image_size": 64,
            "patch_size": 16,
            "decoder_hidden_size": 32,
            "decoder_num_hidden_layers": 2,
            "decoder_num_attention_heads": 4,
            "decoder_intermediate_size": 64,
        }
        return RetFoundConfig(**{**sizes, **overrides})

    return make


@pytest.fixture
def randomise():
    """Gives every parameter noise, since zero biases and unit norms would hide a swapped or forgotten one."""

    def change(model: nn.Module, seed: int = 0, scale: float = 0.1) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter += scale * torch.randn(parameter.shape, generator=generator)
        return model.eval()

    return change


@pytest.fixture
def images():
    """Makes normalised images (batch, 3, size, size)."""

    def make(batch: int = 2, size: int = 64, seed: int = 0) -> torch.Tensor:
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(seed))

    return make


@pytest.fixture
def pretraining_folder(small_config, randomise, tmp_path):
    """A folder with encoder, decoder and image processor; keyword arguments override the configuration."""

    def make(name: str = "autoencoder", **overrides):
        folder = tmp_path / name
        randomise(RetFoundForPreTraining(small_config(**overrides))).save_pretrained(folder)
        RetFoundImageProcessor.for_image_size(64).save_pretrained(folder)
        return folder

    return make
