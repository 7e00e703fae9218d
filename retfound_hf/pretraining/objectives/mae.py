"""Masked autoencoding (He et al. 2022), the objective of RETFound."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...images.batch_transforms import crop_resize, draw_crops, draw_flips, normalize
from ...models.modeling_retfound import RetFoundForPreTraining
from ...models.reconstruction import reconstruct
from .base import Objective, ObjectiveArguments, Recipe


@dataclass(frozen=True)
class MaskedAutoencodingDraw:
    """Crop, flip and mask noise of each image.

    Args:
        side: of the stored images in pixels.
        patches: of the network's input.
    """

    side: int
    patches: int

    def __call__(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        """`crops` int64 (count, 4), `flips` bool (count,), `noise` float32 (count, patches)."""
        return {
            "crops": draw_crops(count, self.side, self.side, generator),
            "flips": draw_flips(count, generator),
            "noise": torch.rand(count, self.patches, generator=generator),
        }


class MaskedAutoencoding(Objective):
    """Random resized crop (0.2 to 1 of the area), flip, mask; mean squared error of the hidden patches.

    Args:
        model: with its decoder.
        side: of the stored images in pixels.
    """

    preview_titles: ClassVar[tuple[str, ...]] = ("original", "masked", "reconstructed")
    has_decoder: ClassVar[bool] = True
    adds_up: ClassVar[bool] = True
    # Zhou et al. (2023), Methods: warm-up of 15 of 800 epochs to 1e-3, at 1,792 images a step; else He et al. (2022).
    recipe = Recipe(base_learning_rate=1e-3 * 256 / 1792, warmup_steps=15 / 800, weight_decay=0.05, adam_beta2=0.95)

    def __init__(self, model: RetFoundForPreTraining, side: int, options: ObjectiveArguments | None = None):
        super().__init__()
        self.model = model
        self.size = model.config.image_size
        # On the device with the network: a copy from the host at every step would make the two wait for each other.
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD), persistent=False)
        self.draw = MaskedAutoencodingDraw(side, (self.size // model.config.patch_size) ** 2)

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """`pixel_values` float32 (batch, 3, size, size) and `noise`."""
        pixels = crop_resize(images, draws["crops"], self.size, draws["flips"])
        return {"pixel_values": normalize(pixels, self.mean, self.std), "noise": draws["noise"]}

    def forward(self, views: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The loss of `RetFoundForPreTraining`: every image hides as many patches, so it is a mean over images."""
        loss = self.model(**views).loss
        return loss, loss.new_zeros(0)

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]]:
        """Whole images instead of crops."""
        count, _, height, width = images.shape
        whole = torch.tensor([0, 0, height, width], device=images.device).expand(count, 4)
        pixels = normalize(crop_resize(images, whole, self.size), self.mean, self.std)
        found = reconstruct(self.model, pixels, draws["noise"])
        return [list(row) for row in zip(found.original, found.masked, found.reconstructed, strict=True)]
