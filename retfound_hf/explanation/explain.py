"""Explanations of images: relevance maps of a classifier, or reconstructions of an autoencoder; command `explain`."""

import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms.v2.functional import to_pil_image
from transformers import PreTrainedModel, ViTMAEForPreTraining

from ..data.tables import TABLE_SUFFIXES
from ..errors import BadArgumentError
from ..files import atomic_folder, exclusive_folder
from ..images.drawing import colours, contact_sheet, heat_on_image, overlay, with_scale
from ..inference.predict import DTYPES, process_state, to_scores
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import load_autoencoder, load_classifier, load_processor
from ..models.reconstruction import Reconstruction, reconstruct
from ..options import build_arguments, parse_arguments
from ..record import write_run_record
from ..vocabulary import REGRESSION, SINGLE_LABEL, problem_type_of
from .attention import view_of
from .outputs import (
    LABEL,
    PREDICTED,
    RECONSTRUCTION,
    ExplainArguments,
    ExplainForwardArguments,
    OpenedImage,
    OutputFolder,
    ReadableBatches,
)  # fmt: skip
from .relevance import relevance

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


@dataclass(frozen=True)
class Explanation:
    """Relevance map of one image.

    Attributes:
        opened: the image, its id, and the region that the network saw.
        patches: (grid, grid) float32, row 0 at the top; see `RelevanceMaps.patches`.
        target: explained class, or predicted value of a regression.
        index: number of the target among the model's outputs.
        score: probability of the class, or the predicted value.
        problem_type: of the model.
        method: of the map.
        opacity: of the overlay where relevance is high, 0 to 1.
        prediction: class of highest probability; None unless classes exclude each other.
    """

    opened: OpenedImage
    patches: np.ndarray
    target: str
    index: int
    score: float
    problem_type: str
    method: str
    opacity: float
    prediction: str | None = None

    titles = ("image", "relevance")

    def overlay(self, opacity: float | None = None) -> Image.Image:
        """The image under its map; `opacity` from 0 to 1."""
        image = self.opened.picture
        heat = heat_on_image(self.patches, self.opened.region_on_picture, image.size)
        return overlay(image, heat.values, self.opacity if opacity is None else opacity)

    def on_image(self) -> np.ndarray:
        """The map on the pixels of the picture, (height, width); 0 where the network saw nothing."""
        return self.opened.region_on_picture.place(self.patches, self.opened.picture.size)

    def picture(self) -> Image.Image:
        """`overlay` above a strip with class, score and scale."""
        image = self.opened.picture
        heat = heat_on_image(self.patches, self.opened.region_on_picture, image.size)
        number = f"{self.score:.4g}" if self.problem_type == REGRESSION else f"probability {self.score:.2f}"
        return with_scale(self.overlay(), f"{self.target}, {number} ({self.method.replace('_', ' ')})", heat.top)

    def row(self) -> dict[str, Any]:
        """Row of `maps.csv` without id and files."""
        score = "value" if self.problem_type == REGRESSION else "probability"
        row = {"class": self.target, score: self.score, "prediction": self.prediction, "label": self.opened.label}
        return {name: value for name, value in row.items() if value is not None}

    def arrays(self) -> dict[str, Any]:
        """Arrays of `maps.npz`."""
        return {"patches": self.patches, "target": self.index}

    def tiles(self) -> list[Image.Image]:
        """Pictures of the contact sheet, one for each of `titles`: the region that the network saw."""
        region = self.opened.region_on_picture
        edges = tuple(round(edge) for edge in (region.left, region.top, region.right, region.bottom))
        return [picture.crop(edges) for picture in (self.opened.picture, self.overlay())]

    def caption(self) -> str:
        """Line below the tiles."""
        return f"{self.target} {self.score:{'.4g' if self.problem_type == REGRESSION else '.2f'}}"


@dataclass(frozen=True)
class ImageReconstruction:
    """Reconstruction of one image by a masked autoencoder.

    Attributes:
        opened: the image, its id, and the region that the network saw.
        pictures: original, masked, reconstructed and error, (3, size, size) each in 0..1.
        error: (grid, grid) reconstruction error of the patches.
        mask: bool (grid, grid), the hidden patches.
    """

    opened: OpenedImage
    pictures: tuple[Tensor, ...]
    error: np.ndarray
    mask: np.ndarray

    titles = COLUMNS

    @property
    def loss(self) -> float:
        """Mean error of the hidden patches."""
        return float(self.error[self.mask].mean()) if self.mask.any() else 0.0

    def on_image(self) -> np.ndarray:
        """The error on the pixels of the picture, (height, width)."""
        return self.opened.region_on_picture.place(self.error, self.opened.picture.size)

    def picture(self) -> Image.Image:
        """The four pictures side by side, titled."""
        return contact_sheet([list(self.pictures)], titles=COLUMNS)

    def row(self) -> dict[str, Any]:
        """Row of `maps.csv` without id and files."""
        return {"loss": self.loss, "hidden": float(self.mask.mean(dtype=np.float32))}

    def arrays(self) -> dict[str, Any]:
        """Arrays of `maps.npz`."""
        return {"error": self.error, "mask": self.mask}

    def tiles(self) -> list[Image.Image]:
        """Pictures of the contact sheet, one for each of `titles`."""
        return [to_pil_image(picture.cpu()) for picture in self.pictures]

    def caption(self) -> str:
        """Line below the tiles."""
        return f"loss {self.loss:.3f}"


def _maps(model: PreTrainedModel, batches: ReadableBatches) -> Iterator[Explanation]:
    arguments = batches.arguments
    names = [str(model.config.id2label[index]) for index in range(model.config.num_labels)]
    kind = problem_type_of(model.config)
    precision = DTYPES[batches.options.options["precision"]]
    for pixels, items in batches:
        target = {PREDICTED: None, LABEL: [item.label for item in items]}.get(arguments.target, arguments.target)
        with torch.autocast(model.device.type, dtype=precision or torch.bfloat16, enabled=precision is not None):
            maps = relevance(model, pixels, target, arguments.method, arguments.steps)
        scores = to_scores(maps.logits.numpy(), kind)
        for item, patches, index, score in zip(
            items, maps.patches.numpy(), maps.targets.tolist(), scores, strict=True
        ):
            predicted = names[score.argmax()] if kind == SINGLE_LABEL else None
            yield Explanation(
                item, patches, names[index], index, float(score[index]), kind, arguments.method, arguments.opacity,
                predicted,
            )  # fmt: skip


def _reconstructions(model: PreTrainedModel, batches: ReadableBatches) -> Iterator[ImageReconstruction]:
    ratio, seed = batches.arguments.mask_ratio, batches.options.seed
    for pixels, items in batches:
        found = paint(model, pixels, [item.id for item in items], batches.processor, ratio, seed)
        for index, item in enumerate(items):
            error, mask = found.error[index].cpu().numpy(), found.mask[index].cpu().numpy()
            yield ImageReconstruction(item, tuple(sheet_row(found, index)), error, mask)


def _explained(
    arguments: ExplainArguments, options: ExplainForwardArguments
) -> tuple[Iterator[Explanation | ImageReconstruction], ReadableBatches]:
    name, hides = arguments.model_name_or_path, arguments.method == RECONSTRUCTION
    model = (load_autoencoder if hides else load_classifier)(name).to(process_state().device)
    batches = ReadableBatches(arguments, options, model.config, load_processor(name))
    make: Callable[..., Iterator[Explanation | ImageReconstruction]] = _reconstructions if hides else _maps
    return make(model, batches), batches


def write_explanations(
    arguments: ExplainArguments, options: ExplainForwardArguments, keep: bool = False
) -> list[Explanation | ImageReconstruction]:
    """Explain images and write the folder, whole or not at all.

    Args:
        arguments: model, images and method.
        options: output folder, batch size and precision.
        keep: return the explanations, which hold the pictures of all images in memory.

    Raises:
        BadModelError: a model without classifier or decoder.
        BadDataError: images that are missing or unreadable.
    """
    started = time.time()
    folder, kept = Path(options.output_dir), []
    with exclusive_folder(folder), atomic_folder(folder, options.overwrite_output_dir) as partial:
        explained, batches = _explained(arguments, options)
        outputs = OutputFolder(partial, arguments.sheet_images)
        for one in explained:
            outputs.add(one)
            kept += [one] if keep else []
        outputs.close()
        write_run_record(
            partial, "explain", [replace(arguments, data=str(arguments.data)), options],
            seconds=round(time.time() - started, 1), images=len(outputs.rows), rejected_images=batches.rejected,
        )  # fmt: skip
    return kept


def explain(
    model: str,
    images: str | Path | Image.Image | Sequence[str | Path | Image.Image],
    target: str | None = None,
    method: str = "relevance",
    output_dir: str | Path | None = None,
    **options: Any,
) -> Explanation | ImageReconstruction | list[Explanation | ImageReconstruction]:
    """Explain images: where a classifier looks, or what an autoencoder reconstructs.

    Args:
        model: fine-tuned folder or adapter; for `method="reconstruction"` a pretrained folder.
        images: an image, several, or what `open_files` takes: files, a table, a Hub id, an address.
        target: class to explain, or "label" for each image's own; the predicted class where None.
        method: "relevance", "relprop", "rollout", "integrated_gradients" or "reconstruction".
        output_dir: folder for pictures, arrays and tables; nothing is written where None.
        **options: further fields of `ExplainArguments` and `ForwardArguments`.

    Returns:
        `Explanation` (`ImageReconstruction`) of a single image, else a list of them.

    Raises:
        BadModelError: a model without classifier or decoder.
        BadDataError: images that are missing or unreadable.
        BadArgumentError: an unknown class or method.
    """
    single = isinstance(images, Image.Image) or (isinstance(images, (str, Path)) and Path(images).is_file())
    single = single and not str(images).lower().endswith(TABLE_SUFFIXES)
    if isinstance(images, Image.Image):
        images = [images]
    asked = {
        "model_name_or_path": model, "data": str(images) if isinstance(images, Path) else images, "method": method,
        "target": target or PREDICTED, "output_dir": "" if output_dir is None else str(output_dir), **options,
    }  # fmt: skip
    arguments, forward = build_arguments((ExplainArguments, ExplainForwardArguments), asked)
    if output_dir is None:
        found = list(_explained(arguments, forward)[0])
    else:
        found = write_explanations(arguments, forward, keep=True)
    return found[0] if single else found


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, explain, and print where the results are."""
    arguments, options = parse_arguments(
        ExplainArguments,
        ExplainForwardArguments,
        argv=argv,
        description="Relevance maps of a classifier, or reconstructions of an autoencoder, on the images themselves.",
    )
    write_explanations(arguments, options)
    print(f"Written to {options.output_dir}: pictures/, arrays/, maps.csv, maps.npz, contact_sheet.png")
