"""Joint-embedding objectives: views of one image, projection heads, EMA teacher, collapse diagnostics."""

import copy
import math
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn
from transformers import PreTrainedModel
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ...errors import require
from ...images import batch_transforms as transforms
from ...inference.predict import pooled
from ...models.modeling_retfound import RetFoundModel
from ...options import option
from .base import Objective, ObjectiveOptions


def mlp(*widths: int, last_norm: str | None = None) -> nn.Sequential:
    """Linear layers with batch norm and ReLU between them; only a layer that no batch norm follows has a bias.

    Args:
        widths: of the input, the hidden layers and the output.
        last_norm: batch norm of the output: `affine`, `plain` (without weights), or None.
    """
    layers: list[nn.Module] = []
    for width, following in pairwise(widths[:-1]):
        layers += [nn.Linear(width, following, bias=False), nn.BatchNorm1d(following), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_norm is None))
    if last_norm is not None:
        layers.append(nn.BatchNorm1d(widths[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def ema_copy(network: nn.Module) -> nn.Module:
    """Copy of a network that no gradient reaches: the start of its exponential moving average."""
    return copy.deepcopy(network).requires_grad_(False)


def ema_update(average: nn.Module, network: nn.Module, momentum: float) -> None:
    """average = momentum x average + (1 - momentum) x network, for all parameters at once."""
    get_ema_multi_avg_fn(momentum)(list(average.parameters()), list(network.parameters()), None)


def ema_momentum(progress: float, start: float) -> float:
    """Momentum from `start` to 1 by half a cosine (Grill et al. 2020)."""
    return 1 - (1 - start) * (1 + math.cos(math.pi * progress)) / 2


@torch.no_grad()
def spread(vectors: Tensor) -> Tensor:
    """Collapse diagnostic: deviation of unit vectors over the batch, mean over channels, x sqrt(channels).

    Args:
        vectors: (batch, channels), of any length.

    Returns:
        Scalar: near 1 for evenly spread directions, 0 where all are the same.
    """
    units = torch.nn.functional.normalize(vectors.float(), dim=1)
    return units.std(dim=0, correction=0).mean() * math.sqrt(vectors.shape[1])


@torch.no_grad()
def entropy(shares: Tensor) -> Tensor:
    """Collapse diagnostic: entropy of rows of shares (..., outputs) that sum to 1, over the highest: 0 to 1."""
    return torch.special.entr(shares.float()).sum(dim=-1) / math.log(shares.shape[-1])


PUBLISHED_SIZE = 224  # in pixels, of the networks whose blur was published


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
        """The same view weakened so that signs of disease survive.

        Left out are grayscale, which removes the colour that tells blood from lipid, and solarisation, which makes
        exudates and the optic disc dark and vessels bright. Weakened are hue and saturation, to what cameras and
        lenses differ by; brightness and contrast; blur, since a microaneurysm is a few pixels wide; and the smallest
        crop of views that show most of an image, to RETFound's own 0.2. Images are never turned upside down: above and
        below differ in an eye or a scan. Left and right are exchanged, as in RETFound's recipe, so that features do
        not tell the eyes apart.
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
            "crops": transforms.draw_crops(count, side, side, generator, scale=self.scale),
            "flips": transforms.draw_flips(count, generator),
            **transforms.draw_jitter(count, generator, self.jitter, *self.strengths),
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
        pixels = transforms.crop_resize(images, drawn["crops"], self.size, drawn["flips"])
        turns = drawn["turns"] if self.strengths[3] else None
        pixels = transforms.jitter_colour(pixels, drawn["factors"], drawn["order"], turns)
        if self.gray:
            pixels = transforms.grayscale(pixels, drawn["gray"])
        if self.blur:
            pixels = transforms.blur(pixels, drawn["sigmas"], self.size // 10 | 1)
        if self.solarize:
            pixels = transforms.solarize(pixels, drawn["solarize"])
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


def select_view(draws: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """The random numbers of one view among those of all."""
    prefix = f"{number}."
    return {name.removeprefix(prefix): values for name, values in draws.items() if name.startswith(prefix)}


def local_size(size: int, patch_size: int) -> int:
    """Side of the small crops of multi-crop: 96 for 224, in whole patches."""
    return max(1, round(size * 96 / 224 / patch_size)) * patch_size


@dataclass(kw_only=True)
class ViewOptions(ObjectiveOptions):
    """Options of all objectives that compare views."""

    views: Literal["retina", "published"] = option(
        "retina", "augmentation: weakened for retinal images, or as published"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require("views", self.views, ("retina", "published"))


class JointEmbedding(Objective):
    """Base of the objectives that compare the vectors an encoder has for views of one image.

    The vector is the one that classifiers and probes see afterwards: of a RETFound model the mean of the patch tokens,
    not the class token that DINO and MoCo-v3 use. Chen et al. (2021) found both alike. The encoder's final norm does
    not take part, and stays as it is.

    Args:
        model: an encoder with `pooler_output`.
        side: of the stored images in pixels.
        views: as published; the first two have the network's own size.
        options: with the choice of `views`.
    """

    preview_titles: ClassVar[tuple[str, ...]] = ("original", "first view", "second view")
    draw: ViewsDraw

    def __init__(self, model: PreTrainedModel, side: int, views: tuple[View, ...], options: Any):
        super().__init__()
        self.model = model
        # On the device with the network: a copy from the host at every step would make the two wait for each other.
        self.register_buffer("mean", torch.tensor(IMAGENET_DEFAULT_MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_DEFAULT_STD), persistent=False)
        self.draw = ViewsDraw(
            side, views if options.views == "published" else tuple(view.for_retina() for view in views)
        )

    @property
    def width(self) -> int:
        """Channels of the feature vector."""
        config = self.model.config
        return config.hidden_sizes[-1] if hasattr(config, "hidden_sizes") else config.hidden_size

    def views(self, images: Tensor, draws: dict[str, Tensor]) -> dict[str, Tensor]:
        """`large` float32 (2 * batch, 3, size, size), first views before second ones; `small`, if any, alike."""
        made: dict[str, list[Tensor]] = {}
        for number, view in enumerate(self.draw.views):
            pixels = transforms.normalize(view.make(images, select_view(draws, number)), self.mean, self.std)
            made.setdefault("large" if number < 2 else "small", []).append(pixels)
        return {name: torch.cat(pixels) for name, pixels in made.items()}

    def preview(self, images: Tensor, draws: dict[str, Tensor]) -> list[list[Tensor]]:
        """The whole image and two views of it."""
        count, _, height, width = images.shape
        whole = torch.tensor([0, 0, height, width], device=images.device).expand(count, 4)
        first, second = self.draw.views[:2]
        columns = [
            transforms.crop_resize(images, whole, first.size),
            first.make(images, select_view(draws, 0)),
            second.make(images, select_view(draws, 1)),
        ]
        return [[pixels / 255 for pixels in row] for row in zip(*columns, strict=True)]


def encode(encoder: PreTrainedModel, pixels: Tensor) -> Tensor:
    """Feature vectors (batch, width) of views."""
    # Views are smaller than the network's own size; a ResNet has no positions.
    options = {"interpolate_pos_encoding": True} if isinstance(encoder, RetFoundModel) else {}
    return pooled(encoder(pixel_values=pixels, **options))


def encode_views(encoder: PreTrainedModel, views: dict[str, Tensor]) -> Tensor:
    """Feature vectors of all views, encoded one size at a time, concatenated."""
    return torch.cat([encode(encoder, pixels) for pixels in views.values()])
