"""Where the model looked, as a layer over the image."""

from PIL import Image
from torch import Tensor

from ..explain.pictures import colour_layer, heat_on_image
from ..explain.relevance import relevance
from ..images.window import Window
from .reader import Reader


def input_window(reader: Reader, image: Image.Image, size: tuple[int, int]) -> Window:
    """Where the network's input lies on an image that is shown at `size`."""
    window = reader.processor.input_window(image, reader.processor.crop_box(image))
    return window.scaled(size[0] / image.width, size[1] / image.height)


def relevance_layer(
    reader: Reader, pixel_values: Tensor, window: Window, target: str, size: tuple[int, int]
) -> tuple[Image.Image, float]:
    """A transparent layer of colour that lies on the image shown at `size`, and what its hottest colour stands for.

    The layer shows what lies above the average of the image's patches; the hottest colour is so many times that.

    Args:
        pixel_values: (1, 3, height, width), the network's input made from the image.
        window: its `input_window` at that size.
        target: name of the class that the map speaks of.

    Raises:
        RetFoundError: an architecture of which no map can be made.
    """
    maps = relevance(reader.model, pixel_values, reader.class_names.index(target))
    heat = heat_on_image(maps.patches[0].numpy(), window, size)
    return colour_layer(heat.values, opacity=1.0), heat.top
