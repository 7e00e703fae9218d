"""Batched forward passes over a set, on every process there is, in order and without duplicates."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm
from transformers import PreTrainedModel

from ..models.image_processing import RetFoundImageProcessor
from .batches import Collator, EvaluationPixels, PreparedSet
from .processes import process_state

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
        images: prepared images (`data.prepared`), of the processor's resized size.
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
    values = torch.from_numpy(logits).double()
    if problem_type == "single_label_classification":
        return values.softmax(dim=1).numpy()
    return values.sigmoid().numpy() if problem_type == "multi_label_classification" else logits
