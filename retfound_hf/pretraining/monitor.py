"""What the network has learned so far: a linear probe on labelled images, pictures of its reconstructions."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..data.labelled import LabelledSet, read_labelled
from ..evaluation.linear_probe import fit_linear_probe
from ..evaluation.metrics import compute_metrics
from ..images.contact_sheet import contact_sheet
from ..inference.forward import features, to_scores
from ..inference.sets import PreparedSplit, prepare_split
from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from ..runs.files import whole_file
from .images import ImageReader
from .objectives.base import Objective
from .order import step_generator

PREVIEWED = 4
# Apart from the steps of training, which count from 0.
PREVIEW_SEED = 2**31


@dataclass
class LinearProbeMonitor:
    """AUROC of a linear head on the features of a labelled set: fitted on train, chosen on val, measured on test.

    Args:
        data: labelled set, as for the command finetune.
        epochs: between two probes.
        processor: of the network.
        options: `batch_size`, `num_workers`, `precision`, as in `inference.forward`.
    """

    data: str
    epochs: float
    processor: RetFoundImageProcessor
    cache_dir: str | None
    options: dict[str, Any]

    @cached_property
    def labelled(self) -> LabelledSet:
        try:
            return read_labelled(self.data)
        except RetFoundError as error:
            raise RetFoundError(f"--probe_data must be a set labelled with classes: {error}") from error

    @cached_property
    def splits(self) -> dict[str, PreparedSplit]:
        """Decoded once, before training."""
        return {
            name: prepare_split(self.labelled, name, self.processor, on_bad_image="skip", cache_dir=self.cache_dir)
            for name in ("train", "val", "test")
        }

    def is_due(self, before: float, after: float) -> bool:
        """Whether the step that led from one position to the next, in epochs, passed the time of a probe."""
        return math.floor(after / self.epochs + 1e-9) > math.floor(before / self.epochs + 1e-9)

    def auroc(self, objective: Objective) -> float:
        """On every process; the forward passes are shared."""
        kind, names = self.labelled.problem_type, self.labelled.class_names
        found = {
            name: features(objective.encoder, split.images, self.processor, description=None, **self.options)
            for name, split in self.splits.items()
        }
        targets = {name: split.targets for name, split in self.splits.items()}
        probe = fit_linear_probe(
            found["train"], targets["train"], found["val"], targets["val"], kind, class_names=names
        )
        logits = (found["test"] @ probe.weight.T + probe.bias).astype(np.float32)
        auroc = compute_metrics(kind, targets["test"], to_scores(logits, kind), names)["auroc"]
        return math.nan if auroc is None else float(auroc)


class Previews:
    """Pictures of the same few images of the shards, with the same masks, as training goes on.

    Args:
        output_dir: of the run; the pictures lie in `previews/`.
    """

    def __init__(self, reader: ImageReader, objective: Objective, output_dir: Path, seed: int):
        rows = reader.spread_rows(PREVIEWED)
        self.images, _, _ = reader.read(rows)
        self.draws = objective.draw(len(rows), step_generator(seed, PREVIEW_SEED))
        self.folder = output_dir / "previews"

    def write(self, objective: Objective, step: int, device: torch.device) -> Tensor | None:
        """`previews/step-<step>.png`; returns the picture as uint8 (1, height, width, 3), None if there is none."""
        draws = {name: values.to(device) for name, values in self.draws.items()}
        rows = objective.preview(self.images.to(device), draws)
        if rows is None:
            return None
        sheet = contact_sheet(rows, objective.preview_titles)
        with whole_file(self.folder / f"step-{step:07d}.png") as partial:
            sheet.save(partial)
        return torch.from_numpy(np.asarray(sheet).copy())[None]
