"""Preparation of images: read, cropped and resized; encoded for shards, or cached once for all images of a set."""

import hashlib
import logging
import os
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
import pandas as pd
import PIL
from PIL import Image

from ..errors import BadDataError, UnreadableImageError, join_names, require, require_range
from ..files import atomic_folder, file_lock, file_stamp, read_json, write_json
from ..images.field_of_view import CROP_VERSION, crop_field_of_view, side_to_read
from ..images.reading import read_image, resize

if TYPE_CHECKING:
    import datasets

OnBadImage = Literal["error", "skip"]
logger = logging.getLogger(__name__)
CACHE_VERSION = 2
BLANK_RANGE = 8  # of 255 gray levels, from the 1st to the 99th percentile


def prepare_image(
    source: str | Path | bytes | Image.Image,
    size: Mapping[str, int],
    crop: bool | tuple[int, int, int, int],
    exact: bool = True,
    reduced: bool = False,
    min_side: int = 1,
) -> Image.Image:
    """Read, crop and resize an image, as the image processor does: 8-bit RGB.

    Args:
        source: path, the bytes of a file, or an open image.
        size: `{"height": ..., "width": ...}`, or `{"shortest_edge": ...}` to keep the shape.
        crop: to the field of view (colour fundus photographs), or the box to cut where it is known.
        exact: resize to `size` to the bit; otherwise shrink to it, keeping the shape and never enlarging.
        reduced: decode no more of a large JPEG than leaves the smallest field that the crop accepts as large as the
            result, which differs less from full decoding than JPEG at quality 95 does.
        min_side: refuse images with fewer pixels on the shorter side.

    Raises:
        UnreadableImageError: not an image, or one that is too small.
    """
    side = min(size.values())
    image = read_image(source, min_side=max(side_to_read(side), min_side) if reduced else None)
    if min(image.size) < min_side:
        raise UnreadableImageError(f"{image.width} x {image.height} pixels are fewer than {min_side} a side")
    if crop is True:
        image = crop_field_of_view(image)
    elif crop and crop != (0, 0, *image.size):
        image = image.crop(crop)
    if exact:
        return resize(image, size)
    scale = side / min(image.size)
    if scale >= 1:
        return image
    shape = tuple(max(1, round(length * scale)) for length in image.size)
    return image.resize(shape, Image.Resampling.BICUBIC, reducing_gap=3)


class Prepared(NamedTuple):
    """Encoded image, or the reason why there is none.

    `hash` is the BLAKE2b digest (128 bits, hex) of the prepared pixels before they are encoded.
    """

    image: bytes = b""
    hash: str = ""
    reason: str = ""


@dataclass(frozen=True)
class Preparer:
    """Reads, crops, resizes and encodes one image; no metadata of the original is kept.

    Attributes:
        size: side of the square result in pixels.
        crop: cut to the field of view (colour fundus photographs).
        min_side: images with a shorter side of fewer pixels are rejected.
        format: JPEG keeps full colour resolution (4:4:4): the red of vessels and haemorrhages on orange is colour
            contrast, and halving it costs 4-7 dB in the red channel (JPEG 95 at 256 pixels), a fifth of the bytes.
        quality: of JPEG.
    """

    size: int
    crop: bool
    min_side: int
    format: Literal["jpeg", "png"] = "jpeg"
    quality: int = 95

    def __call__(self, source: str | bytes) -> Prepared:
        """Never raises for an image, whatever is wrong with it."""
        try:
            image = self.prepare(source)
        except UnreadableImageError as error:
            return Prepared(reason=error.reason)
        encoded = BytesIO()
        if self.format == "jpeg":
            image.save(encoded, "JPEG", quality=self.quality, subsampling="4:4:4")
        else:
            image.save(encoded, "PNG", compress_level=1)
        return Prepared(encoded.getvalue(), _digest(image.tobytes()))

    def prepare(self, source: str | bytes) -> Image.Image:
        """The prepared image, 8-bit RGB of `size` x `size`.

        Raises:
            UnreadableImageError: not an image, or too small a one, or a blank one.
        """
        size = {"height": self.size, "width": self.size}
        return self._checked(prepare_image(source, size, self.crop, reduced=True, min_side=self.min_side))

    def glance(self, source: str | bytes) -> Image.Image:
        """The image as `prepare` would refuse or take it, resized faster and in its own shape."""
        size = {"shortest_edge": self.size}
        return self._checked(prepare_image(source, size, self.crop, exact=False, reduced=True, min_side=self.min_side))

    @staticmethod
    def _checked(image: Image.Image) -> Image.Image:
        """The image unless it is blank."""
        low, high = np.percentile(np.asarray(image.convert("L")), (1, 99))
        if high - low < BLANK_RANGE:
            raise UnreadableImageError(f"it is blank: its gray levels span {high - low:.0f} of 255")
        return image


@dataclass(frozen=True)
class CachedImages:
    """Decoded images and those that could not be read.

    Attributes:
        images: columns `id`, `image` (`datasets.Image`: RGB) and `row` (position in the table that was given).
        rejected: (path or id, reason) of each image left out.
    """

    images: "datasets.Dataset"
    rejected: list[tuple[str, str]]


def cache_images(
    rows: pd.DataFrame,
    *,
    size: int | Mapping[str, int],
    crop: bool,
    exact: bool,
    on_bad_image: OnBadImage = "error",
    num_workers: int = 0,
    cache_dir: str | Path | None = None,
) -> CachedImages:
    """Read, crop and resize every image of a labelled set once.

    The result lies in a folder of `cache_dir` named after the images (path, size and time of change, or bytes) and
    the options. It appears there whole or not at all, and another call with the same images and options takes it,
    unless a file that could not be read then can be read now: a share that was away for a moment is no bad image.

    Args:
        rows: columns `id` and `image` (path or bytes), as in `LabelledSet.table`.
        size: pixels of the sides of a square if `exact`, else of the shorter side; or a processor's own `size`.
        crop: see `prepare_image`.
        exact: for evaluation; otherwise images keep pixels for augmentation, see `prepare_image`.
        on_bad_image: refuse images that cannot be read, or leave them out with one warning.
        num_workers: processes; 0 decodes in this one.
        cache_dir: `retfound` in the cache folder of `datasets` by default.

    Raises:
        BadDataError: unreadable images (unless skipped), or none left.
    """
    import datasets

    require("on_bad_image", on_bad_image, ("error", "skip"))
    if isinstance(size, int):
        size = {"height": size, "width": size} if exact else {"shortest_edge": size}
    require_range("size", min(size.values()), 1)
    require_range("num_workers", num_workers, 0)
    if rows.empty:
        raise BadDataError("no images to prepare; the split is empty")
    cache = Path(cache_dir) if cache_dir is not None else Path(datasets.config.HF_DATASETS_CACHE) / "retfound"
    folder = cache / f"images-{fingerprint(rows, sorted(size.items()), crop, exact)}"
    decoder = _Decoder(dict(size), crop, exact, is_worker=num_workers > 0)
    if not _is_done(folder, rows, decoder):
        with file_lock(folder):  # of several runs on the same images one decodes
            if not _is_done(folder, rows, decoder):
                _write(folder, rows, decoder, num_workers)
    rejected = _rejected(folder)
    if rejected:
        if on_bad_image == "error" or len(rejected) == len(rows):
            raise unreadable_images(rejected, len(rows), on_bad_image)
        named = join_names(f"{path}: {reason}" for path, reason in rejected)
        logger.warning("%d of %d images cannot be read and are left out (%s)", len(rejected), len(rows), named)
    return CachedImages(datasets.load_from_disk(str(folder / "images")), rejected)


def unreadable_images(
    rejected: Sequence[tuple[str, str]], count: int, on_bad_image: OnBadImage = "error", source: str = ""
) -> BadDataError:
    """The error for images that cannot be read, or, where such are skipped, for a set of nothing else.

    Args:
        rejected: id or path and reason of each.
        count: of all images.
        on_bad_image: as the caller was told.
        source: of the images.
    """
    named = join_names(f"{name}: {reason}" for name, reason in rejected)
    fixes = {"error": "repair or remove them, or pass `on_bad_image='skip'`", "skip": "repair them, or give others"}
    message = f"{len(rejected)} of {count} images cannot be read ({named}); {fixes[on_bad_image]}"
    return BadDataError(message, rows=[name for name, _ in rejected], source=source)


@dataclass(frozen=True)
class _Decoder:
    """Function of a `datasets.Dataset.map`: `path` or `bytes` to a PNG, or to the reason why there is none."""

    size: dict[str, int]
    crop: bool
    exact: bool
    is_worker: bool = False

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        if self.is_worker:
            import torch

            torch.set_num_threads(1)  # threads of a forked process can hang, and the processes share the cores
        try:
            image = self.decode(row["path"] or row["bytes"])
        except UnreadableImageError as error:
            return {"image": None, "reason": error.reason}
        png = BytesIO()
        image.save(png, "PNG", compress_level=1)
        return {"image": {"bytes": png.getvalue(), "path": None}, "reason": ""}

    def decode(self, source: str | bytes) -> Image.Image:
        return prepare_image(source, self.size, self.crop, self.exact, reduced=not self.exact)

    def can_decode(self, source: str) -> bool:
        try:
            self.decode(source)
        except UnreadableImageError:
            return False
        return True


def _rejected(folder: Path) -> list[tuple[str, str]]:
    return [tuple(entry) for entry in read_json(folder / "rejected.json", list)]


def _is_done(folder: Path, rows: pd.DataFrame, decoder: _Decoder) -> bool:
    """Whether the images lie there, and none of the rejected files can be read after all."""
    if not folder.is_dir():
        return False
    files = {image for image in rows["image"] if isinstance(image, str)}
    return not any(decoder.can_decode(name) for name, _ in _rejected(folder) if name in files)


def _write(folder: Path, rows: pd.DataFrame, decoder: _Decoder, num_workers: int) -> None:
    import datasets

    paths = [image if isinstance(image, str) else None for image in rows["image"]]
    contents = [None if isinstance(image, str) else image for image in rows["image"]]
    columns = {"id": datasets.Value("string"), "row": datasets.Value("int64")}
    given = datasets.Features({**columns, "path": datasets.Value("string"), "bytes": datasets.Value("large_binary")})
    made = datasets.Features({**columns, "image": datasets.Image(), "reason": datasets.Value("string")})
    sources = datasets.Dataset.from_dict(
        {"id": rows["id"].tolist(), "row": list(range(len(rows))), "path": paths, "bytes": contents}, features=given
    )
    with atomic_folder(folder, overwrite=True) as partial, tempfile.TemporaryDirectory(dir=partial) as scratch:
        decoded = sources.map(
            decoder,
            remove_columns=["path", "bytes"],
            features=made,
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
    """Hash of a set's images and of `options`, the versions of the crop rule and the decoding libraries included."""
    import torchvision

    versions = (CACHE_VERSION, CROP_VERSION, PIL.__version__, torchvision.__version__, options)
    digest = hashlib.blake2b(repr(versions).encode(), digest_size=16)
    for name, image in zip(rows["id"], rows["image"], strict=True):
        if isinstance(image, bytes):
            content: object = _digest(image)
        else:
            content = (image, *(file_stamp(image) or ("absent",)))
        digest.update(repr((name, content)).encode())
    return digest.hexdigest()


HASHED_BYTES_LIMIT = 256 * 2**20


def content_digests(images: Iterable[str | bytes]) -> list[str]:
    """BLAKE2b digests (128 bits, hex) of image files, given by paths or bytes; empty where a file is absent."""

    def digest(image: str | bytes) -> str:
        if isinstance(image, bytes):
            return _digest(image)
        return _digest_of_file(image, file_stamp(image)) if os.path.isfile(image) else ""

    with ThreadPool(4) as pool:  # reading and hashing release the interpreter
        return pool.map(digest, images)


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=16).hexdigest()


@lru_cache(2**20)
def _digest_of_file(path: str, stamp: tuple[int, int] | None) -> str:
    """Digest of a file with this `file_stamp`; a run that asks again does not read it again."""
    return _digest(Path(path).read_bytes())


def resolved_paths(images: Iterable[str | bytes]) -> list[str]:
    """Path of each file with its links resolved, so that files of two tables can be matched; empty for bytes."""
    return [os.path.realpath(image) if isinstance(image, str) else "" for image in images]


def are_among(images: "pd.Series[Any]", others: "pd.Series[Any]") -> np.ndarray:
    """Whether each image, a path or the bytes of a file, is one of others: by its file, or by its content."""
    found = np.isin(resolved_paths(images), [path for path in resolved_paths(others) if path])
    sizes, sizes_of_others = images.map(_bytes_of), others.map(_bytes_of)
    maybe = ~found & sizes.isin(sizes_of_others).to_numpy()
    known = set(content_digests(others[sizes_of_others.isin(sizes[maybe])])) - {""}
    found[maybe] = [digest in known for digest in content_digests(images[maybe])]
    return found


def _bytes_of(image: str | bytes) -> int:
    return len(image) if isinstance(image, bytes) else os.path.getsize(image) if os.path.isfile(image) else -1


def check_identical_content(table: pd.DataFrame, label_columns: Sequence[str], data: object) -> None:
    """Warn of files with the same content in different splits, with different labels or of different patients.

    Skipped where it would mean reading 256 MB or more.

    Raises:
        BadDataError: it is one file, which a link leads to under the other name (`rows`).
    """
    files = table.loc[table["image"].map(lambda image: isinstance(image, str)), ["id", "image", "split"]].copy()
    if files.empty:
        return
    files["labels"] = [repr(row) for row in table.loc[files.index, list(label_columns)].itertuples(index=False)]
    files["patients"] = table["patient_id"]
    stats = [os.stat(path) for path in files["image"]]
    files["size"] = [one.st_size for one in stats]
    differences = (
        ("split", "occur in more than one split"), ("labels", "have different labels"),
        ("patients", "are of different patients"),
    )  # fmt: skip

    def named(groups: Any, column: str) -> list[str]:
        return [" = ".join(group["id"]) for _, group in groups if group[column].nunique() > 1]

    links = files.assign(file=[(one.st_dev, one.st_ino) for one in stats])
    links = links[links.duplicated("file", keep=False)]
    for column, what in differences:
        if same := named(links.groupby("file", sort=False), column):
            message = f"{data}: {len(same)} image(s) {what} by links ({join_names(same)}); list each image once"
            raise BadDataError(message, rows=links["id"], source=data)
    if len(links):
        message = "%s: %d images are listed more than once, by links (%s)"
        logger.warning(message, data, links["file"].nunique(), join_names(links["id"]))
    both = files["split"] + files["labels"] + files["patients"].fillna("")
    alike = files[both.groupby(files["size"]).transform("nunique") > 1]
    if alike.empty or alike["size"].sum() > HASHED_BYTES_LIMIT:
        return
    alike = alike.assign(digest=content_digests(alike["image"]))
    for column, what in differences:
        if same := named(alike.groupby("digest", sort=False), column):
            logger.warning("%s: %d image(s) %s under other names (%s)", data, len(same), what, "; ".join(same[:5]))
