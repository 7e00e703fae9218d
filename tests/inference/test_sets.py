"""Weights of the wrong modality are noticed."""

import logging

import datasets
import numpy as np
import pytest
from PIL import Image

from retfound_hf.images.synthetic import CLASSES, draw_patient, render
from retfound_hf.inference.predict import warn_of_modality


def images(modality: str) -> datasets.Dataset:
    rng = np.random.default_rng(0)
    pictures = []
    for condition in CLASSES[modality]:
        eye, _ = draw_patient(rng, modality)
        pictures.append(Image.fromarray(render(eye, condition, 0.5, 96, rng).image))
    return datasets.Dataset.from_dict({"image": pictures * 8}, features=datasets.Features({"image": datasets.Image()}))


@pytest.mark.parametrize(
    ("seen", "weights", "warning"),
    [
        ("oct", "cfp", "the images look gray, as OCT scans are, but the weights are of CFP"),
        ("cfp", "oct", "the images look coloured, as fundus photographs are, but the weights are of OCT"),
        ("oct", "oct", None),
        ("cfp", "cfp", None),
        ("cfp", None, None),
        ("oct", None, None),
    ],
)
def test_wrong_modality(seen, weights, warning, caplog):
    with caplog.at_level(logging.WARNING):
        warn_of_modality(images(seen), weights)
    assert [warning in record.message for record in caplog.records] == ([True] if warning else [])
