"""A split of a labelled set, decoded and ready for the network."""

import logging
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..data.labelled import LabelledSet
from ..data.prepared import prepare_images
from ..images.quality import GRAY, channel_spread
from ..models.image_processing import RetFoundImageProcessor
from .processes import process_state

logger = logging.getLogger(__name__)
# Images to augment keep twice the input's side: a crop of a quarter of the area is still not enlarged.
TRAINING_SIDES = 2
LOOKED_AT = 16


@dataclass(frozen=True)
class PreparedSplit:
    """Decoded images with what belongs to them, in one order.

    Args:
        images: decoded once and memory-mapped, see `data.prepared`.
        rows: the rows of the labelled table that the images come from.
        targets: as `LabelledSet.targets`, for these rows.
        rejected: path and reason of every unreadable image that was skipped.
    """

    images: Any
    rows: pd.DataFrame
    targets: np.ndarray
    rejected: list[tuple[str, str]]

    def only(self, ids: Collection[str]) -> "PreparedSplit":
        """The images of these ids, in the order in which they stand here."""
        kept = np.flatnonzero(self.rows["id"].isin(ids))
        if len(kept) == len(self.rows):
            return self
        return PreparedSplit(self.images.select(kept), self.rows.iloc[kept], self.targets[kept], self.rejected)


def prepare_split(
    labelled: LabelledSet,
    split: str,
    processor: RetFoundImageProcessor,
    exact: bool = True,
    on_bad_image: str = "error",
    num_workers: int = 0,
    cache_dir: str | None = None,
) -> PreparedSplit:
    """Decode a split for `processor`; one process of a distributed run decodes, the others read its cache.

    Args:
        exact: crop and resize as the processor does, for evaluation; otherwise keep more pixels to augment.
    """
    rows = labelled.rows(split)
    with process_state().main_process_first():
        prepared = prepare_images(
            rows,
            size=dict(processor.size) if exact else TRAINING_SIDES * processor.crop_size.height,
            crop=bool(processor.do_fundus_crop),
            exact=exact,
            on_bad_image=on_bad_image,
            num_workers=num_workers,
            cache_dir=cache_dir,
        )
    kept = np.asarray(prepared.images["row"], dtype=np.int64)
    return PreparedSplit(prepared.images, rows.iloc[kept], labelled.targets(split)[kept], prepared.rejected)


def warn_of_modality(images: Any, modality: str | None) -> None:
    """Warn once where images look like the other modality than the weights': gray ones for CFP, coloured for OCT.

    Weights of the wrong modality work, only worse, so that nobody notices.

    Args:
        images: prepared images; a few are looked at.
        modality: of the weights, None when unknown.
    """
    few = images.select(range(0, len(images), max(1, len(images) // LOOKED_AT)))
    spread = np.median([channel_spread(item["image"]) for item in few])
    seen = "oct" if spread < GRAY else "cfp"
    if modality is not None and seen != modality and process_state().is_main_process:
        logger.warning(
            "the images look %s, but the weights are of %s: check that they are the right ones",
            "gray, as OCT scans are" if seen == "oct" else "coloured, as fundus photographs are",
            modality.upper(),
        )
