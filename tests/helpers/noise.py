"""Random weights that tell images apart."""

import torch
from torch import nn


def with_noise(model: nn.Module, scale: float = 0.1) -> nn.Module:
    """Every parameter but positions off its initial zero or one, so that outputs differ; in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "pos" not in name:
                parameter += scale * torch.randn(parameter.shape, generator=generator)
    return model.eval()
