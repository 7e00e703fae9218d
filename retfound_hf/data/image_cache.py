"""Cache of decoded images: cropped and resized once into a memory-mapped file that later runs reuse."""

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
import PIL
import torch
import torchvision
from PIL import Image

from ..errors import RetFoundError, join_names
from ..files import atomic_folder, file_lock, write_json
from ..images.field_of_view import crop_field_of_view, side_to_read
from ..images.geometry import resize
from ..images.reading import UnreadableImageError, read_image


@dataclass(frozen=True)
class Decoder:
    """Prepares the images of a `datasets.Dataset.map`; an object, so that it can be sent to worker processes.

    Attributes:
        size, crop, exact: see `prepared.prepare_images`.
        is_worker: runs in a process of its own.
    """

    size: dict[str, int]
    crop: bool
    exact: bool
    is_worker: bool = False

    def __call__(self, source: dict[str, Any]) -> dict[str, Any]:
        """Columns `image` and `reason` for the columns `path` and `bytes`, one of which is None.

        The reason is empty, or says why there is no image.
        """
        if self.is_worker:
            torch.set_num_threads(1)  # threads of a forked process can hang, and the processes share the cores
        try:
            image = self.decode(source["path"] or source["bytes"])
        except UnreadableImageError as error:
            name = source["path"] or "the image"
            return {"image": None, "reason": str(error).removeprefix(f"cannot read {name}: ")}
        png = BytesIO()
        image.save(png, "PNG", compress_level=1)
        return {"image": {"bytes": png.getvalue(), "path": None}, "reason": ""}

    def can_decode(self, source: str | bytes) -> bool:
        try:
            self.decode(source)
        except UnreadableImageError:
            return False
        return True

    def decode(self, source: str | bytes | Image.Image) -> Image.Image:
        """The prepared image, 8-bit RGB."""
        side = min(self.size.values())
        # The smallest field that the crop accepts is 0.4 of its photograph's shorter side: it keeps `side` pixels.
        image = read_image(source, min_side=None if self.exact else side_to_read(side))
        if self.crop:
            image = crop_field_of_view(image)
        if self.exact:
            return resize(image, self.size)
        scale = side / min(image.size)
        if scale >= 1:
            return image
        shape = tuple(max(1, round(length * scale)) for length in image.size)
        return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)


if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
CACHE_VERSION = 1


@dataclass(frozen=True)
class PreparedImages:
    """Decoded images and those that could not be read.

    Attributes:
        images: columns `id`, `image` (`datasets.Image`: RGB) and `row` (position in the table that was given).
        rejected: (path or id, reason) of each image left out.
    """

    images: "datasets.Dataset"
    rejected: list[tuple[str, str]]


def prepare_images(
    rows: pd.DataFrame,
    *,
    size: int | Mapping[str, int],
    crop: bool,
    exact: bool,
    on_bad_image: Literal["error", "skip"] = "error",
    num_workers: int = 0,
    cache_dir: str | Path | None = None,
) -> PreparedImages:
    """Read, crop and resize every image of a labelled set once.

    The result lies in a folder of `cache_dir` named after the images (path, size and time of change, or bytes) and
    the options. It appears there whole or not at all, and another call with the same images and options takes it,
    unless a file that could not be read then can be read now: a share that was away for a moment is no bad image.

    Args:
        rows: columns `id` and `image` (path or bytes), as in `LabelledSet.table`.
        size: pixels, see `exact`; or a processor's own `size` (`height` and `width`, or `shortest_edge`).
        crop: cut fundus photographs to their field of view, as the image processor does.
        exact: resize to `size` as the image processor does, to the bit (for evaluation); a number is a square. Else
            shrink until the shorter side has `size` pixels, keeping the shape and never enlarging (leaves room for
            augmentation).
        on_bad_image: refuse images that cannot be read, or leave them out with one warning.
        num_workers: processes; 0 decodes in this one.
        cache_dir: `retfound` in the cache folder of `datasets` by default.

    Raises:
        RetFoundError: unreadable images (unless skipped), or none left.
    """
    import datasets

    if on_bad_image not in ("error", "skip"):
        raise RetFoundError(f"on_bad_image {on_bad_image!r} is unknown; choose error or skip")
    if isinstance(size, int):
        size = {"height": size, "width": size} if exact else {"shortest_edge": size}
    if min(size.values()) < 1 or num_workers < 0:
        raise RetFoundError(f"size {dict(size)} must be at least 1 and num_workers {num_workers} at least 0")
    if rows.empty:
        raise RetFoundError("no images to prepare; the split is empty")
    cache = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "retfound"
    folder = cache / f"images-{fingerprint(rows, sorted(size.items()), crop, exact)}"
    decoder = Decoder(dict(size), crop, exact, is_worker=num_workers > 0)
    if not _is_done(folder, rows, decoder):
        with file_lock(folder):  # of several runs on the same images one decodes
            if not _is_done(folder, rows, decoder):
                _write(folder, rows, decoder, num_workers)
    rejected = _rejected(folder)
    if rejected:
        named = join_names(f"{path}: {reason}" for path, reason in rejected)
        if on_bad_image == "error":
            raise RetFoundError(
                f"{len(rejected)} of {len(rows)} images cannot be read ({named}); repair or remove them, or pass "
                "--on_bad_image skip"
            )
        if len(rejected) == len(rows):
            raise RetFoundError(f"none of the {len(rows)} images can be read ({named})")
        logger.warning("%d of %d images cannot be read and are left out (%s)", len(rejected), len(rows), named)
    return PreparedImages(datasets.load_from_disk(str(folder / "images")), rejected)


def _rejected(folder: Path) -> list[tuple[str, str]]:
    return [tuple(entry) for entry in json.loads((folder / "rejected.json").read_text(encoding="utf-8"))]


def _is_done(folder: Path, rows: pd.DataFrame, decoder: Decoder) -> bool:
    """Whether the images lie there, and none of the rejected files can be read after all."""
    if not folder.is_dir():
        return False
    files = {image for image in rows["image"] if isinstance(image, str)}
    return not any(decoder.can_decode(name) for name, _ in _rejected(folder) if name in files)


def _write(folder: Path, rows: pd.DataFrame, decoder: Decoder, num_workers: int) -> None:
    import datasets

    paths = [image if isinstance(image, str) else None for image in rows["image"]]
    contents = [None if isinstance(image, str) else image for image in rows["image"]]
    columns = {"id": datasets.Value("string"), "row": datasets.Value("int64")}
    sources = datasets.Dataset.from_dict(
        {"id": rows["id"].tolist(), "row": list(range(len(rows))), "path": paths, "bytes": contents},
        features=datasets.Features(
            {**columns, "path": datasets.Value("string"), "bytes": datasets.Value("large_binary")}
        ),
    )
    with atomic_folder(folder, overwrite=True) as partial, tempfile.TemporaryDirectory(dir=partial) as scratch:
        decoded = sources.map(
            decoder,
            remove_columns=["path", "bytes"],
            features=datasets.Features({**columns, "image": datasets.Image(), "reason": datasets.Value("string")}),
            num_proc=min(num_workers, len(rows)) or None,
            cache_file_name=os.path.join(scratch, "decoded.arrow"),
            new_fingerprint=folder.name,
            writer_batch_size=200,
            desc="Decoding images",
        )
        reasons = decoded["reason"][:]
        names = [path or name for path, name in zip(paths, rows["id"], strict=True)]
        rejected = [(name, reason) for name, reason in zip(names, reasons, strict=True) if reason]
        good = [position for position, reason in enumerate(reasons) if not reason]
        if good:
            images = decoded.remove_columns("reason")
            (images.select(good) if rejected else images).save_to_disk(str(partial / "images"))
        write_json(partial / "rejected.json", rejected)


def fingerprint(rows: pd.DataFrame, *options: object) -> str:
    """Hash of a set's images and of `options`, the versions of the decoding libraries included."""
    digest = hashlib.blake2b(
        repr((CACHE_VERSION, PIL.__version__, torchvision.__version__, options)).encode(), digest_size=16
    )
    for name, image in zip(rows["id"], rows["image"], strict=True):
        if isinstance(image, bytes):
            content = hashlib.blake2b(image, digest_size=16).hexdigest()
        elif os.path.isfile(image):
            facts = os.stat(image)
            content = (image, facts.st_size, facts.st_mtime_ns)
        else:
            content = (image, "absent")
        digest.update(repr((name, content)).encode())
    return digest.hexdigest()
