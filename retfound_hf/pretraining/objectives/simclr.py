"""SimCLR (Chen et al. 2020): two views of an image are alike, those of all other images are not."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from ...options import option
from .base import Recipe
from .distributed import all_gather, process_index
from .joint_embedding import JointEmbedding, View, ViewOptions, encode, mlp, spread

# Published for a ResNet-50 and 4,096 images a step.
RESNET_RECIPE = Recipe(base_learning_rate=0.3, warmup_steps=10 / 1000, weight_decay=1e-6, optim="lars")


@dataclass(kw_only=True)
class SimCLROptions(ViewOptions):
    temperature: float = option(0.1, "of the softmax", above=0)
    head_width: int | None = option(None, "hidden layer of the head; default: as wide as the features", 1)


class SimCLR(JointEmbedding):
    """NT-Xent over the views of all processes, temperature 0.1, on a two-layer projection to 128 channels.

    On a ResNet the recipe is the published one, with LARS. On a ViT it is that of Chen et al. (2021), who trained
    SimCLR on it: AdamW as for MoCo-v3.
    """

    name = "simclr"
    title = "SimCLR"
    citation = "Chen et al. 2020"
    Options = SimCLROptions
    log_names: ClassVar[tuple[str, ...]] = ("embedding_spread",)
    recipe = Recipe(base_learning_rate=1.5e-4, warmup_steps=40 / 300, weight_decay=0.1)

    def __init__(self, model: PreTrainedModel, side: int, options: SimCLROptions | None = None):
        options = options or self.Options()
        size = model.config.image_size
        view = View(size, size, scale=(0.08, 1.0), strengths=(0.8, 0.8, 0.8, 0.2))
        super().__init__(model, side, (view, view), options)
        if model.config.model_type == "resnet":
            self.recipe = RESNET_RECIPE
        self.temperature = options.temperature
        self.projector = mlp(self.width, options.head_width or self.width, 128, last_norm="affine")

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        projected = self.projector(encode(self.model, views["large"]))
        first, second = projected.chunk(2)
        return nt_xent(first, second, self.temperature), spread(projected)[None]


def nt_xent(first: Tensor, second: Tensor, temperature: float) -> Tensor:
    """Normalised temperature-scaled cross-entropy (Chen et al. 2020, equation 1), computed in float32.

    Args:
        first, second: (batch, channels), vectors of two views of this process's images, of any length.

    Returns:
        The mean over this process's 2 x batch views; each is told from the views of all other images on all processes.
    """
    with torch.autocast(first.device.type, enabled=False):
        own = functional.normalize(torch.cat([first, second]).float(), dim=1)
        similarities = own @ all_gather(own).T / temperature
        count = len(own)
        row = torch.arange(count, device=own.device)
        start = process_index() * count
        itself = row[:, None] + start == torch.arange(similarities.shape[1], device=own.device)
        return functional.cross_entropy(
            similarities.masked_fill(itself, float("-inf")), start + (row + count // 2) % count
        )
