import numpy as np
import pytest

from retfound_hf.errors import BadDataError
from retfound_hf.images.reading import ImageRegion


def test_a_map_of_one_value_fills_the_region_and_nothing_else():
    placed = ImageRegion(10, 5, 30, 25).place(np.ones((4, 4)), (40, 50))
    expected = np.zeros((50, 40), np.float32)
    expected[5:25, 10:30] = 1
    assert placed.dtype == np.float32 and np.array_equal(placed, expected)


def test_a_region_beyond_the_image_is_cut():
    placed = ImageRegion(-10, -4, 10, 16).place(np.arange(4).reshape(2, 2), (8, 12))
    assert placed.shape == (12, 8)
    # The map's centre (0, 6) lies at the image's left edge: the mean of its four values.
    assert placed[5:7, 0].mean() == pytest.approx(1.5, abs=0.1)
    assert placed[-1, -1] == pytest.approx(2 + 1 * (7.5 - -5) / 10 - 0.0, abs=0.3)


def test_linear_maps_stay_linear_between_the_centres():
    x = np.linspace(0.5, 7.5, 8)
    placed = ImageRegion(0, 0, 80, 80).place(np.tile(x, (8, 1)), (80, 80))
    inner = (np.arange(80) + 0.5) / 10
    assert np.allclose(placed[40, 5:75], inner[5:75], atol=1e-4)
    assert np.allclose(placed[40, :5], 0.5) and np.allclose(placed[40, 75:], 7.5)


def test_moving_and_scaling():
    assert ImageRegion(1, 2, 3, 4).scaled(2).moved(10, -1) == ImageRegion(12, 3, 16, 7)
    assert ImageRegion(1, 2, 3, 4).scaled(2, 10) == ImageRegion(2, 20, 6, 40)


def test_outside_and_bad_maps():
    assert np.isnan(ImageRegion(2, 2, 4, 4).place(np.ones((1, 1)), (6, 6), outside=float("nan"))[0, 0])
    with pytest.raises(BadDataError):
        ImageRegion(0, 0, 1, 1).place(np.ones(3), (4, 4))
