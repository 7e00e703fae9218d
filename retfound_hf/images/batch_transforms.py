"""Augmentation of a whole batch on its device: crops, flips, colour jitter, blur, solarisation, normalisation."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from ..errors import BadArgumentError, BadDataError, require_range

ATTEMPTS = 10
CHUNK_BYTES = 256 * 2**20  # that `resize_by_products` holds at a time: 68 images of 256 x 256 pixels


def draw_crops(
    count: int,
    height: int,
    width: int,
    generator: torch.Generator,
    scale: tuple[float, float] = (0.2, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Draw crops with the distribution of torchvision's `RandomResizedCrop`, for all images at once.

    The share of the area is uniform in `scale`, the logarithm of width / height uniform in `ratio`, the place uniform
    where the crop fits. Each row has ten attempts at a crop that fits, then the largest central one is taken. Every
    row takes the same number of draws, so the first rows of a longer drawing are those of a shorter one.

    Args:
        count: number of crops. To split a global batch over processes, draw for all of it and take slices.
        height, width: of the images in pixels.
        generator: on the CPU, so that the crops are the same whatever device the images are on.
        scale: smallest and largest share of the image's area.
        ratio: smallest and largest width / height.

    Returns:
        int64 (count, 4): top, left, height, width in pixels.

    Raises:
        BadArgumentError, BadDataError: a size below 1, or a range that is empty or reaches 0.
    """
    if min(height, width) < 1:
        raise BadDataError(f"images of {height} x {width} pixels cannot be cropped; both sides must be at least 1")
    for name, (low, high) in (("scale", scale), ("ratio", ratio)):
        if not 0 < low <= high:
            message = f"`{name}` ({low}, {high}) must be a positive number and one that is not smaller"
            raise BadArgumentError(message, field=name, value=(low, high))
    area, shape, y, x = torch.rand(count, 4, ATTEMPTS, generator=generator, dtype=torch.float64).unbind(1)
    area = height * width * (scale[0] + (scale[1] - scale[0]) * area)
    shape = torch.exp(math.log(ratio[0]) + (math.log(ratio[1]) - math.log(ratio[0])) * shape)
    widths, heights = (area * shape).sqrt().round(), (area / shape).sqrt().round()
    fits = (widths >= 1) & (widths <= width) & (heights >= 1) & (heights <= height)
    tops, lefts = (y * (height - heights + 1)).floor(), (x * (width - widths + 1)).floor()
    attempts = torch.stack([tops, lefts, heights, widths], dim=-1).long()
    first = fits.int().argmax(dim=1)  # of equal values argmax returns the first
    central = torch.tensor(_central_crop(height, width, ratio))
    return torch.where(fits.any(dim=1)[:, None], attempts[torch.arange(count), first], central)


def draw_flips(count: int, generator: torch.Generator) -> Tensor:
    """Whether each image is mirrored, at even odds: bool (count,), from a generator on the CPU."""
    return torch.rand(count, generator=generator) < 0.5


def crop_resize(images: Tensor, crops: Tensor, size: int, flips: Tensor | None = None) -> Tensor:
    """Cut every image to its own crop and resize that bicubically and antialiased, as Pillow and torchvision do.

    A CPU takes torch's kernel for 8 bits, image by image, and the result is torchvision's; any other device takes
    `resize_by_products`, and the result differs from that by its rounding only, 0.3 levels of 255 on average.

    Args:
        images: uint8 (count, channels, height, width).
        crops: integers (count, 4): top, left, height, width, within the image (not checked: it would wait for the
            device). Crops on the CPU are copied to the images' device.
        size: height and width of the result.
        flips: bool (count,), images to mirror after the crop; None for none.

    Returns:
        float32 (count, channels, size, size) within 0..255.

    Raises:
        BadDataError: another type or shape.
    """
    _check(images, crops, size, flips)
    return (_resize_each if images.device.type == "cpu" else resize_by_products)(images, crops, size, flips)


def _resize_each(images: Tensor, crops: Tensor, size: int, flips: Tensor | None) -> Tensor:
    resized = torch.empty(*images.shape[:2], size, size)
    flipped = [False] * len(images) if flips is None else flips.tolist()
    for index, (top, left, height, width) in enumerate(crops.tolist()):
        crop = images[index, None, :, top : top + height, left : left + width]
        crop = crop.contiguous(memory_format=torch.channels_last)  # which the kernel reads twice as fast
        made = interpolate(crop, (size, size), mode="bicubic", antialias=True)[0]
        resized[index] = made.flip(-1) if flipped[index] else made
    return resized


def resize_by_products(images: Tensor, crops: Tensor, size: int, flips: Tensor | None = None) -> Tensor:
    """`crop_resize` on a GPU; the result is not rounded.

    The resampling is separable (Pillow `src/libImaging/Resample.c`: Keys' cubic with a = -0.5, stretched when it
    shrinks, cut at the crop's edge and renormalised), so each image needs one matrix for its rows and one for its
    columns, and a batch two matrix products. There is no loop over images and nothing waits for the device. A CPU
    takes five times as long for it as for torch's kernel, since most of each matrix is 0.

    It is computed in float32 under autocast too. TF32 is left as it is set: its 10-bit mantissa holds the pixels
    exactly and moves the weights and the first product by at most 2^-10 of themselves, 0.2 levels on average.
    """
    count, channels, height, width = images.shape
    device = images.device
    top, left, crop_height, crop_width = crops.to(device, torch.float32, non_blocking=True).unbind(1)
    flips = None if flips is None else flips.to(device, non_blocking=True)
    resized = torch.empty(count, channels, size, size, device=device)
    per_image = 4 * (channels * (height * width + height * size + size**2) + 4 * size * (height + width))
    chunk = max(1, CHUNK_BYTES // per_image)
    with torch.autocast(device.type, enabled=False):
        for start in range(0, count, chunk):
            part = slice(start, start + chunk)
            across = _weights(left[part], crop_width[part], width, size, None if flips is None else flips[part])
            down = _weights(top[part], crop_height[part], height, size)
            # Channels between rows and columns: both products then take plain matrices, without a copy in between.
            pixels = images[part].transpose(1, 2).to(torch.float32, memory_format=torch.contiguous_format)
            # Columns first and clamped before the rows, the order in which the 8-bit implementations overshoot.
            rows = torch.bmm(pixels.flatten(1, 2), across.transpose(1, 2)).clamp_(0, 255)
            values = torch.bmm(down, rows.unflatten(1, (height, channels)).flatten(2))
            torch.clamp(values.unflatten(2, (channels, size)).transpose(1, 2), 0, 255, out=resized[part])
    return resized


def normalize(pixels: Tensor, mean: Sequence[float] | Tensor, std: Sequence[float] | Tensor) -> Tensor:
    """Standardise pixels of 0..255 by channel, in place: (pixels / 255 - mean) / std.

    A second batch would cost a CPU more than the arithmetic: it gets the memory of large tensors anew every time.

    Args:
        pixels: float (count, channels, height, width), which are changed and returned.
        mean, std: one number per channel for values in 0..1; tensors on the device spare a copy to it per call.
    """
    mean, std = (
        torch.as_tensor(part, dtype=pixels.dtype, device=pixels.device)[:, None, None] for part in (mean, std)
    )
    return pixels.mul_(1 / (255 * std)).sub_(mean / std)


def _weights(start: Tensor, length: Tensor, side: int, size: int, flips: Tensor | None = None) -> Tensor:
    """Weight of each of `side` pixels in each of `size` resized ones: (count, size, side), rows sum to 1."""
    scale = (length / size)[:, None]
    target = torch.arange(size, device=start.device).expand(len(start), size)
    if flips is not None:
        target = torch.where(flips[:, None], size - 1 - target, target)
    centre = start[:, None] + (target + 0.5) * scale
    source = torch.arange(side, device=start.device)
    inside = (source >= start[:, None]) & (source < (start + length)[:, None])
    weights = _cubic((source + 0.5 - centre[..., None]) / scale[..., None].clamp(min=1)) * inside[:, None]
    return weights / weights.sum(dim=-1, keepdim=True)


def _cubic(x: Tensor) -> Tensor:
    """The cubic convolution kernel of Keys (1981) with a = -0.5."""
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0.0))


def _central_crop(height: int, width: int, ratio: tuple[float, float]) -> tuple[int, int, int, int]:
    """The largest central crop whose width / height is within `ratio`: top, left, height, width."""
    crop_height = min(height, round(width / ratio[0]))
    crop_width = min(width, round(height * ratio[1]))
    return (height - crop_height) // 2, (width - crop_width) // 2, crop_height, crop_width


def _check(images: Tensor, crops: Tensor, size: int, flips: Tensor | None) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise BadDataError(
            f"images are {images.dtype} of shape {tuple(images.shape)}; give uint8 (count, channels, height, width)"
        )
    if tuple(crops.shape) != (len(images), 4):
        raise BadDataError(f"crops have shape {tuple(crops.shape)}; give ({len(images)}, 4), one row per image")
    if flips is not None and (flips.dtype != torch.bool or tuple(flips.shape) != (len(images),)):
        raise BadDataError(f"flips are {flips.dtype} of shape {tuple(flips.shape)}; give bool ({len(images)},)")
    require_range("size", size, 1)


def turn_hue(pixels: Tensor, turns: Tensor) -> Tensor:
    """Turn the hue by `turns` of the colour circle and keep saturation and value (Smith 1978), as torchvision does.

    Args:
        pixels: float (count, 3, height, width) in 0..255.
        turns: (count,); 0 leaves an image as it is, but for rounding.
    """
    hue, chroma, value = _hue_chroma_value(pixels)
    hue = (hue + turns[:, None, None]) % 1.0
    # Each channel falls from `value` by the chroma, as far as the hue lies from the channel's own (Smith's hexcone).
    channels = []
    for offset in (5.0, 3.0, 1.0):
        place = (offset + 6 * hue) % 6.0
        channels.append(value - chroma * torch.minimum(place, 4 - place).clamp(0, 1))
    return torch.stack(channels, dim=1)


def _hue_chroma_value(pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(count, height, width) each: hue in 0..1, largest minus smallest channel, largest channel."""
    red, green, blue = pixels.unbind(1)
    value, smallest = pixels.amax(dim=1), pixels.amin(dim=1)
    chroma = value - smallest
    scale = torch.where(chroma > 0, chroma, torch.ones_like(chroma))
    sixth = torch.where(
        value == red,
        (green - blue) / scale,
        torch.where(value == green, 2 + (blue - red) / scale, 4 + (red - green) / scale),
    )
    return sixth / 6 % 1.0, chroma, value


GRAY = (0.2989, 0.587, 0.114)
# The places of the operations in `factors` and `order` of `jitter_colour`.
BRIGHTNESS, CONTRAST, SATURATION = range(3)


def draw_jitter(
    count: int,
    generator: torch.Generator,
    probability: float,
    brightness: float = 0.0,
    contrast: float = 0.0,
    saturation: float = 0.0,
    hue: float = 0.0,
) -> dict[str, Tensor]:
    """Draw as torchvision's `ColorJitter` does, for a share `probability` of the images; others are left as they are.

    Args:
        count: number of images.
        generator: on the CPU.
        brightness, contrast, saturation: the factor is uniform in 1 -/+ this.
        hue: the turn is uniform in -/+ this, in turns of the colour circle.

    Returns:
        `factors` float32 (count, 3) and `turns` float32 (count,) for `jitter_colour`; `order` int64 (count, 3), a
        permutation of the first three operations.
    """
    jittered = torch.rand(count, generator=generator) < probability
    spread = 2 * torch.rand(count, 4, generator=generator) - 1
    order = torch.rand(count, 3, generator=generator).argsort(dim=1)
    spread = spread * torch.tensor([brightness, contrast, saturation, hue]) * jittered[:, None]
    return {"factors": 1 + spread[:, :3], "turns": spread[:, 3].clone(), "order": order}


def jitter_colour(pixels: Tensor, factors: Tensor, order: Tensor, turns: Tensor | None = None) -> Tensor:
    """Brightness, contrast and saturation in each image's own order, then hue.

    Each of the three is a blend with a reference (black, the image's mean gray, every pixel's own gray), so that a
    batch with mixed orders needs three blends. Hue comes last for all; torchvision mixes it in, and nearly commutes.

    Args:
        pixels: float (count, 3, height, width) in 0..255.
        factors: (count, 3) for brightness, contrast, saturation; 1 leaves the image as it is.
        order: (count, 3), which of the three comes first, second, third.
        turns: (count,) of the hue, in turns; None for none.
    """
    for place in range(order.shape[1]):
        operation = order[:, place, None, None, None]
        factor = factors.gather(1, order[:, place : place + 1])[..., None, None]
        gray = to_gray(pixels)
        reference = torch.where(operation == CONTRAST, gray.mean(dim=(1, 2, 3), keepdim=True), gray)
        reference = reference * (operation != BRIGHTNESS)
        pixels = torch.lerp(reference, pixels, factor).clamp_(0, 255)
    return pixels if turns is None else turn_hue(pixels, turns)


def to_gray(pixels: Tensor) -> Tensor:
    """Luma (ITU-R BT.601, as Pillow and torchvision): (count, 3, height, width) -> (count, 1, height, width)."""
    red, green, blue = pixels.unbind(1)
    return (GRAY[0] * red + GRAY[1] * green + GRAY[2] * blue)[:, None]


def grayscale(pixels: Tensor, chosen: Tensor) -> Tensor:
    """The images of `chosen`, bool (count,), without their colour."""
    return torch.where(chosen[:, None, None, None], to_gray(pixels), pixels)


def solarize(pixels: Tensor, chosen: Tensor, threshold: float = 128.0) -> Tensor:
    """The images of `chosen`, bool (count,), with their bright values inverted: those from `threshold` on."""
    return torch.where(chosen[:, None, None, None] & (pixels >= threshold), 255 - pixels, pixels)


def blur(pixels: Tensor, sigmas: Tensor, kernel_size: int) -> Tensor:
    """Gaussian blur with reflected edges, each image with its own width.

    It is separable: a matrix for rows and the same for columns, hence two matrix products for the batch.

    Args:
        pixels: float (count, channels, side, side).
        sigmas: (count,) in pixels; 0 leaves the image as it is.
        kernel_size: odd, at most 2 * side - 1; the bell is cut there, as in torchvision.
    """
    weights = _blur_weights(sigmas, pixels.shape[-1], kernel_size)[:, None]
    with torch.autocast(pixels.device.type, enabled=False):
        return weights @ pixels @ weights.transpose(2, 3)


def _blur_weights(sigmas: Tensor, side: int, kernel_size: int) -> Tensor:
    """Weight of every pixel of a line in every blurred one: (count, side, side), rows sum to 1."""
    place = torch.arange(side, device=sigmas.device)
    to, source = place[:, None], place[None]
    # A pixel gives to others directly, mirrored at the first pixel, and mirrored at the last; those two themselves
    # are not doubled.
    left, right = (to + source).masked_fill(source == 0, side * 4), 2 * (side - 1) - to - source
    distances = torch.stack([(to - source).abs(), left, right.masked_fill(source == side - 1, side * 4)])
    narrow = sigmas.clamp(min=1e-3)[:, None, None, None]
    weights = torch.exp(-0.5 * (distances / narrow) ** 2) * (distances <= kernel_size // 2)
    weights = weights.sum(dim=1)
    return weights / weights.sum(dim=2, keepdim=True)
