"""Batched forward passes over images, on every process there is, in order and without duplicates."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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

from ..data.image_cache import OnBadImage, cache_images, prepare_image, unreadable_images
from ..data.image_sources import ImageSource, Part, ShardPart
from ..data.labelled import LabelledSet
from ..data.stored_images import open_files
from ..errors import BadArgumentError, UnreadableImageError, require, require_range
from ..evaluation.document import About
from ..evaluation.predictions import Predictions
from ..images.reading import modality_mismatch, resize
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..models.loading import load_classifier as load_model
from ..models.loading import load_processor
from ..vocabulary import PROBLEM_TYPES, REGRESSION, problem_type_of


def process_state() -> PartialState:
    """Rank and number of the processes of this run.

    accelerate joins processes on CPUs only when it is told that they are meant; otherwise each of them would take
    itself for the only one, and all would write the same files.
    """
    return PartialState(cpu=not torch.accelerator.is_available())


@dataclass
class ForwardArguments:
    output_dir: str | None = field(metadata={"help": "folder to write"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "write into a folder that is not empty"})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "images per device and step"})
    dataloader_num_workers: int = field(default=2, metadata={"help": "loader processes"})
    fp16: bool = field(default=False, metadata={"help": "half precision (T4 and other GPUs before Ampere)"})
    bf16: bool = field(default=False, metadata={"help": "bfloat16 (Ampere and later)"})
    on_bad_image: OnBadImage = field(
        default="error", metadata={"help": "unreadable images: stop and name them, or skip and count them"}
    )
    seed: int = field(default=0, metadata={"help": "seed of a split by patient, unless the training recorded one"})
    image_column: str = field(default="image", metadata={"help": "column of the images in a table or in shards"})
    image_root: str | None = field(
        default=None,
        metadata={"help": "folder that image paths are relative to; default: that of the table or shards"},
    )

    def __post_init__(self) -> None:
        if self.fp16 and self.bf16:
            raise BadArgumentError("`fp16` and `bf16` exclude each other; pass one", field="fp16", value=True)
        if self.fp16 and not torch.accelerator.is_available():
            raise BadArgumentError("`fp16` needs a GPU, and there is none here", field="fp16", value=True)
        require_range("per_device_eval_batch_size", self.per_device_eval_batch_size, 1)

    @property
    def options(self) -> dict[str, Any]:
        """Options of `forward_here`."""
        return forward_options(self)

    def source(self, data: Any) -> ImageSource:
        """The images of `data`, see `open_files`."""
        return open_files(data, self.image_column, self.image_root)


def forward_options(args: Any) -> dict[str, Any]:
    """Options of `forward_here` from arguments that name them as `TrainingArguments` does."""
    return {
        "batch_size": args.per_device_eval_batch_size,
        "num_workers": args.dataloader_num_workers,
        "precision": "fp16" if args.fp16 else "bf16" if args.bf16 else "no",
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
    """Images read, cropped and resized on access; unreadable ones are black, with a non-empty `reason`."""

    def __init__(self, sources: Sequence[str | bytes | Image.Image], processor: RetFoundImageProcessor):
        self.sources = sources
        self.size, self.crop = processor.resized_size, bool(processor.do_fundus_crop)

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
    model: nn.Module, images: Any, processor: RetFoundImageProcessor, take: Callable[[Any], Tensor], **options: Any
) -> np.ndarray:
    """Run `model` over `images` and collect what `take` picks from its outputs.

    Every process of a distributed run works on its own share (each n-th image) and receives the whole result.

    Args:
        images: decoded images (`data.image_cache`), of the processor's `resized_size`.
        take: from the model's outputs to a tensor (batch, columns).
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
    model: nn.Module, dataset: Dataset, processor: RetFoundImageProcessor, take: Callable[[Any], Tensor],
    batch_size: int = 32, num_workers: int = 0, precision: str = "no", description: str | None = "predict",
) -> tuple[np.ndarray, list[str]]:  # fmt: skip
    """Run `model` over a whole data set on this process alone.

    Args:
        dataset: items with `image` and, for images that could not be read, a `reason`.
        take: from the model's outputs to a tensor (batch, columns).
        batch_size, num_workers: of the loader.
        precision: `no` (float32), `fp16` or `bf16` autocast.
        description: of the progress bar; None shows none.

    Returns:
        float32 (items, columns), and the reason of every item, empty where all went well.
    """
    state = process_state()
    collator, pin = Collator(EvaluationPixels(processor)), state.device.type == "cuda"
    loader = DataLoader(dataset, batch_size=batch_size, num_workers=num_workers, collate_fn=collator, pin_memory=pin)
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


def features(encoder: PreTrainedModel, images: Any, processor: RetFoundImageProcessor, **options: Any) -> np.ndarray:
    """Feature vectors (images, width): the encoder's `pooler_output`; `options` as in `forward_here`."""
    return forward(encoder, images, processor, pooled, **{"description": "embed", **options})


def head_inputs(model: PreTrainedModel, images: Any, processor: RetFoundImageProcessor, **options: Any) -> np.ndarray:
    """Inputs (images, in_features) of the linear layer `model.classifier`; `options` as in `forward_here`."""
    seen: list[Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    try:
        return forward(model, images, processor, lambda outputs: seen.pop(), **{"description": "features", **options})
    finally:
        hook.remove()


@torch.inference_mode()
def head_logits(model: PreTrainedModel, inputs: np.ndarray) -> np.ndarray:
    """Logits (images, num_labels) of the linear layer alone, for what `head_inputs` gives."""
    vectors = torch.tensor(np.asarray(inputs), device=model.classifier.weight.device)
    return model.classifier(vectors).float().cpu().numpy()


def pooled(outputs: Any) -> Tensor:
    """The feature vectors (batch, width) among an encoder's outputs: pooled, or the class token where none is."""
    vectors = getattr(outputs, "pooler_output", None)
    return outputs.last_hidden_state[:, 0] if vectors is None else vectors.flatten(1)  # a ResNet pools to 1 x 1 maps


def to_scores(logits: np.ndarray, problem_type: str) -> np.ndarray:
    """Class probabilities (softmax), label probabilities (sigmoid) or predicted values, by the problem type."""
    return PROBLEM_TYPES[problem_type].to_scores(torch.from_numpy(logits).double()).numpy()


def forward_part(
    model: nn.Module, part: Part | ShardPart, processor: RetFoundImageProcessor, take: Callable[[Any], Tensor],
    on_bad_image: OnBadImage = "error", **options: Any,
) -> tuple[list[str], np.ndarray, list[tuple[str, str]]]:  # fmt: skip
    """Run `model` over images that may be unreadable, on this process alone.

    Args:
        part: the images.
        take: from the model's outputs to a tensor (batch, columns).
        on_bad_image: "error", or "skip" to leave unreadable images out.
        options: as in `forward_here`.

    Returns:
        Ids of the images; float32 (images, columns); id and reason of each that was left out.

    Raises:
        BadDataError: unreadable images; `rows` has their ids.
    """
    require("on_bad_image", on_bad_image, ("error", "skip"))
    refs = part.refs
    ids, dataset = [ref.id for ref in refs], SourceSet([ref.image for ref in refs], processor)
    values, reasons = forward_here(model, dataset, processor, take, **{"description": None, **options})
    rejected = [(name, reason) for name, reason in zip(ids, reasons, strict=True) if reason]
    if rejected and on_bad_image == "error":
        raise unreadable_images(rejected, len(ids))
    kept = np.flatnonzero([not reason for reason in reasons])
    return [ids[index] for index in kept], values[kept], rejected


logger = logging.getLogger(__name__)
# Images to augment keep twice the input's side: a crop of a quarter of the area is still not enlarged.
TRAINING_SIDES = 2
LOOKED_AT = 16
PART = 1000  # images in memory at once


@dataclass(frozen=True)
class PreparedSplit:
    """Decoded images with what belongs to them, in one order.

    Args:
        images: decoded once and memory-mapped, see `data.image_cache`.
        rows: the rows of the labelled table that the images come from.
        targets: as `LabelledSet.targets`, for these rows.
        rejected: path and reason of every unreadable image that was skipped.
        unread: the targets of these images.
    """

    images: Any
    rows: pd.DataFrame
    targets: np.ndarray
    rejected: list[tuple[str, str]]
    unread: np.ndarray

    def only(self, ids: Collection[str]) -> "PreparedSplit":
        """The images of these ids, in the order in which they stand here."""
        kept = np.flatnonzero(self.rows["id"].isin(ids))
        if len(kept) == len(self.rows):
            return self
        return PreparedSplit(
            self.images.select(kept), self.rows.iloc[kept], self.targets[kept], self.rejected, self.unread
        )


def prepare_split(
    labelled: LabelledSet, split: str, processor: RetFoundImageProcessor, exact: bool = True,
    on_bad_image: OnBadImage = "error", num_workers: int = 0, cache_dir: str | None = None,
) -> PreparedSplit:  # fmt: skip
    """Decode a split for `processor`; one process of a distributed run decodes, the others read its cache.

    Args:
        labelled, split: the set, and which part of it.
        processor: of the model.
        exact: crop and resize as the processor does, for evaluation; otherwise keep more pixels to augment.
        on_bad_image, num_workers, cache_dir: as in `data.image_cache.cache_images`.
    """
    rows = labelled.rows(split)
    with process_state().main_process_first():
        prepared = cache_images(
            rows, size=processor.resized_size if exact else TRAINING_SIDES * processor.size.height,
            crop=bool(processor.do_fundus_crop), exact=exact, on_bad_image=on_bad_image, num_workers=num_workers,
            cache_dir=cache_dir,
        )  # fmt: skip
    kept = np.asarray(prepared.images["row"], dtype=np.int64)
    targets, unread = labelled.targets(split), np.setdiff1d(np.arange(len(rows)), kept)
    return PreparedSplit(prepared.images, rows.iloc[kept], targets[kept], prepared.rejected, targets[unread])


def warn_of_modality(images: Any, modality: str | None) -> None:
    """Warn once where images look like the other modality than the weights': gray ones for CFP, coloured for OCT.

    Weights of the wrong modality work, only worse, so that nobody notices.

    Args:
        images: prepared images; a few are looked at.
        modality: of the weights, None when unknown.
    """
    few = images.select(range(0, len(images), max(1, len(images) // LOOKED_AT)))
    seen = modality_mismatch((item["image"] for item in few), modality)
    if seen is not None and process_state().is_main_process:
        logger.warning("%s, but the weights are of %s: check that these are right", seen, str(modality).upper())


@dataclass(frozen=True)
class Classifier:
    """Classifier or regressor with its image processor.

    Attributes:
        model: `PreTrainedModel`, or `PeftModel` around one.
        processor: its preprocessing.
    """

    model: Any
    processor: RetFoundImageProcessor

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes or targets, in the order of the outputs."""
        return tuple(str(self.model.config.id2label[index]) for index in range(self.model.config.num_labels))

    @property
    def class_order(self) -> tuple[str, ...] | None:
        """Exclusive classes from the lowest to the highest, as training was told; None where the names must tell."""
        order = getattr(self.model.config, "class_order", None)
        return None if order is None else tuple(order)

    @property
    def problem_type(self) -> str:
        """Key of `PROBLEM_TYPES`."""
        return problem_type_of(self.model.config)

    def logits(self, images: Any, **options: Any) -> np.ndarray:
        """Logits (images, outputs) of decoded images, on every process; `options` as in `forward_here`."""
        return forward(self.model, images, self.processor, lambda outputs: outputs.logits, **options)

    def predictions(self, split: PreparedSplit, logits: np.ndarray) -> Predictions:
        """Predictions for a labelled split, from its logits."""
        scores = to_scores(logits, self.problem_type)
        return Predictions.of_table(
            split.rows, split.targets, scores, self.class_names, self.problem_type, self.class_order
        )

    def about(self, title: str, model: str, data: str, splits: Mapping[str, PreparedSplit], **facts: str) -> About:
        """Text of `report.html` beside the figures of this classifier.

        Args:
            title: of the page.
            model, data: as they were given.
            splits: decoded images by split, the evaluated one last.
            facts: more of the run.
        """
        config, names, crop = self.model.config, self.class_names, self.processor.crop_size
        fitted = "" if self.problem_type == REGRESSION else "Nothing was fitted to the probabilities of the network."
        if getattr(config, "is_calibrated", False):
            from ..evaluation.calibration import LogitScaling

            scaling = LogitScaling.of(config.to_dict(), len(names))
            fitted = f"The logits were recalibrated on validation images: {scaling.describe(names)}."
        size = f"{crop.height} x {crop.width} pixels"
        size += ", cropped to the field of view" if self.processor.do_fundus_crop else ""
        model, data = (Path(one).name if Path(one).exists() else one for one in (model, data))  # whose machine it is
        settings = {"model": model, "data": data, "evaluated": list(splits)[-1], "input": size, **facts}
        parts = {name: (split.rows, split.targets) for name, split in splits.items()}
        return About(title, settings, parts, fitted, list(splits.values())[-1].unread)

    def predict(
        self, images: str | Path | Sequence[Any], on_bad_image: OnBadImage = "error", **options: Any
    ) -> Predictions:
        """Predictions for images without labels.

        Args:
            images: folder or table of images, or a list of paths, bytes or `PIL.Image`s; their paths become the ids.
            on_bad_image: "error", or "skip" to leave unreadable images out.
            options: `batch_size`, `num_workers`, `precision`, as in `forward_here`.

        Raises:
            BadDataError: unreadable images; `rows` has their ids.
        """
        parts = [
            forward_part(self.model, part, self.processor, lambda outputs: outputs.logits, on_bad_image, **options)
            for part in open_files(images).parts(PART)
        ]
        ids = [name for names, _, _ in parts for name in names]
        scores = to_scores(np.concatenate([values for _, values, _ in parts]), self.problem_type)
        return Predictions(ids, scores, None, self.class_names, self.problem_type, class_order=self.class_order)


def load_classifier(name_or_path: str | Path) -> Classifier:
    """Fine-tuned folder, adapter folder (merged into its base) or Hub id as a `Classifier`.

    Raises:
        BadModelError: a folder without a trained head, or an adapter whose base is gone.
    """
    return Classifier(load_model(str(name_or_path)), load_processor(str(name_or_path)))
