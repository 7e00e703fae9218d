"""The processor's account of its own geometry, held against what it does to images whose colours are coordinates."""

import numpy as np
import pytest
from PIL import Image

from retfound_hf import RetFoundImageProcessor


def coordinates(width: int, height: int, disc: tuple[float, float, float] | None = None) -> Image.Image:
    """Red is x, green is y, blue is lit; black outside `disc` (centre x, y, radius)."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x, y, np.full_like(x, 250)], axis=2).astype(np.uint8)
    if disc is not None:
        pixels[np.hypot(x + 0.5 - disc[0], y + 0.5 - disc[1]) > disc[2]] = 0
    return Image.fromarray(pixels)


CASES = {
    "scan": (coordinates(240, 180), {}),
    "upright": (coordinates(120, 250), {}),
    "field": (coordinates(250, 190, (120, 97, 80)), {}),
    "field cut by the sensor": (coordinates(250, 150, (130, 75, 100)), {}),
    "large input": (coordinates(240, 180), {"image_size": 384}),
    "odd margin": (
        coordinates(200, 200),
        {"size": {"height": 61, "width": 58}, "crop_size": {"height": 48, "width": 45}},
    ),
    "shortest edge": (
        coordinates(240, 150),
        {"size": {"shortest_edge": 70}, "crop_size": {"height": 64, "width": 64}},
    ),
    "padded": (coordinates(240, 150), {"size": {"height": 40, "width": 51}, "crop_size": {"height": 48, "width": 64}}),
    "no crop": (coordinates(240, 150), {"do_center_crop": False}),
    "no resize": (coordinates(240, 250), {"do_resize": False}),
}


@pytest.mark.parametrize("name", CASES)
def test_the_window_is_where_the_input_comes_from(name):
    image, options = CASES[name]
    size = options.get("image_size", 224)
    options = {key: value for key, value in options.items() if key != "image_size"}
    # Colours as they are: no rescaling, no standardisation.
    stored = RetFoundImageProcessor.for_image_size(size, do_rescale=False, do_normalize=False).to_dict()
    processor = RetFoundImageProcessor(**{**stored, **options})
    seen = processor(image, return_tensors="np")["pixel_values"][0]
    window = processor.input_window(image)
    height, width = seen.shape[1:]
    x = window.left + (np.arange(width) + 0.5) * (window.right - window.left) / width - 0.5
    y = window.top + (np.arange(height) + 0.5) * (window.bottom - window.top) / height - 0.5
    middle = slice(height // 3, 2 * height // 3), slice(width // 3, 2 * width // 3)  # lit, and off the edges
    assert seen[2][middle].min() > 240
    assert np.abs(seen[0][middle] - x[middle[1]]).max() < 0.75
    assert np.abs(seen[1][middle] - y[middle[0], None]).max() < 0.75
    # The way back: the input laid on the image shows every pixel's own coordinate.
    back_x, back_y = (window.place(seen[channel], image.size) for channel in (0, 1))
    left, right = round(x[middle[1]][0]) + 1, round(x[middle[1]][-1]) - 1
    top, bottom = round(y[middle[0]][0]) + 1, round(y[middle[0]][-1]) - 1
    assert right - left > 10 and bottom - top > 10
    assert np.abs(back_x[top:bottom, left:right] - np.arange(left, right)).max() < 1
    assert np.abs(back_y[top:bottom, left:right] - np.arange(top, bottom)[:, None]).max() < 1
