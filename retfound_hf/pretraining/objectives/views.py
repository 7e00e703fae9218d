"""Views of images as contrastive methods compare them, made on the device in whole batches."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ...images.batch_augmentation import crop_resize, draw_crops, draw_flips
from ...images.batch_colour import blur, draw_jitter, grayscale, jitter_colour, solarize

# Of the networks whose blur was published, in pixels.
PUBLISHED_SIZE = 224


@dataclass(frozen=True)
class View:
    """A random resized crop, flipped at even odds, then colour jitter, grayscale, blur, solarisation, in this order.

    Args:
        size: of the view in pixels.
        scale: smallest and largest share of the image's area.
        strengths: of brightness, contrast, saturation, hue, as in torchvision's `ColorJitter`.
        jitter, gray, blur, solarize: the share of images that get it.
        sigmas: smallest and largest width of the blur, in pixels where `whole` is 224; its kernel spans a tenth of the
            view.
        whole: size in pixels of the views that show most of an image.
    """

    size: int
    whole: int
    scale: tuple[float, float]
    strengths: tuple[float, float, float, float]
    jitter: float = 0.8
    gray: float = 0.2
    blur: float = 0.5
    sigmas: tuple[float, float] = (0.1, 2.0)
    solarize: float = 0.0

    def for_retina(self) -> "View":
        """What of this keeps the signs of disease.

        Left out are grayscale, which takes the colour that tells blood from lipid, and solarisation, which makes
        exudates and the optic disc dark and vessels bright. Weakened are hue and saturation, to what cameras and
        lenses differ by; brightness and contrast; blur, since a microaneurysm is a few pixels wide; and the smallest
        crop of views that show most of an image, to RETFound's own 0.2. Nothing turns an image upside down: above and
        below are not alike in an eye or a scan. Left and right are exchanged, as in RETFound's recipe, so that
        features do not tell the eyes apart.
        """
        brightness, contrast, saturation, hue = self.strengths
        return replace(
            self,
            scale=(max(self.scale[0], 0.2), 1.0) if self.size == self.whole else self.scale,
            strengths=(min(brightness, 0.4), min(contrast, 0.4), min(saturation, 0.2), min(hue, 0.02)),
            gray=0.0,
            blur=min(self.blur, 0.5),
            sigmas=(0.1, 1.0),
            solarize=0.0,
        )

    def draw(self, count: int, side: int, generator: torch.Generator) -> dict[str, Tensor]:
        """One row per image of everything that is random; what never happens is not drawn."""
        drawn = {
            "crops": draw_crops(count, side, side, generator, scale=self.scale),
            "flips": draw_flips(count, generator),
            **draw_jitter(count, generator, self.jitter, *self.strengths),
        }
        if self.gray:
            drawn["gray"] = torch.rand(count, generator=generator) < self.gray
        if self.blur:
            low, high = (sigma * self.whole / PUBLISHED_SIZE for sigma in self.sigmas)
            sigmas = low + (high - low) * torch.rand(count, generator=generator)
            drawn["sigmas"] = sigmas * (torch.rand(count, generator=generator) < self.blur)
        if self.solarize:
            drawn["solarize"] = torch.rand(count, generator=generator) < self.solarize
        return drawn

    def make(self, images: Tensor, drawn: dict[str, Tensor]) -> Tensor:
        """uint8 (batch, 3, side, side) -> float32 (batch, 3, size, size) within 0..255."""
        pixels = crop_resize(images, drawn["crops"], self.size, drawn["flips"])
        turns = drawn["turns"] if self.strengths[3] else None
        pixels = jitter_colour(pixels, drawn["factors"], drawn["order"], turns)
        if self.gray:
            pixels = grayscale(pixels, drawn["gray"])
        if self.blur:
            pixels = blur(pixels, drawn["sigmas"], self.size // 10 | 1)
        if self.solarize:
            pixels = solarize(pixels, drawn["solarize"])
        return pixels


@dataclass(frozen=True)
class ViewsDraw:
    """The random numbers of all views of an image, named `<view>.<number>`.

    Args:
        side: of the stored images in pixels.
    """

    side: int
    views: tuple[View, ...]

    def __call__(self, count: int, generator: torch.Generator) -> dict[str, Tensor]:
        return {
            f"{number}.{name}": values
            for number, view in enumerate(self.views)
            for name, values in view.draw(count, self.side, generator).items()
        }


def of_view(draws: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The numbers of one view among those of all."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): values for name, values in draws.items() if name.startswith(prefix)}


def local_size(size: int, patch_size: int) -> int:
    """Side of the small crops of multi-crop: 96 for 224, in whole patches."""
    return max(1, round(size * 96 / 224 / patch_size)) * patch_size
