"""Images to explain, read in batches, and the folder that `explain` writes."""

import logging
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw, ImageFont, ImageOps
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import PreTrainedConfig

from ..data.image_cache import prepare_image
from ..data.image_sources import BATCH, ImageRef
from ..data.labelled import read_labelled
from ..data.stored_images import ACCEPTED_FILES
from ..errors import BadArgumentError, BadDataError, UnreadableImageError, join_names, require_range
from ..files import write_table
from ..images.drawing import INK, PAPER, contact_sheet
from ..images.field_of_view import ImageRegion
from ..images.reading import read_image, resize
from ..inference.evaluate import split_of_training
from ..inference.predict import EvaluationPixels, ForwardArguments
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..vocabulary import SINGLE_LABEL, problem_type_of

RECONSTRUCTION = "reconstruction"
PREDICTED, LABEL = "predicted", "label"
PICTURES, ARRAYS = "pictures", "arrays"
LONGEST_NAME = 120  # bytes of a file name, of which file systems take 143 to 255
TILE = 256  # pixels of a picture on the contact sheet
logger = logging.getLogger(__name__)


@dataclass
class ExplainArguments:
    model_name_or_path: str = field(
        metadata={"help": "fine-tuned folder or adapter; for reconstruction a pretrained folder"}
    )
    data: str = field(metadata={"help": ACCEPTED_FILES})
    method: Literal["relevance", "relprop", "rollout", "integrated_gradients", "reconstruction"] = field(
        default="relevance", metadata={"help": "method of the relevance maps, or reconstruction by an autoencoder"}
    )
    target: str = field(
        default=PREDICTED, metadata={"help": "class to explain: a name, predicted, or label for each image's own"}
    )
    split: str | None = field(
        default=None, metadata={"help": "split of a labelled set (train, val, test, all); default: every image"}
    )
    label_column: str = field(
        default="label", metadata={"help": "column of the labels in a table, read for target label"}
    )
    steps: int = field(default=32, metadata={"help": "steps of integrated gradients"})
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of hidden patches in a reconstruction; default: the model's"}
    )
    picture_size: int = field(
        default=1024, metadata={"help": "longest side of the pictures in pixels, 0 for the image's own"}
    )
    opacity: float = field(default=0.75, metadata={"help": "opacity of the overlay where relevance is high, 0 to 1"})
    max_images: int = field(default=0, metadata={"help": "explain only the first images, 0 for all"})
    sheet_images: int = field(default=24, metadata={"help": "images on the contact sheet"})

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("picture_size", 0), ("max_images", 0), ("sheet_images", 1)):
            require_range(name, getattr(self, name), least)
        require_range("opacity", self.opacity, 0, 1)
        hides = self.method == RECONSTRUCTION
        if self.mask_ratio is not None:
            if not 0 <= self.mask_ratio < 1:
                message = f"`mask_ratio={self.mask_ratio}` must be at least 0 and below 1"
                raise BadArgumentError(message, field="mask_ratio", value=self.mask_ratio)
            if not hides:
                message = "`mask_ratio` belongs to `method=reconstruction`; leave it out"
                raise BadArgumentError(message, field="mask_ratio", value=self.mask_ratio)
        if hides and self.target != PREDICTED:
            message = "a reconstruction has no class; leave `target` out"
            raise BadArgumentError(message, field="target", value=self.target)


@dataclass
class ExplainForwardArguments(ForwardArguments):
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "images per step"})
    seed: int = field(
        default=0,
        metadata={"help": "seed of the hidden patches; an image's mask depends on it and on the image's id alone"},
    )


@dataclass(frozen=True)
class OpenedImage:
    """Image that was read.

    Attributes:
        id, label: of the source.
        prepared: cropped and resized for the network.
        picture: the whole image, upright, reduced to the size of the pictures.
        region: of the network's input, in pixels of the image.
        size: width and height of the image.
        reason: why it cannot be read, else empty; an unreadable image is blank.
    """

    id: str
    label: str | None
    prepared: Image.Image
    picture: Image.Image
    region: ImageRegion
    size: tuple[int, int]
    reason: str = ""

    @property
    def region_on_picture(self) -> ImageRegion:
        """The region in pixels of the picture."""
        return self.region.scaled(self.picture.width / self.size[0], self.picture.height / self.size[1])


class OpenedImages(Dataset):
    """Sources read in the loader's workers; each image is decoded and searched for its field of view once."""

    def __init__(self, sources: Sequence[ImageRef], processor: RetFoundImageProcessor, picture_size: int):
        self.sources, self.processor, self.picture_size = sources, processor, picture_size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> OpenedImage:
        source, size = self.sources[index], self.processor.resized_size
        label = source.facts.get("label")
        try:
            image = read_image(source.image)
        except UnreadableImageError as error:
            blank, whole = Image.new("RGB", (64, 64)), ImageRegion(0, 0, 64, 64)
            return OpenedImage(source.id, label, resize(blank, size), blank, whole, blank.size, str(error))
        box = self.processor.crop_box(image)
        prepared = prepare_image(image, size, box)
        region = self.processor.input_window(image, box)
        picture = image
        if self.picture_size and max(image.size) > self.picture_size:
            scale = self.picture_size / max(image.size)
            shape = tuple(max(1, round(side * scale)) for side in image.size)
            picture = image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)
        return OpenedImage(source.id, label, prepared, picture, region, image.size)


@dataclass(frozen=True)
class Collator:
    """Opened images with their pixel values (batch, 3, size, size)."""

    to_pixels: EvaluationPixels

    def __call__(self, items: list[OpenedImage]) -> tuple[Tensor, list[OpenedImage]]:
        return self.to_pixels([item.prepared for item in items]), items


def find_sources(
    arguments: ExplainArguments, options: ForwardArguments, config: PreTrainedConfig
) -> Iterator[list[ImageRef]]:
    """Images of `arguments.data` in a fixed order, in groups, so that only one shard is in memory at a time.

    Raises:
        BadDataError: no image, or labels that are asked for and missing.
    """
    labelled = arguments.target == LABEL or arguments.split is not None
    groups = _labelled(arguments, options, config) if labelled else _unlabelled(arguments.data, options)
    left = arguments.max_images or None
    for group in groups:
        yield group[:left]
        left = None if left is None else left - len(group[:left])
        if left == 0:
            return


def _unlabelled(data: Any, options: ForwardArguments) -> Iterator[list[ImageRef]]:
    yield from (list(part.refs) for part in options.source(data).parts(BATCH))


def _labelled(
    arguments: ExplainArguments, options: ForwardArguments, config: PreTrainedConfig
) -> Iterator[list[ImageRef]]:
    kind = problem_type_of(config)
    is_single = kind == SINGLE_LABEL
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if arguments.target == LABEL and not is_single:
        message = f"`target=label` needs one class per image, and the model is of {kind}; pass one of its classes"
        raise BadArgumentError(message, field="target", value=LABEL, accepted=names)
    found = read_labelled(
        arguments.data,
        label_columns=[arguments.label_column] if is_single else None,
        problem_type=kind,
        class_names=names,
        image_column=options.image_column,
        image_root=options.image_root,
        **split_of_training(arguments.model_name_or_path, 0, arguments.data),
        need_splits=() if arguments.split in (None, "all") else (arguments.split,),
    )
    rows = found.rows(arguments.split or "all")
    labels = rows[arguments.label_column] if is_single else [None] * len(rows)
    facts = zip(rows["id"].astype(str), rows["image"], labels, strict=True)
    yield [ImageRef(name, image, {"label": label}) for name, image, label in facts]


class ReadableBatches:
    """Batches of readable images with a progress bar; `rejected` collects (id, reason) of the others.

    Args:
        arguments: images, labels and size of the pictures.
        options: batch size, loader processes, and what happens to unreadable images.
        config: of the model, for the names of its classes.
        processor: of the model.

    Raises:
        UnreadableImageError: an unreadable image, unless they are skipped.
        BadDataError: no readable image.
    """

    def __init__(
        self,
        arguments: ExplainArguments,
        options: ExplainForwardArguments,
        config: PreTrainedConfig,
        processor: RetFoundImageProcessor,
    ):
        self.arguments, self.options, self.config, self.processor = arguments, options, config, processor
        self.rejected: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[tuple[Tensor, list[OpenedImage]]]:
        any_good = False
        with tqdm(desc="explain", unit="image") as bar:
            for sources in find_sources(self.arguments, self.options, self.config):
                bar.total = (bar.total or 0) + len(sources)
                for pixels, items in self._loader(sources):
                    self._reject([item for item in items if item.reason])
                    good = [index for index, item in enumerate(items) if not item.reason]
                    if good:
                        any_good = True
                        yield pixels[good], [items[index] for index in good]
                    bar.update(len(items))
        if not any_good:
            reasons = join_names(f"{name}: {reason}" for name, reason in self.rejected)
            message = f"no image of {self.arguments.data} can be read ({reasons})"
            raise BadDataError(message, rows=[name for name, _ in self.rejected], source=self.arguments.data)

    def _loader(self, sources: Sequence[ImageRef]) -> DataLoader:
        return DataLoader(
            OpenedImages(sources, self.processor, self.arguments.picture_size),
            batch_size=self.options.per_device_eval_batch_size,
            num_workers=min(self.options.dataloader_num_workers, len(sources) if len(sources) > 1 else 0),
            collate_fn=Collator(EvaluationPixels(self.processor)),
        )

    def _reject(self, items: Sequence[OpenedImage]) -> None:
        for item in items:
            if self.options.on_bad_image == "error":
                message = f"image {item.id}: {item.reason}; repair or remove it, or pass `on_bad_image=skip`"
                raise UnreadableImageError(message, path=item.id, reason=item.reason)
            logger.warning("image %s is left out: %s", item.id, item.reason)
            self.rejected.append((item.id, item.reason))


class FileNames:
    """Unique file names for ids, without folders or suffix: `test/mild/a.jpg` becomes `test_mild_a`."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        path = PurePosixPath(name.replace("\\", "/"))
        plain = re.sub(r"[^\w-]+", "_", str(path.with_suffix("") if path.name else path)).strip("_")
        plain = plain.encode()[-LONGEST_NAME:].decode(errors="ignore").strip("_") or "image"
        # File systems may take `A` for `a`, and one letter of two signs for its composed form.
        key = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", plain).casefold())
        count = self.taken[key] = self.taken.get(key, 0) + 1
        return plain if count == 1 else self(f"{plain}-{count}")


class OutputFolder:
    """Folder of explanations; of each image only a row, its patches and, for the first ones, small pictures stay.

    Args:
        folder: existing folder to write into.
        sheet_images: images on the contact sheet.
    """

    def __init__(self, folder: Path, sheet_images: int):
        self.folder, self.sheet_images = folder, sheet_images
        self.titles: tuple[str, ...] = ()
        self.names = FileNames()
        self.rows: list[dict[str, Any]] = []
        self.arrays: dict[str, list[np.ndarray]] = {}
        self.tiles: list[list[Image.Image]] = []
        for name in (PICTURES, ARRAYS):
            (folder / name).mkdir()

    def add(self, explained: Any) -> None:
        """Write picture and map of an `Explanation` or `ImageReconstruction`, and keep its row."""
        opened, self.titles = explained.opened, explained.titles
        name = self.names(opened.id)
        explained.picture().save(self.folder / PICTURES / f"{name}.png")
        # Maps have the scale of the logits: below 6e-5 float16 would leave a calibrated head's a few distinct levels.
        np.save(self.folder / ARRAYS / f"{name}.npy", explained.on_image().astype(np.float32))
        files = {"picture": f"{PICTURES}/{name}.png", "array": f"{ARRAYS}/{name}.npy"}
        self.rows.append({"id": opened.id, **explained.row(), **files})
        region = opened.region
        window = np.array([region.left, region.top, region.right, region.bottom])
        for key, value in {**explained.arrays(), "window": window, "image_size": np.array(opened.size)}.items():
            self.arrays.setdefault(key, []).append(value)
        if len(self.tiles) < self.sheet_images:
            first, *others = explained.tiles()
            self.tiles.append([_tile(first, explained.caption()), *(_tile(tile, "") for tile in others)])

    def close(self) -> None:
        """Write `maps.csv`, `maps.npz` and `contact_sheet.png`."""
        table = pd.DataFrame(self.rows)
        write_table(self.folder / "maps.csv", table, float_format="%.6g")
        arrays = {name: np.stack(values) for name, values in self.arrays.items()}
        np.savez(self.folder / "maps.npz", id=table["id"].to_numpy(str), **arrays)
        # Two images side by side, where there are enough.
        across = 2 if len(self.tiles) > 3 and len(self.titles) == 2 else 1
        blank = Image.new("RGB", self.tiles[0][0].size, PAPER)
        padded = self.tiles + [[blank] * len(self.titles)] * (-len(self.tiles) % across)
        rows = [list(chain(*padded[start : start + across])) for start in range(0, len(padded), across)]
        sheet = contact_sheet(rows, titles=self.titles * across, tile=max(blank.size), margin=8)
        sheet.save(self.folder / "contact_sheet.png")


def _tile(picture: Image.Image, caption: str) -> Image.Image:
    """The picture, `TILE` pixels wide, above its caption."""
    font = ImageFont.load_default(14)
    page = Image.new("RGB", (TILE, TILE + 22), PAPER)
    small = ImageOps.contain(picture, (TILE, TILE), Image.Resampling.BICUBIC)
    page.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    while caption and font.getlength(caption) > TILE:
        caption = caption[:-1]
    ImageDraw.Draw(page).text((TILE / 2, TILE + 11), caption, fill=INK, font=font, anchor="mm")
    return page
