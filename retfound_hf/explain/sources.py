"""The images to explain: from `--data` to batches with the network's input and the picture to draw on."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from transformers import PreTrainedConfig

from ..data.labelled import read_labelled
from ..data.sources import list_parts
from ..images.reading import IMAGE_SUFFIXES, UnreadableImageError, read_image
from ..images.resizing import resize
from ..images.window import Window
from ..inference.batches import EvaluationPixels
from ..inference.training_split import split_of_training
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from .arguments import LABEL, ExplainArguments


@dataclass(frozen=True)
class Source:
    """An image that waits: `image` is a path or the bytes of a file, `label` its class where that is asked for."""

    id: str
    image: str | bytes
    label: str | None = None


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

    source: Source
    prepared: Image.Image
    picture: Image.Image
    window: Window
    size: tuple[int, int]
    reason: str = ""

    @property
    def window_on_picture(self) -> Window:
        return self.window.scaled(self.picture.width / self.size[0], self.picture.height / self.size[1])


class Opening(Dataset):
    """Reads sources in the loader's workers; each image is decoded and searched for its field once."""

    def __init__(self, sources: Sequence[Source], processor: RetFoundImageProcessor, picture_size: int):
        self.sources, self.processor, self.picture_size = sources, processor, picture_size

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> Opened:
        source, size = self.sources[index], dict(self.processor.size)
        try:
            image = read_image(source.image)
        except UnreadableImageError as error:
            blank = Image.new("RGB", (64, 64))
            return Opened(source, resize(blank, size), blank, Window(0, 0, 64, 64), blank.size, str(error))
        box = self.processor.crop_box(image)
        prepared = resize(image if box == (0, 0, *image.size) else image.crop(box), size)
        window = self.processor.input_window(image, box)
        return Opened(source, prepared, _reduced(image, self.picture_size), window, image.size)


@dataclass(frozen=True)
class _Collator:
    to_pixels: EvaluationPixels

    def __call__(self, items: list[Opened]) -> tuple[Tensor, list[Opened]]:
        return self.to_pixels([item.prepared for item in items]), items


def find_sources(arguments: ExplainArguments, config: PreTrainedConfig) -> Iterator[list[Source]]:
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
    sources: Sequence[Source], processor: RetFoundImageProcessor, picture_size: int, batch_size: int, num_workers: int
) -> Iterator[tuple[Tensor, list[Opened]]]:
    """Pixel values (batch, 3, size, size) and what belongs to them."""
    yield from DataLoader(
        Opening(sources, processor, picture_size),
        batch_size=batch_size,
        num_workers=min(num_workers, len(sources)),
        collate_fn=_Collator(EvaluationPixels(processor)),
    )


def _unlabelled(data: str) -> Iterator[list[Source]]:
    path = Path(data)
    if path.is_file() and path.name.lower().endswith(IMAGE_SUFFIXES):
        yield [Source(path.name, str(path))]
        return
    for part in list_parts(data):
        ids, images = part.load()
        yield [Source(name, image) for name, image in zip(ids, images, strict=True)]


def _labelled(arguments: ExplainArguments, config: PreTrainedConfig) -> Iterator[list[Source]]:
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
    yield [Source(*row) for row in zip(rows["id"].astype(str), rows["image"], labels, strict=True)]


def _reduced(image: Image.Image, longest: int) -> Image.Image:
    if not longest or max(image.size) <= longest:
        return image
    scale = longest / max(image.size)
    shape = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)
