"""What objectives have in common that compare views of one image: an encoder, its feature vector, the views."""

from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...images.batch_augmentation import crop_resize, normalize
from ...inference.forward import pooled
from .base import Objective
from .options import ObjectiveArguments
from .views import View, ViewsDraw, of_view


class JointEmbedding(Objective):
    """Views, and the vector that an encoder has for them.

    The vector is the one that classifiers and probes see afterwards: of a RETFound model the mean of the patch tokens,
    not the class token that DINO and MoCo-v3 take on their own. Chen et al. (2021) found both alike. The encoder's
    final norm is not on its way, and stays as it is.

    Args:
        model: an encoder with `pooler_output`.
        side: of the stored images in pixels.
        views: as published; the first two have the network's own size.
        options: `views` says whether they are weakened for retinal images, as they are by default.
    """

    preview_titles: ClassVar[tuple[str, ...]] = ("original", "first view", "second view")

    def __init__(self, model: PreTrainedModel, side: int, views: tuple[View, ...], options: ObjectiveArguments):
        super().__init__()
        self.model = model
        if hasattr(model, "layernorm"):
            model.layernorm.requires_grad_(False)
        # On the device with the network: a copy from the host at every step would make the two wait for each other.
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD), persistent=False)
        self.draw = ViewsDraw(
            side, views if options.views == "published" else tuple(view.for_retina() for view in views)
        )

    @property
    def width(self) -> int:
        """Of the feature vector."""
        config = self.model.config
        return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """`large` float32 (2 * batch, 3, size, size), first views before second ones; `small`, if any, alike."""
        made: dict[str, list[Tensor]] = {}
        for number, view in enumerate(self.draw.views):
            pixels = normalize(view.make(images, of_view(draws, number)), self.mean, self.std)
            made.setdefault("large" if number < 2 else "small", []).append(pixels)
        return {name: torch.cat(pixels) for name, pixels in made.items()}

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]]:
        """The whole image and two views of it."""
        count, _, height, width = images.shape
        whole = torch.tensor([0, 0, height, width], device=images.device).expand(count, 4)
        first, second = self.draw.views[:2]
        columns = [
            crop_resize(images, whole, first.size),
            first.make(images, of_view(draws, 0)),
            second.make(images, of_view(draws, 1)),
        ]
        return [[pixels / 255 for pixels in row] for row in zip(*columns, strict=True)]


def vectors(encoder: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Feature vectors (batch, width) of views."""
    return pooled(encoder(pixel_values=pixels))


def each_size(function: Callable[[Tensor], Tensor], views: dict[str, Tensor]) -> Tensor:
    """`function` of all views, those of one size at a time, joined."""
    return torch.cat([function(pixels) for pixels in views.values()])
