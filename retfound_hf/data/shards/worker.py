"""What a worker process does: images in, small encoded images out."""

import hashlib
import multiprocessing
import os
import signal
import threading
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from PIL import Image

from ...images.fundus import crop_field_of_view
from ...images.reading import UnreadableImageError, read_image
from ...images.resizing import resize

BLANK_RANGE = 8  # of 255 gray levels, from the 1st to the 99th percentile


class Prepared(NamedTuple):
    """A prepared image, or the reason why there is none.

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
            name = source if isinstance(source, str) else "the image"
            return Prepared(reason=str(error).removeprefix(f"cannot read {name}: "))
        return self._encoded(image)

    def prepare(self, source: str | bytes) -> Image.Image:
        """The prepared image, 8-bit RGB of `size` x `size`.

        Raises:
            UnreadableImageError: no image, or too small a one, or a blank one.
        """
        # Of a JPEG, no more is decoded than leaves the smallest field that the crop accepts, 0.4 of the photograph's
        # shorter side, as large as the result: it differs less from full decoding than JPEG at quality 95 does.
        image = read_image(source, min_side=max(5 * self.size // 2, self.min_side))
        if min(image.size) < self.min_side:
            raise UnreadableImageError(f"{image.width} x {image.height} pixels are fewer than {self.min_side} a side")
        if self.crop:
            image = crop_field_of_view(image)
        image = resize(image, {"height": self.size, "width": self.size})
        low, high = np.percentile(np.asarray(image.convert("L")), (1, 99))
        if high - low < BLANK_RANGE:
            raise UnreadableImageError(f"it is blank: its gray levels span {high - low:.0f} of 255")
        return image

    def _encoded(self, image: Image.Image) -> Prepared:
        encoded = BytesIO()
        if self.format == "jpeg":
            image.save(encoded, "JPEG", quality=self.quality, subsampling="4:4:4")
        else:
            image.save(encoded, "PNG", compress_level=1)
        return Prepared(encoded.getvalue(), hashlib.blake2b(image.tobytes(), digest_size=16).hexdigest())


class Job(NamedTuple):
    """What a worker is started with: how to get at an image, and what to do with it."""

    opener: Callable[[Any], str | bytes]
    preparer: Preparer

    def __call__(self, ref: Any) -> Prepared:
        try:
            return self.preparer(self.opener(ref))
        except Exception as error:  # one image must not end the work on a million
            return Prepared(reason=f"it cannot be prepared ({' '.join(str(error).split()) or type(error).__name__})")


_jobs: list[Job] = []


def start_worker(job: Job) -> None:
    """Make this process ready: one thread, deaf to Ctrl-C (its parent ends it), gone when its parent is."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # of Pillow about damaged metadata, which is dropped anyway
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _jobs[:] = [job]


def run_chunk(refs: Sequence[Any]) -> list[Prepared]:
    """Do the job on some images."""
    return [_jobs[0](ref) for ref in refs]


def _end_with_parent() -> None:
    # A killed parent says nothing to its workers, which would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
