"""Models behind the page: the numbers of plain transformers calls, and what a folder says of itself."""

import numpy as np
import pytest
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification

from retfound_hf.app.predictor import Reader
from retfound_hf.errors import BadModelError
from retfound_hf.evaluation.report import ReportArguments, write_points
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.explanation.relevance import relevance


def test_scores_are_those_of_transformers(reader, classifier_folder, photograph):
    images = [photograph(number) for number in range(3)]
    processor = AutoImageProcessor.from_pretrained(classifier_folder)
    model = AutoModelForImageClassification.from_pretrained(classifier_folder).eval()
    with torch.no_grad():
        expected = model(**processor(images, return_tensors="pt")).logits.double().softmax(-1).numpy()
    together, _ = reader.scores(images)
    assert np.allclose(together, expected, atol=1e-6)
    for image, row in zip(images, expected, strict=True):
        answer = reader.answer(image)
        assert np.allclose(answer.scores, row, atol=1e-5) and answer.quality.verdict == "ok"


def test_calibration_and_modality_come_from_the_folder(make_folder, reader):
    other = Reader(str(make_folder(calibration_temperature=1.5, modality="oct")))
    assert (other.calibration.slope[0], other.modality) == (1 / 1.5, "oct")
    assert (reader.calibration, reader.modality) == (None, "cfp")


def test_thresholds_come_from_the_folder(make_folder):
    folder = make_folder()
    points = [OperatingPoint("glaucoma", "sensitivity", 0.9, 0.25)]
    assert Reader(str(folder)).points == []
    write_points(folder, points, ReportArguments(), images=40)
    assert Reader(str(folder)).points == points
    write_points(folder, points, ReportArguments(level="patient"), images=40)
    assert Reader(str(folder)).points == []  # the page shows images


def test_a_folder_without_a_classifier_is_refused(autoencoder_folder):
    with pytest.raises(BadModelError):
        Reader(str(autoencoder_folder))


def test_the_layer_lies_where_the_network_looked(reader, photograph):
    """The hottest place of the layer is the hottest patch, through crop, resize and the page's own reduction."""
    image, size = photograph(2, 1200), (800, 600)
    pixel_values = reader.answer(image).pixel_values
    layer, top = reader.relevance_layer(pixel_values, reader.input_window(image, size), "glaucoma", size)
    alpha = np.asarray(layer)[..., 3]
    assert layer.size == size and top > 1
    # Nothing is claimed about the surround, of which the network saw no more than the corners of its square.
    assert alpha[:, :60].max() == alpha[:, -60:].max() == 0
    patches = relevance(reader.model, pixel_values, 2).patches[0].numpy()
    window = reader.processor.input_window(image, reader.processor.crop_box(image)).scaled(0.5, 0.5)
    heat = window.place((patches == patches.max()).astype(np.float32), size)
    assert alpha[np.unravel_index(heat.argmax(), heat.shape)] == alpha.max()
