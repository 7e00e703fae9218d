"""Feature vectors for linear heads, computed once per model and set, shared by all fractions and seeds."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
from transformers import PreTrainedModel

from ..data.prepared import fingerprint
from ..finetuning.job import FinetuneJob
from ..inference.forward import head_inputs
from ..inference.sets import PreparedSplit
from ..runs.files import one_at_a_time, whole_file


def cached_features(folder: Path, job: FinetuneJob, prepared: PreparedSplit) -> np.ndarray:
    """What the head sees of `prepared`'s images, from the cache in `folder` or into it.

    Returns:
        float32 (images, columns), memory-mapped.
    """
    options = (encoder_digest(job.model), str(job.processor.to_dict()), job.forward_options["precision"])
    path = folder / f"{fingerprint(prepared.rows, *options)}.npy"
    return _made_once(path, lambda: head_inputs(job.model, prepared.images, job.processor, **job.forward_options))


def encoder_digest(model: PreTrainedModel) -> str:
    """Digest of the weights below the head, as they are in memory: random ones have no file to be known by."""
    digest = hashlib.blake2b(repr(model.config.architectures).encode(), digest_size=16)
    for name, tensor in model.state_dict().items():
        if not name.startswith("classifier."):
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
    return digest.hexdigest()


def _made_once(path: Path, make: Callable[[], np.ndarray]) -> np.ndarray:
    with one_at_a_time(path):
        if not path.is_file():
            with whole_file(path) as partial:
                np.save(partial, make())
    return np.load(path, mmap_mode="r")
