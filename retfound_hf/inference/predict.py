"""Batched forward passes over images, on every process there is, in order and without duplicates."""

import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import PreTrainedModel

from ..data.image_cache import cache_images, prepare_image
from ..data.labelled import LabelledSet
from ..errors import RetFoundError
from ..images.geometry import resize
from ..images.quality import GRAY, channel_spread
from ..images.reading import UnreadableImageError
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..vocabulary import PROBLEM_TYPES


def process_state() -> PartialState:
    """Which process this is, and of how many.

    accelerate joins processes on CPUs only when it is told that they are meant; otherwise each of them would take
    itself for the only one, and all would write the same files.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass
class ForwardArguments:
    output_dir: str = field(metadata={"help": "folder to write"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "write into a folder that is not empty"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "images per device and step"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "loader processes"})
    fp16: bool = field(default=False, metadata={"help": "half precision (T4 and other GPUs before Ampere)"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 (Ampere and later)"})
    on_bad_image: Literal["error", "skip"] = field(
        default="error", metadata={"help": "unreadable images: stop and name them, or skip and count them"}
    )
    seed: int = field(default=0, metadata={"help": "seed of a split by patient, where nothing else tells it"})

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise RetFoundError("--fp16 and --bf16 exclude each other; give one")
        if self.fp16 and not torch.accelerator.is_available():
            raise RetFoundError("--fp16 needs a GPU, and there is none here; leave it out")
        if self.per_device_eval_batch_size < 1:
            raise RetFoundError(f"--per_device_eval_batch_size {self.per_device_eval_batch_size} must be at least 1")

    @property
    def options(self) -> dict[str, Any]:
        """As `forward.forward_here` takes them."""
        return {
            "batch_size": self.per_device_eval_batch_size,
            "num_workers": self.dataloader_num_workers,
            "precision": "fp16" if self.fp16 else "bf16" if self.bf16 else "no",
        }


class PreparedSet(Dataset):
    """Images decoded once (see `data.image_cache`), with their targets when there are any."""

    def __init__(self, images: Any, targets: np.ndarray | None = None):
        if targets is not None and len(targets) != len(images):
            raise ValueError(f"{len(targets)} targets for {len(images)} images")
        self.images = images
        self.targets = targets

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = {"image": self.images[int(index)]["image"]}
        if self.targets is not None:
            item["labels"] = self.targets[index]
        return item


class SourceSet(Dataset):
    """Images read, cropped and resized as they are asked for; what cannot be read comes black, with the reason."""

    def __init__(self, sources: Sequence[str | bytes | Image.Image], processor: RetFoundImageProcessor):
        self.sources = sources
        self.size, self.crop = dict(processor.size), bool(processor.do_fundus_crop)

    def __len__(self) -> int:
        return len(self.sources)

    def __getitem__(self, index: int) -> dict[str, Any]:
        try:
            return {"image": prepare_image(self.sources[index], self.size, self.crop), "reason": ""}
        except UnreadableImageError as error:
            return {"image": resize(Image.new("RGB", (64, 64)), self.size), "reason": str(error)}


@dataclass
class Collator:
    """Batches for the network: `pixel_values` float32 (batch, 3, size, size) and, where known, `labels`.

    Args:
        to_pixels: turns the batch's images into `pixel_values`; runs in the loader's workers.
        mix: mixes images and labels of a batch (mixup, cutmix), or None.
    """

    to_pixels: Callable[[Sequence[Image.Image]], Tensor]
    mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None

    def __call__(self, items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        batch: dict[str, Any] = {"pixel_values": self.to_pixels([item["image"] for item in items])}
        if "reason" in items[0]:
            batch["reason"] = [item["reason"] for item in items]
        if "labels" in items[0]:
            batch["labels"] = torch.from_numpy(np.stack([item["labels"] for item in items]))
            if self.mix is not None:
                batch["pixel_values"], batch["labels"] = self.mix(batch["pixel_values"], batch["labels"])
        return batch


@dataclass
class EvaluationPixels:
    """The rest of the image processor for images that are cropped and resized already."""

    processor: RetFoundImageProcessor

    def __call__(self, images: Sequence[Image.Image]) -> Tensor:
        outputs = self.processor(list(images), do_fundus_crop=False, do_resize=False, return_tensors="pt")
        return outputs["pixel_values"]


DTYPES = {"no": None, "fp16": torch.float16, "bf16": torch.bfloat16}


def forward(
    model: nn.Module,
    images: Any,
    processor: RetFoundImageProcessor,
    take: Callable[[Any], Tensor],
    **options: Any,
) -> np.ndarray:
    """Run `model` over `images` and collect what `take` picks from its outputs.

    Every process of a distributed run works on its own share (each n-th image) and receives the whole result.

    Args:
        images: prepared images (`data.image_cache`), of the processor's resized size.
        take: outputs -> (batch, columns).
        options: as in `forward_here`.

    Returns:
        float32 (images, columns), in the order of `images`.
    """
    state = process_state()
    own = range(state.process_index, len(images), state.num_processes)
    found, _ = forward_here(model, Subset(PreparedSet(images), own), processor, take, **options)
    if state.num_processes == 1:
        return found
    shares = gather_object([(list(own), found)])
    result = np.empty((len(images), max(share.shape[1] for _, share in shares)), np.float32)
    for indices, share in shares:
        if indices:
            result[indices] = share
    return result


@torch.inference_mode()
def forward_here(
    model: nn.Module,
    dataset: Dataset,
    processor: RetFoundImageProcessor,
    take: Callable[[Any], Tensor],
    batch_size: int = 32,
    num_workers: int = 0,
    precision: str = "no",
    description: str | None = "predict",
) -> tuple[np.ndarray, list[str]]:
    """Run `model` over a whole data set on this process alone.

    Args:
        dataset: items with `image` and, for images that could not be read, a `reason`.
        precision: `no` (float32), `fp16` or `bf16` autocast.
        description: of the progress bar; None shows none.

    Returns:
        float32 (items, columns), and the reason of every item, empty where all went well.
    """
    state = process_state()
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        num_workers=num_workers,
        collate_fn=Collator(EvaluationPixels(processor)),
        pin_memory=state.device.type == "cuda",
    )
    was_training = model.training
    model = model.to(state.device).eval()
    rows: list[Tensor] = []
    reasons: list[str] = []
    with torch.autocast(state.device.type, dtype=DTYPES[precision] or torch.bfloat16, enabled=precision != "no"):
        for batch in tqdm(loader, desc=description, disable=description is None or not state.is_main_process):
            pixels = batch["pixel_values"].to(state.device, non_blocking=True)
            rows.append(take(model(pixel_values=pixels)).float())
            reasons += batch.get("reason", [""] * len(pixels))
    model.train(was_training)
    # One transfer at the end: a copy per batch would make the GPU wait.
    return torch.cat(rows).cpu().numpy() if rows else np.zeros((0, 0), np.float32), reasons


def predict_logits(
    model: PreTrainedModel, images: Any, processor: RetFoundImageProcessor, **options: Any
) -> np.ndarray:
    """Logits (images, num_labels) of a classifier; `options` as in `forward_here`."""
    return forward(model, images, processor, lambda outputs: outputs.logits, **options)


def features(encoder: PreTrainedModel, images: Any, processor: RetFoundImageProcessor, **options: Any) -> np.ndarray:
    """Feature vectors (images, width): the encoder's `pooler_output`; `options` as in `forward_here`."""
    return forward(encoder, images, processor, pooled, **{"description": "embed", **options})


def head_inputs(model: PreTrainedModel, images: Any, processor: RetFoundImageProcessor, **options: Any) -> np.ndarray:
    """What the linear layer `model.classifier` sees (images, its in_features); `options` as in `forward_here`."""
    seen: list[Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        return forward(model, images, processor, lambda outputs: seen.pop(), **{"description": "features", **options})
    finally:
        hook.remove()


def pooled(outputs: Any) -> Tensor:
    """The feature vectors (batch, width) among an encoder's outputs: pooled, or the class token where none is."""
    vectors = getattr(outputs, "pooler_output", None)
    return outputs.last_hidden_state[:, 0] if vectors is None else vectors.flatten(1)  # a ResNet pools to 1 x 1 maps


def to_scores(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Class probabilities (softmax), label probabilities (sigmoid) or predicted values, by the problem type."""
    return PROBLEM_TYPES[problem_type].to_scores(torch.from_numpy(logits).double()).numpy()


logger = logging.getLogger(__name__)
# Images to augment keep twice the input's side: a crop of a quarter of the area is still not enlarged.
TRAINING_SIDES = 2
LOOKED_AT = 16


@dataclass(frozen=True)
class PreparedSplit:
    """Decoded images with what belongs to them, in one order.

    Args:
        images: decoded once and memory-mapped, see `data.image_cache`.
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
        prepared = cache_images(
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
