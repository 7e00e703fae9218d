"""`RetFoundImageProcessor`: from any retinal image to the network's input, the same way in training and in use."""

import base64
import contextlib
import http.client
import logging
import math
import os
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
)

from ..errors import BadArgumentError, BadDataError, UnreadableImageError, one_line, require_range, shown
from ..images.field_of_view import ImageRegion, crop_box
from ..images.reading import read_image, to_rgb, to_tensor
from .compat import ImagesKwargs, TorchvisionBackend

logger = logging.getLogger(__name__)
CHANNELS = (1, 3, 4)
ROUNDING = 1e-3  # by which floats may leave their range
TIMEOUT = 60  # seconds, of an address
LONGEST_NAME = 255  # characters of a string that may be a missing file's name rather than base64


class RetFoundImageProcessorKwargs(ImagesKwargs, total=False):  # type: ignore[call-arg]
    """The options of every image processor and three more.

    do_fundus_crop (`bool`): crop to the field of view and pad to a square before resizing; images in which none is
        found (OCT B-scans, images cropped already) pass unchanged.
    crop_pct (`float` or two): share of the resized image that the input is, cut from its centre; of height and width
        where they differ. Without `do_center_crop` images are resized to `size` itself.
    keep_aspect_ratio (`bool`): resize the shorter side alone, as `size={"shortest_edge": ...}` asks for.
    """

    do_fundus_crop: bool
    crop_pct: float | list[float] | tuple[float, ...] | None
    keep_aspect_ratio: bool | None


FRAMING = ("size", "crop_pct", "crop_size", "keep_aspect_ratio")
# Up to 224 pixels the official evaluation transform resizes to 256/224 of the input; above, it cuts no margin.
LARGEST_WITH_MARGIN, OFFICIAL_PCT = 224, 224 / 256


class RetFoundImageProcessor(TorchvisionBackend):
    """Fundus crop, resize to 256 x 256 (bicubic, antialiased), centre crop to 224, ImageNet mean and deviation.

    This is RETFound's evaluation transform (reference code, `util/datasets.py`) after the crop of its preprocessing,
    except that images that are not square are squeezed, as all were for pretraining. Accepts what every image
    processor accepts, and paths and bytes; grayscale, palette, RGBA, CMYK, 16-bit and EXIF-rotated images come out as
    upright 8-bit RGB.

    `size` is the network's input. Images are resized to `size / crop_pct` first (`resized_size`), as ConvNeXT's are.
    `crop_size` is the older name of the input: files without `crop_pct`, and calls that pass both sizes, mean by
    `size` what images are resized to.
    """

    valid_kwargs = RetFoundImageProcessorKwargs
    resample = PILImageResampling.BICUBIC
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size: Any = {"height": 224, "width": 224}
    crop_pct: float | tuple[float, float] | None = None  # the official one of the size
    keep_aspect_ratio = False
    do_fundus_crop = True
    do_resize = True
    do_center_crop = True
    do_rescale = True
    do_normalize = True

    def __init__(self, **kwargs: Any):
        _warn_of_backend(kwargs)
        own = {name: getattr(type(self), name) for name in ("size", "crop_pct", "keep_aspect_ratio", "do_center_crop")}
        kwargs |= _framing(kwargs, own)
        kwargs.pop("crop_size")
        super().__init__(**kwargs)

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        """The processor of a stored dictionary, also of the older kind; `kwargs` override its settings."""
        _warn_of_backend(kwargs)
        stored = dict(image_processor_dict)
        if stored.get("crop_pct") is None and stored.get("size") is not None:
            stored["crop_size"] = stored.get("crop_size") or [min(side, 224) for side in _sides(stored["size"])[0]]
        given = {name: kwargs.pop(name) for name in FRAMING if name in kwargs}
        stored = cls(**stored).to_dict() | {key: value for key, value in kwargs.items() if key == "do_center_crop"}
        framing = _framing(given, stored)
        return super().from_dict({**stored, **framing}, **kwargs)

    @classmethod
    def for_image_size(cls, image_size: int, **kwargs: Any) -> "RetFoundImageProcessor":
        """The processor of a network with `image_size` x `image_size` input.

        Up to 224 the image is resized to 256/224 of the input and cropped to its centre; above, it is resized to the
        input itself, as in the official evaluation transform.
        """
        return cls(size={"height": image_size, "width": image_size}, **kwargs)

    @property
    def crop_size(self) -> Any:
        """Height and width of the input, the older name of `size`."""
        return self._named(_framing({}, self.__dict__)["size"])

    @crop_size.setter
    def crop_size(self, value: Any) -> None:
        if value is not None and _sides(value)[0] != _sides(self.crop_size)[0]:
            framing = _framing({"crop_size": value}, self.__dict__)
            self.size, self.crop_pct = self._named(framing["size"]), framing["crop_pct"]

    def _named(self, sides: dict[str, int]) -> Any:
        return SizeDict(**sides) if isinstance(self.size, SizeDict) else sides  # transformers 4.57 has plain ones

    @property
    def resized_size(self) -> dict[str, int]:
        """Size to which images are resized before the centre is cut out, as `images.reading.resize` takes it."""
        return _resized(**_framing({}, self.__dict__), do_center_crop=self.do_center_crop)

    def to_dict(self) -> dict[str, Any]:
        """All settings, with `crop_size` for stock processors, which crop no centre without it."""
        return {**super().to_dict(), "crop_size": _framing({}, self.__dict__)["size"]}

    def preprocess(self, images: Any, *args: Any, **kwargs: Any) -> Any:
        """Pixels of images; every setting can be given for one call."""
        given = {name: kwargs.get(name) for name in (*FRAMING, "do_center_crop")}
        return super().preprocess(images, *args, **{**kwargs, **_framing(given, self.__dict__)})

    def fetch_images(self, images: Any) -> Any:
        """Read paths, addresses, base64 and bytes, and give gray arrays a channel; other images pass unchanged."""
        if isinstance(images, (list, tuple)):
            return [self.fetch_images(image) for image in images]
        if getattr(images, "ndim", None) == 2:
            return images[None]
        if isinstance(images, str):
            return _read_string(images)
        return read_image(images) if isinstance(images, (Path, bytes)) else images

    def process_image(self, image: Any, do_fundus_crop: bool | None = None, **kwargs: Any) -> torch.Tensor:
        """One image as a (3, height, width) tensor, cropped to its field of view when asked to.

        Floats within 0-1 and floats within 0-255 mean the same image as their 8-bit integers do. They keep their
        values where the caller scales them (`do_rescale=False`, or another `rescale_factor`); those that fall below 0
        are standardised already and are not cropped.
        """
        device, values = kwargs.get("device") or getattr(image, "device", None), None
        if not isinstance(image, Image.Image):
            array = _channels_last(image, kwargs.get("input_data_format"))
            if array.dtype.kind == "f":
                factor = kwargs.get("rescale_factor")
                is_scaled = kwargs.get("do_rescale") is False or not (factor is None or math.isclose(factor, 1 / 255))
                values = array if is_scaled else None
                do_fundus_crop = do_fundus_crop and not (is_scaled and array.min(initial=0) < 0)
                if values is None:
                    array = _checked_floats(array)
            if values is not None and not do_fundus_crop:
                return _float_tensor(values, None, device)
            image = _as_image(array)
        image = read_image(image)
        box = crop_box(image) if do_fundus_crop else None
        if values is not None:
            return _float_tensor(values, box, device)
        tensor = to_tensor(image, box)
        return tensor if device is None else tensor.to(device)

    def crop_box(self, image: Image.Image) -> tuple[int, int, int, int]:
        """Part that is cut from an upright RGB image before resizing: (left, top, right, bottom) in pixels."""
        return crop_box(image) if self.do_fundus_crop else (0, 0, *image.size)

    def input_window(self, image: Image.Image, box: tuple[int, int, int, int] | None = None) -> ImageRegion:
        """Place of the network's input on an upright RGB image, as `read_image` makes it.

        Args:
            box: the image's `crop_box`, where it is known already; finding it takes longer than the rest.
        """
        left, top, right, bottom = self.crop_box(image) if box is None else box
        width, height = right - left, bottom - top
        scaled = resized_shape((height, width), self.resized_size) if self.do_resize else (height, width)
        crop = _sides(self.crop_size)[0] if self.do_center_crop else scaled
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
            framing = {name: kwargs[name] for name in ("crop_pct", "keep_aspect_ratio", "do_center_crop")}
            resized = SizeDict(**_resized(size, **framing))
            images = [self.resize(image, resized, resample) for image in images]
        return super()._preprocess(images, do_resize=False, size=size, resample=resample, **kwargs)

    def resize(self, image: torch.Tensor, size: Any, resample: Any = None, **kwargs: Any) -> torch.Tensor:
        """Resize (..., height, width); 8-bit images stay 8-bit, so that a resized image can be stored exactly."""
        return super().resize(image, size, resample=resample, antialias=True)


class RetFoundImageProcessorPil(RetFoundImageProcessor):
    """Name for those who ask `AutoImageProcessor` for `backend="pil"`: they get the one processor, and a warning."""

    @classmethod
    def from_dict(cls, image_processor_dict: dict[str, Any], **kwargs: Any) -> Any:
        return RetFoundImageProcessor.from_dict(image_processor_dict, backend="pil", **kwargs)


def _warn_of_backend(options: dict[str, Any]) -> None:
    """Take `backend` and `use_fast` out of the options, and warn where they ask for another backend."""
    backend, use_fast = options.pop("backend", None), options.pop("use_fast", None)
    if backend not in (None, "torchvision") or use_fast is False:
        logger.warning(
            "RetFoundImageProcessor has one backend, torchvision; `backend='pil'` and `use_fast=False` change nothing"
        )


def _framing(given: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """`size`, `crop_pct` and `keep_aspect_ratio` from the options `given`, else from `own`; `crop_size` is the size.

    Raises:
        BadArgumentError: sizes that are none, or that contradict each other.
    """
    given = {name: value for name, value in given.items() if value is not None}
    chosen = {**own, **given}
    size, is_shorter = _sides(chosen["size"])
    keep = bool(given.get("keep_aspect_ratio", is_shorter or own["keep_aspect_ratio"]))
    pct = chosen["crop_pct"]
    crop = _sides(given["crop_size"], "crop_size")[0] if "crop_size" in given else size
    if crop != size and {"size", "crop_pct"} <= given.keys():
        raise BadArgumentError(
            f"`size={size}` and `crop_size={crop}` contradict each other; beside `crop_pct`, `size` is the network's "
            "input: leave `crop_size` out",
            field="crop_size", value=given["crop_size"],
        )  # fmt: skip
    if "crop_size" in given and "size" in given and "crop_pct" not in given:
        pct = 1.0
    elif pct is None:
        pct = OFFICIAL_PCT if max(size) <= LARGEST_WITH_MARGIN else 1.0
    pct = tuple(map(float, pct)) if isinstance(pct, (list, tuple)) else float(pct)
    for share in pct if isinstance(pct, tuple) else [pct]:
        require_range("crop_pct", share, 0, open_low=True)
    named = {"height": size[0], "width": size[1]}
    if "crop_size" in given and chosen.get("do_center_crop"):
        resized = _resized(named, pct, keep)
        named = {"height": crop[0], "width": crop[1]}
        edge = resized.get("shortest_edge")
        shares = [min(crop) / edge] if edge else [crop[0] / resized["height"], crop[1] / resized["width"]]
        # The official share where it gives the same, so that another size of the input is framed by it too.
        likely = (OFFICIAL_PCT, 1.0, shares[0], tuple(shares))
        pct = next(share for share in likely if _resized(named, share, keep) == resized)
    return {"size": named, "crop_pct": pct, "keep_aspect_ratio": keep, "crop_size": named}


def _sides(size: Any, field: str = "size") -> tuple[tuple[int, int], bool]:
    """Height and width that a size stands for, and whether it names the shorter side alone."""
    named = vars(size) if isinstance(size, SizeDict) else size
    if isinstance(named, Mapping):
        named = {name: side for name, side in named.items() if side is not None}
        is_shorter = named.keys() == {"shortest_edge"}
        is_named = is_shorter or named.keys() == {"height", "width"}
        sides = [named["shortest_edge"]] * 2 if is_shorter else [named.get("height"), named.get("width")]
    else:
        is_shorter, is_named = False, True
        sides = list(named) if isinstance(named, (list, tuple)) else [named, named]
    if not is_named or len(sides) != 2 or not all(isinstance(side, (int, np.integer)) and side > 0 for side in sides):
        raise BadArgumentError(
            f"`{field}={named}` is not accepted; give pixels: a number, a height and a width, or a `shortest_edge`",
            field=field, value=size,
        )  # fmt: skip
    return (int(sides[0]), int(sides[1])), is_shorter


def _resized(
    size: Any, crop_pct: Any, keep_aspect_ratio: bool, do_center_crop: bool = True, **_: Any
) -> dict[str, int]:
    """Size that images are resized to; `size` is its centre."""
    (height, width), _is_shorter = _sides(size)
    shares = crop_pct if isinstance(crop_pct, (list, tuple)) else (crop_pct, crop_pct)
    height_share, width_share = shares if do_center_crop else (1.0, 1.0)
    if keep_aspect_ratio:
        return {"shortest_edge": round(min(height, width) / height_share)}
    return {"height": round(height / height_share), "width": round(width / width_share)}


def _channels_last(values: Any, layout: str | None) -> np.ndarray:
    """An array of shape (channels, height, width) or (height, width, channels) as the latter; 1, 3 or 4 channels."""
    if isinstance(values, torch.Tensor):
        values = (values.float() if values.is_floating_point() else values).detach().cpu()
    array = np.asarray(values)
    array = array.astype(np.float32) if array.dtype.kind == "f" else array
    if array.ndim == 3:
        is_first = array.shape[0] in CHANNELS if layout is None else layout == ChannelDimension.FIRST
        array = array.transpose(1, 2, 0) if is_first else array
    if array.ndim != 3 or array.shape[2] not in CHANNELS:
        raise ValueError(f"an image of shape {tuple(values.shape)} is not accepted; give 1, 3 or 4 channels")
    return array


def _checked_floats(array: np.ndarray) -> np.ndarray:
    """Floats whose range says what is black and white: 0-1, 0-255, or the whole numbers of a deeper sensor.

    Raises:
        BadDataError: other ranges, such as standardised values, or those that an interpolation has overshot.
    """
    known = array[np.isfinite(array)]
    low, high = (float(known.min()), float(known.max())) if known.size else (math.nan, math.nan)
    is_unit, is_whole = high <= 1 + ROUNDING, high > 1 and bool(np.array_equal(array, np.rint(array)))
    if low < -ROUNDING or not (is_unit or is_whole or 2 <= high <= 255 + ROUNDING):
        raise BadDataError(
            f"a float image has values from {low:.4g} to {high:.4g}; clip them to 0-1 or 0-255, or pass "
            "`do_rescale=False` for values that are scaled already"
        )
    return array.clip(0, 1) if is_unit else array if is_whole else array.clip(0, 255)


def _float_tensor(array: np.ndarray, box: tuple[int, int, int, int] | None, device: Any) -> torch.Tensor:
    """Floats (height, width, channels) as a (3, height, width) tensor, cut to a box and black beyond the image."""
    if array.shape[2] == 4:  # transparent pixels become black
        array = array[..., :3] * (array[..., 3:] / (1 if array[..., 3:].max() <= 1 else 255))
    tensor = torch.from_numpy(np.ascontiguousarray(array.transpose(2, 0, 1))).expand(3, -1, -1)
    if box is not None:
        tensor = functional.crop(tensor, box[1], box[0], box[3] - box[1], box[2] - box[0])
    return tensor if device is None else tensor.to(device)


def _as_image(array: np.ndarray) -> Image.Image:
    """Integers or floats of shape (height, width, channels) as an image of 8 bits."""
    height, width, channels = array.shape
    if array.dtype != np.uint8:
        # Pillow has no deep colour: the channels, one below the other as a gray image, share one scale.
        kind = np.float32 if array.dtype.kind == "f" else np.int32
        tall = Image.fromarray(array.transpose(2, 0, 1).reshape(-1, width).astype(kind))
        array = np.asarray(to_rgb(tall))[..., 0].reshape(channels, height, width).transpose(1, 2, 0)
    return Image.fromarray(array[..., 0] if channels == 1 else np.ascontiguousarray(array))


def _read_string(text: str) -> Image.Image:
    """The image that a string stands for, as stock processors have it: a path, an address, base64 or a data address.

    Raises:
        UnreadableImageError: none of them, or no image there.
    """
    is_address, is_data = text.startswith(("http://", "https://")), text.startswith("data:")
    if not is_address and os.path.exists(text):
        return read_image(text)
    reason = "it is no file, no address that begins with http:// or https://, and no base64 of an image"
    content = b""
    if is_address:
        content = _fetch(text)
    else:
        with contextlib.suppress(ValueError):
            content = base64.b64decode("".join(text.partition(",")[2 if is_data else 0].split()), validate=True)
    try:
        if content:
            return read_image(content)
    except UnreadableImageError as error:
        reason = error.reason if is_address else reason
    if len(text) <= LONGEST_NAME and not is_address and not is_data:
        return read_image(text)  # raises: the name of a missing file, which can look like base64
    raise UnreadableImageError(f"cannot read {shown(text)}: {reason}", path=text, reason=reason)


def _fetch(address: str) -> bytes:
    try:
        with urllib.request.urlopen(address, timeout=TIMEOUT) as answer:
            return answer.read()
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = f"it cannot be fetched: {one_line(error)}"
        raise UnreadableImageError(f"cannot read {shown(address)}: {reason}", path=address, reason=reason) from error


def resized_shape(shape: tuple[int, int], size: Mapping[str, int]) -> tuple[int, int]:
    """Height and width that an image of `shape` (height, width) has after `reading.resize`."""
    edge = size.get("shortest_edge")
    if not edge:
        return size["height"], size["width"]
    height, width = (max(edge, int(edge * side / min(shape))) for side in shape)
    return height, width
