"""A fine-tuned folder that answers about one image, or about many."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..evaluation.report import ReportArguments, read_points
from ..evaluation.thresholds import OperatingPoint
from ..images.quality import Quality, assess_quality
from ..inference.predict import SourceSet, forward_here, process_state, to_scores
from ..models.loading import load_classifier, load_processor

PRESENT = 0.5  # probability from which a label of a multi-label model counts as present, as in predictions.csv


@dataclass(frozen=True)
class Answer:
    """What the model says about one image.

    Attributes:
        scores: (outputs,) class probabilities, label probabilities, or predicted values.
        pixel_values: (1, 3, size, size), the network's input, from which a map can be made.
        quality: whether the image is fit to be judged.
    """

    scores: np.ndarray
    pixel_values: Tensor
    quality: Quality


class Reader:
    """Holds the model and nothing of any image; several threads may ask at the same time.

    Args:
        name_or_path: fine-tuned folder, adapter folder or Hub id.

    Raises:
        RetFoundError: a folder without a trained classifier.
    """

    def __init__(self, name_or_path: str):
        self.name_or_path = name_or_path
        self.model = load_classifier(name_or_path).to(process_state().device)
        self.processor = load_processor(name_or_path)
        config = self.model.config
        self.class_names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
        self.problem_type: str = config.problem_type or "single_label_classification"
        self.modality: str | None = getattr(config, "modality", None)
        temperature = getattr(config, "calibration_temperature", 1.0)
        self.temperature: float | None = None if temperature == 1 else temperature
        # Of images: thresholds for the joint score of an eye or a patient say nothing here.
        self.points: list[OperatingPoint] = read_points(name_or_path, self.class_names, ReportArguments())

    @torch.inference_mode()
    def answer(self, image: Image.Image) -> Answer:
        """Judge and classify one RGB image."""
        pixel_values = self.processor(image, return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixel_values.to(self.model.device)).logits.float().cpu().numpy()
        scores = to_scores(logits, self.problem_type)[0]
        return Answer(scores, pixel_values, assess_quality(image, self.modality))

    def scores(self, images: Sequence[Image.Image]) -> np.ndarray:
        """Scores (images, outputs) of RGB images in one batch, as `evaluate` computes them."""
        logits, _ = forward_here(
            self.model,
            SourceSet(images, self.processor),
            self.processor,
            lambda outputs: outputs.logits,
            batch_size=len(images),
            description=None,
        )
        return to_scores(logits, self.problem_type)

    def warm_up(self) -> None:
        """Answer once, so that the first visitor does not wait for what the libraries do once."""
        self.answer(Image.new("RGB", (64, 64)))
