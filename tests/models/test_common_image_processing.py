"""transformers' own tests of image processors, on ours beside the stock one of ViT."""

import pytest
from common_tests import make_tree, run

CODE = """
import unittest

from transformers import AutoImageProcessor, ViTImageProcessor  # noqa: F401

from retfound_hf import RetFoundImageProcessor

from ..test_image_processing_common import ImageProcessingTestMixin, prepare_image_inputs


class Tester:
    batch_size, num_channels, min_resolution, max_resolution = 4, 3, 30, 60

    def __init__(self, parent):
        self.parent = parent

    def prepare_image_processor_dict(self):
        normalisation = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
        return {"do_resize": True, "size": {"height": 18, "width": 18}, **normalisation}

    def expected_output_image_shape(self, images):
        return self.num_channels, 18, 18

    def prepare_image_inputs(self, equal_resolution=False, numpify=False, torchify=False):
        return prepare_image_inputs(
            batch_size=self.batch_size, num_channels=self.num_channels, min_resolution=self.min_resolution,
            max_resolution=self.max_resolution, equal_resolution=equal_resolution, numpify=numpify, torchify=torchify,
        )


class OursTester(Tester):
    image_processing_classes = {"torchvision": RetFoundImageProcessor}


class StockTester(Tester):
    image_processing_classes = {"torchvision": ViTImageProcessor}


class Ours(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = OursTester


class Stock(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = StockTester
"""
# Four channels are RGBA to our processor, as to Pillow; the test wants four out.
OTHERWISE = {"test_call_numpy_4_channels"}


@pytest.mark.slow
def test_whatever_a_stock_processor_passes_ours_passes(tmp_path):
    found = run(make_tree(tmp_path), CODE)
    stock = {name.split(".")[1]: outcome for name, outcome in found.items() if name.startswith("Stock.")}
    ours = {name.split(".")[1]: outcome for name, outcome in found.items() if name.startswith("Ours.")}
    assert sum(outcome == "passed" for outcome in stock.values()) >= 15
    broken = {name: ours.get(name) for name, outcome in stock.items() if outcome == "passed" != ours.get(name)}
    assert broken.keys() <= OTHERWISE, broken
