"""Small models with random weights and their folders, and official-style checkpoints made with timm."""

import argparse
from functools import partial
from pathlib import Path

import pytest
import torch
from timm.models.vision_transformer import Block, PatchEmbed, VisionTransformer
from tiny import tiny_config
from torch import Tensor, nn

from retfound_hf import RetFoundForPreTraining, RetFoundImageProcessor


@pytest.fixture
def small_config():
    """Makes configurations of a model with 16 patches; keyword arguments override."""
    sizes = {
        "hidden_size": 64, "num_hidden_layers": 3, "intermediate_size": 128, "image_size": 64, "patch_size": 16,
        "decoder_hidden_size": 32, "decoder_num_hidden_layers": 2, "decoder_intermediate_size": 64,
    }  # fmt: skip
    return lambda **overrides: tiny_config(**{**sizes, **overrides})


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


NORM = partial(nn.LayerNorm, eps=1e-6)


def noisy(model: nn.Module, width: int = 128) -> nn.Module:
    """Random values for every parameter, biases and norms too, of a size that keeps the tokens' scale."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.normal_(0, 0.6 * width**-0.5, generator=generator)
            if name.endswith(("norm.weight", "norm1.weight", "norm2.weight", "gamma")):
                parameter += 1
    return model.eval()


class MaskedAutoencoder(nn.Module):
    """The masked autoencoder of He et al. 2022 on timm's blocks, with the official names."""

    def __init__(self, size: int = 64, patch: int = 16, width: int = 128, decoder: int = 64):
        super().__init__()
        patches = (size // patch) ** 2
        self.patch = patch
        self.patch_embed = PatchEmbed(size, patch, 3, width)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, width))
        self.blocks = nn.ModuleList(Block(width, width // 64, 4, qkv_bias=True, norm_layer=NORM) for _ in range(2))
        self.norm = NORM(width)
        self.decoder_embed = nn.Linear(width, decoder)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder))
        self.decoder_pos_embed = nn.Parameter(torch.zeros(1, 1 + patches, decoder))
        self.decoder_blocks = nn.ModuleList(Block(decoder, 16, 4, qkv_bias=True, norm_layer=NORM) for _ in range(2))
        self.decoder_norm = NORM(decoder)
        self.decoder_pred = nn.Linear(decoder, patch * patch * 3)

    def forward(self, images: Tensor, noise: Tensor, mask_ratio: float) -> Tensor:
        """Loss, one image at a time, by indexing instead of gathering."""
        total, count = torch.zeros(()), 0
        for image, draw in zip(images, noise, strict=True):
            tokens = self.patch_embed(image[None])[0] + self.pos_embed[0, 1:]
            order = draw.argsort()
            visible = order[: int(len(order) * (1 - mask_ratio))]
            x = torch.cat([self.cls_token[0] + self.pos_embed[0, :1], tokens[visible]])[None]
            for block in self.blocks:
                x = block(x)
            x = self.decoder_embed(self.norm(x))[0]
            full = self.mask_token[0].repeat(len(order), 1).index_copy(0, visible, x[1:])
            x = (torch.cat([x[:1], full]) + self.decoder_pos_embed[0])[None]
            for block in self.decoder_blocks:
                x = block(x)
            predicted = self.decoder_pred(self.decoder_norm(x))[0, 1:]
            side = image.shape[-1] // self.patch
            target = image.reshape(3, side, self.patch, side, self.patch).permute(1, 3, 2, 4, 0).reshape(side**2, -1)
            target = (target - target.mean(-1, keepdim=True)) / (target.var(-1, keepdim=True) + 1e-6) ** 0.5
            hidden = [index for index in range(len(order)) if index not in visible.tolist()]
            total = total + (predicted - target)[hidden].square().mean(-1).sum()
            count += len(hidden)
        return total / count


@pytest.fixture
def autoencoder() -> MaskedAutoencoder:
    return noisy(MaskedAutoencoder())


@pytest.fixture
def vit():
    """Makes timm encoders and classifiers; every encoder in use has heads of width 64."""

    def make(classes: int = 0, width: int = 128, depth: int = 2, size: int = 64, patch: int = 16, **options):
        model = VisionTransformer(
            img_size=size, patch_size=patch, embed_dim=width, depth=depth, num_heads=width // 64, num_classes=classes,
            global_pool="avg" if classes else "token", norm_layer=NORM, weight_init="skip", **options,
        )  # fmt: skip
        return noisy(model, width)

    return make


@pytest.fixture
def save(tmp_path):
    """Writes a file as the official training code does: weights among optimiser, epoch, scaler and arguments."""

    def write(state: dict[str, Tensor], name: str = "RETFound_mae_natureCFP.pth", key: str = "model", **args) -> Path:
        path = tmp_path / name
        content = {
            key: state,
            "optimizer": {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
            "epoch": 799,
            "scaler": {"scale": 65536.0, "_growth_tracker": 12},
            "args": argparse.Namespace(batch_size=224, output_dir="./out", dist_url="env://", lr=None, **args),
        }
        torch.save(content, path)
        return path

    return write


@pytest.fixture
def tokens():
    """Tokens (batch, 1 + patches, width) of a timm model after its last block, before any norm."""

    def run(model: nn.Module, pixels: Tensor) -> Tensor:
        patches = model.patch_embed(pixels)
        x = torch.cat([model.cls_token.expand(len(pixels), -1, -1), patches], dim=1) + model.pos_embed
        for block in model.blocks:
            x = block(x)
        return x

    return run
