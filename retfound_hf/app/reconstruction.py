"""The tab that shows what a masked autoencoder paints where an image is hidden."""

from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ..explain.painting import COLUMNS, paint, sheet_row
from ..images.reading import read_image
from ..inference.loading import load_autoencoder, load_processor
from ..inference.processes import process_state
from ..runs.errors import RetFoundError
from .limits import Limits
from .markup import message, own_html, render
from .pictures import data_uri
from .sessions import remembered
from .uploads import Upload, drop_zone

SHOWN = 448  # pixels, whatever the network's input is
WORDS = {
    "masked": "What the model saw: the rest was hidden",
    "reconstructed": "What it painted into the hidden part",
    "error": "Where it erred, from dark (little) to bright; white was not hidden",
}


class Painter:
    """Holds a masked autoencoder and nothing of any image.

    Raises:
        RetFoundError: a folder without a decoder.
    """

    def __init__(self, name_or_path: str):
        self.name_or_path = name_or_path
        self.model = load_autoencoder(name_or_path).to(process_state().device)
        self.processor = load_processor(name_or_path)
        self.mask_ratio: float = self.model.config.mask_ratio

    def prepared(self, image: Image.Image) -> Tensor:
        """The network's input (1, 3, height, width)."""
        return self.processor(image, return_tensors="pt")["pixel_values"]

    def paint(self, pixel_values: Tensor, mask_ratio: float, seed: int) -> tuple[list[Image.Image], float]:
        """The pictures named in `COLUMNS`, and the mean error of the hidden patches as the loss counts it."""
        found = paint(self.model, pixel_values, ["page"], self.processor, mask_ratio, seed)
        hidden = found.mask[0]
        loss = float(found.error[0][hidden].mean()) if hidden.any() else 0.0
        with torch.inference_mode():
            return [to_pil_image(picture.cpu()) for picture in sheet_row(found, 0)], loss


def reconstruction_tab(painter: Painter, limits: Limits) -> None:
    """Build the tab within the current gradio page."""
    import gradio

    kept = remembered()
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=6, min_width=320):
            zone = drop_zone(label="Image: JPEG, PNG, TIFF or DICOM", height=140, elem_id="rf-paint-zone")
        with gradio.Column(scale=5, min_width=320):
            ratio = gradio.Slider(0.1, 0.95, painter.mask_ratio, step=0.05, label="Share that is hidden")
            seed = gradio.Number(0, label="Seed of what is hidden", precision=0)
    painted = own_html(
        render("waiting", text="Parts of the image are hidden, and the model paints what it expects there."),
        elem_id="rf-painted",
    )

    def receive(uploads: list[Upload], share: float, number: float) -> tuple[Any, ...]:
        if not uploads:
            return gradio.skip(), gradio.skip(), None
        try:
            pixel_values = painter.prepared(read_image(uploads[0].take(), max_pixels=limits.pixels))
        except RetFoundError as error:
            return message(error, uploads[0].name), None, None
        return show(pixel_values, share, number), pixel_values, None

    def show(pixel_values: Tensor | None, share: float, number: float) -> str:
        if pixel_values is None:
            return gradio.skip()
        return describe_painting(painter, pixel_values, share, int(number or 0))

    options = {"concurrency_limit": 2, "concurrency_id": "paint", "show_progress": "minimal"}
    zone.upload(receive, [zone, ratio, seed], [painted, kept, zone], show_progress_on=painted, **options)
    ratio.release(show, [kept, ratio, seed], painted, **options)
    seed.change(show, [kept, ratio, seed], painted, **options)


def describe_painting(painter: Painter, pixel_values: Tensor, mask_ratio: float, seed: int) -> str:
    """The three pictures side by side, as HTML."""
    pictures, loss = painter.paint(pixel_values, mask_ratio, seed)
    scale = max(1, SHOWN // pictures[0].width)
    rows = []
    for name, picture in zip(COLUMNS, pictures, strict=True):
        if name in WORDS:
            size = (scale * picture.width, scale * picture.height)
            shown = picture.resize(size, Image.Resampling.NEAREST) if scale > 1 else picture
            rows.append((WORDS[name], data_uri(shown)))
    return render("painting", pictures=rows, share=mask_ratio, loss=loss)
