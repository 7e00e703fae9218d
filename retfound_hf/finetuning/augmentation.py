"""Training augmentation of the official fine-tuning recipe, from torchvision's transforms."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2

from ..models.image_processing_retfound import RetFoundImageProcessor

CROP_SCALES = {"recipe": (0.08, 1.0), "light": (0.5, 1.0)}


def rand_augment() -> v2.Transform:
    """`rand-m9-mstd0.5-inc1` of timm: two operations, each applied with probability 1/2, at level 9 +- 0.5 of 10.

    torchvision counts 31 levels, of which level 27 is 9 of 10; the deviation of 0.5 of 10 is 1.5 of 30. Its list of
    operations lacks timm's invert and solarise-add, and its strengths grow with the level as `inc1` asks.
    """
    levels = range(23, 31)
    weights = [math.exp(-(((level - 27) / 1.5) ** 2) / 2) for level in levels]
    fill = [124, 116, 104]  # ImageNet mean in 8 bits, as timm fills
    one = v2.RandomChoice(
        [
            v2.RandAugment(num_ops=1, magnitude=level, interpolation=v2.InterpolationMode.BILINEAR, fill=fill)
            for level in levels
        ],
        p=weights,
    )
    return v2.Compose([v2.RandomApply([one], p=0.5), v2.RandomApply([one], p=0.5)])


class TrainingPixels:
    """Images to `pixel_values` (batch, 3, size, size), augmented.

    Args:
        processor: gives size, mean and deviation.
        augmentation: `recipe`, `light` (crop of at least half the area, flip) or `none` (the evaluation transform).
        random_erasing: probability of erasing a box with noise (`recipe`).
    """

    def __init__(self, processor: RetFoundImageProcessor, augmentation: str = "recipe", random_erasing: float = 0.25):
        self.processor = processor
        self.augments = augmentation != "none"
        if not self.augments:
            return
        crop = v2.RandomResizedCrop(
            processor.crop_size.height,
            scale=CROP_SCALES[augmentation],
            interpolation=v2.InterpolationMode.BICUBIC,
            antialias=True,
        )
        more = [rand_augment()] if augmentation == "recipe" else []
        self.per_image = v2.Compose([v2.PILToTensor(), crop, v2.RandomHorizontalFlip(), *more])
        self.normalize = v2.Compose(
            [v2.ToDtype(torch.float32, scale=True), v2.Normalize(processor.image_mean, processor.image_std)]
        )
        erase = augmentation == "recipe" and random_erasing > 0
        self.erase = v2.RandomErasing(random_erasing, value="random") if erase else None

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        if not self.augments:
            return self.processor(list(images), do_fundus_crop=False, return_tensors="pt")["pixel_values"]
        pixels = self.normalize(torch.stack([self.per_image(image) for image in images]))
        if self.erase is not None:
            pixels = torch.stack([self.erase(image) for image in pixels])
        return pixels


@dataclass
class Mix:
    """Mixup or cutmix of a batch (Zhang et al. 2018; Yun et al. 2019); with both, one of them per batch at random.

    Labels become (batch, classes) probabilities.
    """

    num_classes: int
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        choices: list[Callable] = []
        if self.mixup > 0:
            choices.append(v2.MixUp(alpha=self.mixup, num_classes=self.num_classes))
        if self.cutmix > 0:
            choices.append(v2.CutMix(alpha=self.cutmix, num_classes=self.num_classes))
        self.choose = v2.RandomChoice(choices)

    def __call__(self, pixels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        return self.choose(pixels, labels)
