"""Images to explain, and the folder that `explain` writes."""

import logging
import re
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
from ..data.image_sources import BATCH, ImageRef, open_files
from ..data.labelled import read_labelled
from ..errors import RetFoundError, join_names
from ..images.drawing import INK, PAPER, contact_sheet
from ..images.geometry import ImageRegion, resize
from ..images.reading import IMAGE_SUFFIXES, UnreadableImageError, read_image
from ..inference.evaluate import split_of_training
from ..inference.predict import EvaluationPixels, ForwardArguments
from ..models.image_processing_retfound import RetFoundImageProcessor

LONGEST = 120


class FileNames:
    """Gives every id a name of its own without folders or suffix: `test/mild/a.jpg` becomes `test_mild_a`."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        path = PurePosixPath(name.replace("\\", "/"))
        # File systems that do not tell cases apart must hold both `A` and `a`.
        plain = re.sub(r"[^\w-]+", "_", str(path.with_suffix("") if path.name else path)).strip("_")
        plain = plain[-LONGEST:] or "image"
        count = self.taken[plain.lower()] = self.taken.get(plain.lower(), 0) + 1
        return plain if count == 1 else self(f"{plain}-{count}")


RECONSTRUCTION = "reconstruction"
PREDICTED, LABEL = "predicted", "label"


@dataclass
class ExplainArguments:
    model_name_or_path: str = field(metadata={"help": "fine-tuned folder or adapter; for reconstruction a pretrained"})
    data: str = field(metadata={"help": "an image, a folder, a CSV or parquet table, or a folder of shards"})
    method: Literal["relevance", "relprop", "rollout", "integrated_gradients", "reconstruction"] = field(
        default="relevance", metadata={"help": "how the maps are made, or what the autoencoder paints"}
    )
    target: str = field(
        default=PREDICTED, metadata={"help": "class to explain: a name, `predicted`, or `label` for each image's own"}
    )
    split: str | None = field(
        default=None, metadata={"help": "split of a labelled set (train, val, test, all); default: every image"}
    )
    label_column: str = field(default="label", metadata={"help": "column of a table that `--target label` reads"})
    steps: int = field(default=32, metadata={"help": "of integrated gradients"})
    mask_ratio: float | None = field(
        default=None, metadata={"help": "share of hidden patches in a reconstruction; default: the model's"}
    )
    picture_size: int = field(
        default=1024, metadata={"help": "longest side of the pictures in pixels, 0 for the image's own"}
    )
    opacity: float = field(default=0.75, metadata={"help": "of the overlay where relevance is high, 0 to 1"})
    max_images: int = field(default=0, metadata={"help": "explain only the first images, 0 for all"})
    sheet_images: int = field(default=24, metadata={"help": "images on the contact sheet"})

    def __post_init__(self) -> None:
        for name, least in (("steps", 1), ("picture_size", 0), ("max_images", 0), ("sheet_images", 1)):
            if getattr(self, name) < least:
                raise RetFoundError(f"--{name} {getattr(self, name)} must be at least {least}")
        if not 0 <= self.opacity <= 1:
            raise RetFoundError(f"--opacity {self.opacity} is out of range; give a number from 0 to 1")
        if self.mask_ratio is not None and not 0 <= self.mask_ratio < 1:
            raise RetFoundError(f"--mask_ratio {self.mask_ratio} is out of range; give a number from 0 to below 1")
        if self.mask_ratio is not None and self.method != RECONSTRUCTION:
            raise RetFoundError("--mask_ratio belongs to --method reconstruction; leave it out")
        if self.method == RECONSTRUCTION and self.target != PREDICTED:
            raise RetFoundError("a reconstruction has no class; leave --target out")


@dataclass
class ExplainForwardArguments(ForwardArguments):
    per_device_eval_batch_size: int = field(default=8, metadata={"help": "images per step"})
    seed: int = field(default=0, metadata={"help": "of the hidden patches; with an image's id it gives its mask"})


@dataclass(frozen=True)
class Opened:
    """An image that was read.

    Attributes:
        prepared: cropped and resized for the network.
        picture: the whole image, upright, reduced to the size of the pictures.
        window: of the network's input, in pixels of the image.
        size: width and height of the image.
        reason: why it cannot be read, else empty; the rest then stands for nothing.
    """

    source: ImageRef
    prepared: Image.Image
    picture: Image.Image
    window: ImageRegion
    size: tuple[int, int]
    reason: str = ""

    @property
    def window_on_picture(self) -> ImageRegion:
        return self.window.scaled(self.picture.width / self.size[0], self.picture.height / self.size[1])


class Opening(Dataset):
    """Reads sources in the loader's workers; each image is decoded and searched for its field once."""

    def __init__(self, sources: Sequence[ImageRef], processor: RetFoundImageProcessor, picture_size: int):
        self.sources, self.processor, self.picture_size = sources, processor, picture_size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Opened:
        source, size = self.sources[index], dict(self.processor.size)
        try:
            image = read_image(source.image)
        except UnreadableImageError as error:
            blank = Image.new("RGB", (64, 64))
            return Opened(source, resize(blank, size), blank, ImageRegion(0, 0, 64, 64), blank.size, str(error))
        box = self.processor.crop_box(image)
        prepared = prepare_image(image, size, box)
        window = self.processor.input_window(image, box)
        return Opened(source, prepared, _reduced(image, self.picture_size), window, image.size)


@dataclass(frozen=True)
class _Collator:
    to_pixels: EvaluationPixels

    def __call__(self, items: list[Opened]) -> tuple[Tensor, list[Opened]]:
        return self.to_pixels([item.prepared for item in items]), items


def find_sources(arguments: ExplainArguments, config: PreTrainedConfig) -> Iterator[list[ImageRef]]:
    """The images of `--data` in groups of which the memory of shards bounds the size, in a fixed order.

    Raises:
        RetFoundError: nothing there, or labels that are asked for and not there.
    """
    labelled = arguments.target == LABEL or arguments.split is not None
    groups = _labelled(arguments, config) if labelled else _unlabelled(arguments.data)
    left = arguments.max_images or None
    for group in groups:
        group = group[:left]
        yield group
        left = None if left is None else left - len(group)
        if left == 0:
            return


def opened_batches(
    sources: Sequence[ImageRef],
    processor: RetFoundImageProcessor,
    picture_size: int,
    batch_size: int,
    num_workers: int,
) -> Iterator[tuple[Tensor, list[Opened]]]:
    """Pixel values (batch, 3, size, size) and what belongs to them."""
    yield from DataLoader(
        Opening(sources, processor, picture_size),
        batch_size=batch_size,
        num_workers=min(num_workers, len(sources)),
        collate_fn=_Collator(EvaluationPixels(processor)),
    )


def _unlabelled(data: str) -> Iterator[list[ImageRef]]:
    path = Path(data)
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        yield [ImageRef(path.name, str(path))]
        return
    for part in open_files(data).parts(BATCH):
        yield list(part.refs)


def _labelled(arguments: ExplainArguments, config: PreTrainedConfig) -> Iterator[list[ImageRef]]:
    kind = config.problem_type or "single_label_classification"
    is_single = kind == "single_label_classification"
    names = [str(config.id2label[index]) for index in range(config.num_labels)]
    if arguments.target == LABEL and not is_single:
        raise RetFoundError(
            f"--target label takes one class per image, but the model is of {kind}; give one of {', '.join(names)}"
        )
    found = read_labelled(
        arguments.data,
        label_columns=[arguments.label_column] if is_single else None,
        problem_type=kind,
        class_names=names,
        **split_of_training(arguments.model_name_or_path, seed=0),
        need_splits=() if arguments.split in (None, "all") else (arguments.split,),
    )
    rows = found.rows(arguments.split or "all")
    labels = rows[arguments.label_column] if is_single else [None] * len(rows)
    facts = zip(rows["id"].astype(str), rows["image"], labels, strict=True)
    yield [ImageRef(name, image, {"label": label}) for name, image, label in facts]


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    if not longest or max(image.size) <= longest:
        return image
    scale = longest / max(image.size)
    shape = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)


logger = logging.getLogger(__name__)


class GoodBatches:
    """Batches of images that can be read, with a progress bar; the others are collected in `rejected` (id, reason).

    Raises:
        RetFoundError: an unreadable image, unless they are skipped; no image that can be read.
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

    def __iter__(self) -> Iterator[tuple[Tensor, list[Opened]]]:
        any_good = False
        with tqdm(desc="explain", unit="image") as bar:
            for sources in find_sources(self.arguments, self.config):
                bar.total = (bar.total or 0) + len(sources)
                for pixels, items in self._read(sources):
                    good = [index for index, item in enumerate(items) if not item.reason]
                    self._reject([item for item in items if item.reason])
                    if good:
                        any_good = True
                        yield pixels[good], [items[index] for index in good]
                    bar.update(len(items))
        if not any_good:
            reasons = join_names(f"{name}: {reason}" for name, reason in self.rejected)
            raise RetFoundError(f"no image of {self.arguments.data} can be read ({reasons})")

    def _read(self, sources: Sequence[ImageRef]) -> Iterator[tuple[Tensor, list[Opened]]]:
        return opened_batches(
            sources,
            self.processor,
            self.arguments.picture_size,
            self.options.per_device_eval_batch_size,
            self.options.dataloader_num_workers,
        )

    def _reject(self, items: Sequence[Opened]) -> None:
        for item in items:
            if self.options.on_bad_image == "error":
                raise RetFoundError(
                    f"image {item.source.id}: {item.reason}; repair or remove it, or pass --on_bad_image skip"
                )
            logger.warning("image %s is left out: %s", item.source.id, item.reason)
            self.rejected.append((item.source.id, item.reason))


PICTURES, ARRAYS = "pictures", "arrays"
TILE = 256


class Outputs:
    """Takes images one by one and keeps no more of each than a row, its patches and, for the first, a small picture.

    Args:
        folder: to write into.
        sheet_images: images on the contact sheet.
        titles: of one image's pictures on the contact sheet.
    """

    def __init__(self, folder: Path, sheet_images: int, titles: Sequence[str]):
        self.folder, self.sheet_images, self.titles = folder, sheet_images, tuple(titles)
        self.names = FileNames()
        self.rows: list[dict[str, Any]] = []
        self.patches: dict[str, list[np.ndarray]] = {}
        self.tiles: list[list[Image.Image]] = []
        for name in (PICTURES, ARRAYS):
            (folder / name).mkdir()

    def add(
        self,
        item: Opened,
        row: dict[str, Any],
        picture: Image.Image,
        patches: dict[str, np.ndarray],
        on_image: np.ndarray,
        tiles: Sequence[Image.Image],
        caption: str,
    ) -> None:
        """Write an image's picture and its map, and note the rest.

        Args:
            row: of the table, without id and files.
            patches: (grid, grid) arrays for `maps.npz`, the same names for every image.
            on_image: (height, width) of the picture, for `arrays/`, saved as float32.
            tiles: the pictures for the contact sheet, one for each title.
            caption: below them.
        """
        name = self.names(item.source.id)
        picture.save(self.folder / PICTURES / f"{name}.png")
        # Maps carry the scale of the logits: below 6e-5 float16 would leave a calibrated head's a few distinct levels.
        np.save(self.folder / ARRAYS / f"{name}.npy", on_image.astype(np.float32))
        files = {"picture": f"{PICTURES}/{name}.png", "array": f"{ARRAYS}/{name}.npy"}
        self.rows.append({"id": item.source.id, **row, **files})
        window = [item.window.left, item.window.top, item.window.right, item.window.bottom]
        for key, value in {**patches, "window": np.array(window), "image_size": np.array(item.size)}.items():
            self.patches.setdefault(key, []).append(value)
        if len(self.tiles) < self.sheet_images:
            self.tiles.append([_tile(tile, caption if index == 0 else "") for index, tile in enumerate(tiles)])

    def close(self) -> None:
        """Write `maps.csv`, `maps.npz` and `contact_sheet.png`."""
        table = pd.DataFrame(self.rows)
        table.to_csv(self.folder / "maps.csv", index=False, float_format="%.6g")
        arrays = {name: np.stack(values) for name, values in self.patches.items()}
        np.savez(self.folder / "maps.npz", id=table["id"].to_numpy(str), **arrays)
        # Two images side by side, where there are enough.
        across = 2 if len(self.tiles) > 3 and len(self.titles) == 2 else 1
        blank = Image.new("RGB", self.tiles[0][0].size, PAPER)
        padded = self.tiles + [[blank] * len(self.titles)] * (-len(self.tiles) % across)
        rows = [list(chain(*padded[start : start + across])) for start in range(0, len(padded), across)]
        sheet = contact_sheet(rows, titles=self.titles * across, tile=max(blank.size), margin=8)
        sheet.save(self.folder / "contact_sheet.png")


def _tile(picture: Image.Image, caption: str) -> Image.Image:
    """A picture of `TILE` pixels above a line of text."""
    font = ImageFont.load_default(14)
    page = Image.new("RGB", (TILE, TILE + 22), PAPER)
    small = ImageOps.contain(picture, (TILE, TILE), Image.Resampling.BICUBIC)
    page.paste(small, ((TILE - small.width) // 2, (TILE - small.height) // 2))
    while caption and font.getlength(caption) > TILE:
        caption = caption[:-1]
    ImageDraw.Draw(page).text((TILE / 2, TILE + 11), caption, fill=INK, font=font, anchor="mm")
    return page
