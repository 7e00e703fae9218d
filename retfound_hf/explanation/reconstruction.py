"""Reconstructions of a masked autoencoder, the same for an image in any batch."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import ViTMAEForPreTraining

from ..errors import BadArgumentError
from ..images.drawing import colours
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.reconstruction import Reconstruction, reconstruct
from .attention import view_of

COLUMNS = ("original", "masked", "reconstructed", "error")


def paint(
    model: ViTMAEForPreTraining,
    pixel_values: Tensor,
    ids: Sequence[str],
    processor: RetFoundImageProcessor,
    mask_ratio: float | None = None,
    seed: int = 0,
) -> Reconstruction:
    """Hide patches of images and reconstruct them by the autoencoder.

    The model is left as it is, and several threads may share it. Reconstructions of a model that was trained with
    `norm_pix_loss` get each hidden patch's own brightness and contrast; see `models.reconstruction`.

    Args:
        model: with a decoder.
        pixel_values: (batch, 3, size, size), standardised by `processor`.
        ids: of the images; an image's mask depends on its id, `seed` and the ratio only.
        processor: of the model, for mean and deviation.
        mask_ratio: share of hidden patches, at least 0 and below 1; None takes the model's.
        seed: of the masks.

    Raises:
        BadArgumentError: a ratio out of range.
        RetFoundError: a model without decoder, or images that the model refuses.
    """
    view = view_of(model)
    if mask_ratio is not None:
        if not 0 <= mask_ratio < 1:
            message = f"`mask_ratio={mask_ratio}` must be at least 0 and below 1"
            raise BadArgumentError(message, field="mask_ratio", value=mask_ratio)
        view.config.mask_ratio = mask_ratio
    patch = getattr(view.config, "patch_size", 1)
    patches = (pixel_values.shape[-1] // patch) ** 2
    noise = torch.stack([_noise(name, seed, patches) for name in ids])
    return reconstruct(view, pixel_values, noise, processor.image_mean, processor.image_std)


def sheet_row(found: Reconstruction, index: int) -> list[Tensor]:
    """Pictures of one image, one for each of `COLUMNS`."""
    error = error_picture(found.error[index], found.mask[index], found.original.shape[-1])
    return [found.original[index], found.masked[index], found.reconstructed[index], error]


def error_picture(error: Tensor, mask: Tensor, size: int) -> Tensor:
    """Error of hidden patches in colours, from 0 to the image's largest; visible patches are white.

    Args:
        error: (grid, grid).
        mask: bool (grid, grid), the hidden patches.
        size: pixels on a side.

    Returns:
        (3, size, size) in 0..1.
    """
    error, mask = error.cpu(), mask.cpu()
    heat = error / error.max().clamp(min=torch.finfo(error.dtype).tiny)
    picture = torch.from_numpy(colours(heat.numpy())).permute(2, 0, 1) / 255
    return nn.functional.interpolate(picture.where(mask, 1.0)[None], (size, size), mode="nearest")[0]


def _noise(name: str, seed: int, patches: int) -> Tensor:
    digest = hashlib.blake2b(f"{seed}:{name}".encode(), digest_size=8).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)
    return torch.rand(patches, generator=generator)
