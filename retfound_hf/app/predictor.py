"""Models behind the page: a classifier that answers about images, an autoencoder that reconstructs them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ..evaluation.calibration import LogitScaling
from ..evaluation.report import ReportArguments, read_points
from ..evaluation.thresholds import OperatingPoint
from ..explanation.explain import COLUMNS, paint, sheet_row
from ..explanation.relevance import relevance
from ..images.drawing import colour_layer, heat_on_image
from ..images.field_of_view import ImageRegion
from ..images.quality import Quality, assess_quality
from ..inference.predict import load_classifier, process_state, to_scores
from ..models.loading import load_autoencoder, load_processor


@dataclass(frozen=True)
class Answer:
    """Answer about one image."""

    scores: np.ndarray  # (outputs,) class probabilities, label probabilities, or predicted numbers
    pixel_values: Tensor  # (1, 3, size, size), the network's input, from which a map can be made
    quality: Quality


class Reader:
    """Classifier or regressor that keeps nothing of an image; threads may share it.

    Args:
        name_or_path: fine-tuned folder, adapter folder or Hub id.

    Raises:
        BadModelError: a folder without a trained classifier.
    """

    def __init__(self, name_or_path: str):
        self.name_or_path = name_or_path
        found = load_classifier(name_or_path)
        self.model, self.processor = found.model.to(process_state().device), found.processor
        self.class_names, self.problem_type = found.class_names, found.problem_type
        self.modality: str | None = getattr(self.model.config, "modality", None)
        self.calibration = LogitScaling.of(self.model.config.to_dict(), len(self.class_names))
        # Of images: thresholds for the joint score of an eye or a patient say nothing here.
        self.points: list[OperatingPoint] = read_points(name_or_path, self.class_names, ReportArguments())

    @torch.inference_mode()
    def scores(self, images: Sequence[Image.Image]) -> tuple[np.ndarray, Tensor]:
        """Scores (images, outputs) of RGB images in one batch, and the network's input (images, 3, size, size)."""
        pixel_values = self.processor(list(images), return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixel_values.to(self.model.device)).logits.float().cpu().numpy()
        return to_scores(logits, self.problem_type), pixel_values

    def answer(self, image: Image.Image) -> Answer:
        """Scores and quality of one RGB image."""
        scores, pixel_values = self.scores([image])
        return Answer(scores[0], pixel_values, assess_quality(image, self.modality))

    def input_window(self, image: Image.Image, size: tuple[int, int]) -> ImageRegion:
        """Region of the network's input on an image that is shown at `size` (width, height)."""
        window = self.processor.input_window(image, self.processor.crop_box(image))
        return window.scaled(size[0] / image.width, size[1] / image.height)

    def relevance_layer(
        self, pixel_values: Tensor, window: ImageRegion, target: str, size: tuple[int, int]
    ) -> tuple[Image.Image, float]:
        """Transparent layer of colours for the image shown at `size`, and the multiple of the average at its hottest.

        Args:
            pixel_values: (1, 3, height, width), the network's input made from the image.
            window: its `input_window` at that size.
            target: name of a class or target.
            size: width and height in pixels.

        Raises:
            RetFoundError: an architecture without relevance maps.
        """
        maps = relevance(self.model, pixel_values, self.class_names.index(target))
        heat = heat_on_image(maps.patches[0].numpy(), window, size)
        return colour_layer(heat.values, opacity=1.0), heat.top


class Reconstructor:
    """Masked autoencoder that keeps nothing of an image; threads may share it.

    Raises:
        BadModelError: a folder without a decoder.
    """

    def __init__(self, name_or_path: str):
        self.name_or_path = name_or_path
        self.model = load_autoencoder(name_or_path).to(process_state().device)
        self.processor = load_processor(name_or_path)
        self.mask_ratio: float = self.model.config.mask_ratio

    def network_input(self, image: Image.Image) -> Tensor:
        """The network's input (1, 3, height, width)."""
        return self.processor(image, return_tensors="pt")["pixel_values"]

    def pictures(self, pixel_values: Tensor, mask_ratio: float, seed: int) -> tuple[dict[str, Image.Image], float]:
        """Pictures by their names in `COLUMNS`, and the mean error of the hidden patches as the loss counts it.

        Args:
            pixel_values: (1, 3, height, width), as `network_input`.
            mask_ratio: share of hidden patches.
            seed: of the choice of hidden patches.
        """
        found = paint(self.model, pixel_values, ["page"], self.processor, mask_ratio, seed)
        hidden = found.mask[0]
        loss = float(found.error[0][hidden].mean()) if hidden.any() else 0.0
        pictures = [to_pil_image(picture.cpu()) for picture in sheet_row(found, 0)]
        return dict(zip(COLUMNS, pictures, strict=True)), loss
