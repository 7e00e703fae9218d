"""`RetFoundImageProcessor`: from any retinal image to the network's input, the same way in training and in use."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
)

from ..images.field_of_view import crop_box
from ..images.reading import ImageRegion, read_image, resized_shape, to_rgb, to_tensor
from .compat import ImagesKwargs, TorchvisionBackend

CHANNELS = (1, 3, 4)


class RetFoundImagesKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """The options of every image processor and one more.

    do_fundus_crop (`bool`): crop to the field of view and pad to a square before resizing; images in which none is
        found (OCT B-scans, images cropped already) pass unchanged.
    """

    do_fundus_crop: bool


class RetFoundImageProcessor(TorchvisionBackend):
    """Fundus crop, resize to 256 x 256 (bicubic, antialiased), centre crop to 224, ImageNet mean and deviation.

    That is RETFound's evaluation transform (reference code, `util/datasets.py`) behind the crop of its
    preprocessing, but for images that are not square: they are squeezed, as all were for pretraining. Accepts what
    every image processor accepts, and paths and bytes; grayscale, palette, RGBA, CMYK, 16-bit and EXIF-rotated images
    come out as upright 8-bit RGB.
    """

    valid_kwargs = RetFoundImagesKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: Any = {"height": 256, "width": 256}
    crop_size: Any = {"height": 224, "width": 224}
    do_fundus_crop = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    @classmethod
    def for_image_size(cls, image_size: int, **kwargs: Any) -> "RetFoundImageProcessor":
        """The processor of a network with `image_size` x `image_size` input.

        Up to 224 the image is resized to 256/224 of the input and cropped to its centre; above, it is resized to the
        input itself, as in the official evaluation transform.
        """
        resized = round(image_size * 256 / 224) if image_size <= 224 else image_size
        return cls(
            size={"height": resized, "width": resized},
            crop_size={"height": image_size, "width": image_size},
            **kwargs,
        )

    def fetch_images(self, images: Any) -> Any:
        """Read paths and bytes, and give gray arrays a channel; other images pass unchanged."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if getattr(images, "ndim", None) == 2:
            return images[None]
        return read_image(images) if isinstance(images, (str, Path, bytes)) else images

    def process_image(self, image: Any, do_fundus_crop: bool | None = None, **kwargs: Any) -> torch.Tensor:
        """One image as a (3, height, width) tensor, cropped to its field of view when asked to."""
        if not isinstance(image, Image.Image):
            if torch.as_tensor(image).is_floating_point():  # prepared by its owner
                tensor = super().process_image(image, **{**kwargs, "do_convert_rgb": False})
                return tensor.expand(3, -1, -1) if tensor.shape[0] == 1 else tensor
            image = _as_image(image, kwargs.get("input_data_format"))
        image = read_image(image)
        tensor = to_tensor(image, crop_box(image) if do_fundus_crop else None)
        device = kwargs.get("device")
        return tensor if device is None else tensor.to(device)

    def crop_box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """What is cut from an upright RGB image before resizing: (left, top, right, bottom) in pixels."""
        return crop_box(image) if self.do_fundus_crop else (0, 0, *image.size)

    def input_window(self, image: Image.Image, box: tuple[int, int, int, int] | None = None) -> ImageRegion:
        """Where on an upright RGB image (`read_image` makes one) the network's input lies.

        Args:
            box: the image's `crop_box`, where it is known already; finding it takes longer than the rest.
        """
        left, top, right, bottom = self.crop_box(image) if box is None else box
        width, height = right - left, bottom - top
        scaled = resized_shape((height, width), self.size) if self.do_resize else (height, width)
        crop = (self.crop_size.height, self.crop_size.width) if self.do_center_crop else scaled
        # As the base class rounds: a crop and its padding, both towards the image's start.
        y, x = (
            (whole - part) // 2 if part <= whole else -((part - whole) // 2)
            for whole, part in zip(scaled, crop, strict=True)
        )
        return (
            ImageRegion(x, y, x + crop[1], y + crop[0]).scaled(width / scaled[1], height / scaled[0]).moved(left, top)
        )

    def _preprocess(self, images: list[torch.Tensor], do_resize: bool, size: Any, resample: Any, **kwargs: Any) -> Any:
        # One by one, since the stacks of the base class change the channels-last layout, which resizes ten times
        # faster than the other.
        if do_resize:
            images = [self.resize(image, size, resample) for image in images]
        return super()._preprocess(images, do_resize=False, size=size, resample=resample, **kwargs)

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **kwargs: Any) -> torch.Tensor:
        """Resize (..., height, width); 8-bit images stay 8-bit, so that a resized image can be stored exactly."""
        return super().resize(image, size, resample=resample, antialias=True)


def _as_image(values: Any, layout: str | None) -> Image.Image:
    """Integers of shape (channels, height, width) or (height, width, channels), 1, 3 or 4 channels, as an image."""
    array = torch.as_tensor(values).cpu().numpy()
    is_first = array.shape[0] in CHANNELS if layout is None else layout == ChannelDimension.FIRST
    array = array.transpose(1, 2, 0) if is_first else array
    height, width, channels = array.shape
    if channels not in CHANNELS:
        raise ValueError(f"an image of shape {tuple(values.shape)} is not accepted; give 1, 3 or 4 channels")
    if array.dtype != np.uint8:
        # Pillow has no deep colour: the channels, one below the other as a gray image, share one scale.
        tall = Image.fromarray(array.transpose(2, 0, 1).reshape(-1, width).astype(np.int32))
        array = np.asarray(to_rgb(tall))[..., 0].reshape(channels, height, width).transpose(1, 2, 0)
    return Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))
