"""Feature vectors for linear heads, computed once per model and set, shared by all fractions and seeds."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from ..data.prepared import fingerprint
from ..finetuning.job import FinetuneJob
from ..inference.forward import head_inputs
from ..inference.sets import PreparedSplit
from ..runs.files import one_at_a_time, whole_file


def cached_features(folder: Path, job: FinetuneJob, sets: Mapping[str, PreparedSplit]) -> dict[str, np.ndarray]:
    """What the head sees of the images of every set, from the cache in `folder` or into it.

    Returns:
        By set, float32 (images, columns), memory-mapped.
    """
    options = (encoder_digest(job.model), str(job.processor.to_dict()), job.forward_options["precision"])
    return {
        name: _made_once(folder / f"{fingerprint(prepared.rows, *options)}.npy", job, prepared)
        for name, prepared in sets.items()
    }


def encoder_digest(model: PreTrainedModel) -> str:
    """Digest of the weights below the head, as they are in memory: random ones have no file to be known by."""
    digest = hashlib.blake2b(repr(model.config.architectures).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _made_once(path: Path, job: FinetuneJob, prepared: PreparedSplit) -> np.ndarray:
    with one_at_a_time(path):
        if not path.is_file():
            with whole_file(path) as partial:
                np.save(partial, head_inputs(job.model, prepared.images, job.processor, **job.forward_options))
    return np.load(path, mmap_mode="r")
