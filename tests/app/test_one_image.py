"""An answer and its map, for every kind of model, and where the map lies."""

import asyncio
import base64
import re
from io import BytesIO

import gradio
import numpy as np
import pytest
from PIL import Image

from retfound_hf.app.page import Painter, build_page, explained, input_window, look, relevance_layer
from retfound_hf.app.predictor import Reader
from retfound_hf.app.uploads import Limits
from retfound_hf.explanation.relevance import relevance


def layer_of(html: str) -> Image.Image:
    content = re.search(r'class="rf-heat" src="data:image/png;base64,([^"]+)"', html)[1]
    return Image.open(BytesIO(base64.b64decode(content)))


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_every_kind_of_model_answers_and_is_explained(kind, make_folder, photograph):
    reader = Reader(str(make_folder(problem_type=kind)))
    html, kept, target = look(reader, photograph(1, 480), "eye.png")
    assert (
        "rf-headline" in html and target == reader.class_names[int(reader.answer(photograph(1, 480)).scores.argmax())]
    )
    picture = explained(reader, kept, target)
    assert layer_of(picture).size == kept.photo.size and f"about <strong>{target}</strong>" in picture


def test_the_layer_lies_where_the_network_looked(reader, photograph):
    """The hottest place of the layer is the hottest patch, through crop, resize and the page's own reduction."""
    image = photograph(2, 1200)
    answer = reader.answer(image)
    layer, top = relevance_layer(
        reader, answer.pixel_values, input_window(reader, image, (800, 600)), "glaucoma", (800, 600)
    )
    alpha = np.asarray(layer)[..., 3]
    assert layer.size == (800, 600) and top >= 3
    # Nothing is claimed about the surround, of which the network saw no more than the corners of its square.
    assert alpha[:, :60].max() == alpha[:, -60:].max() == 0
    patches = relevance(reader.model, answer.pixel_values, 2).patches[0].numpy()
    row, column = np.unravel_index(patches.argmax(), patches.shape)
    window = reader.processor.input_window(image, reader.processor.crop_box(image)).scaled(0.5, 0.5)
    heat = window.place((patches == patches.max()).astype(np.float32), (800, 600))
    y, x = np.unravel_index(heat.argmax(), heat.shape)
    assert alpha[y, x] > 200, (row, column)


def test_a_folder_of_pretraining_shows_its_reconstructions_alone(autoencoder_folder):
    async def build():
        return build_page(None, Painter(str(autoencoder_folder)), Limits())

    page = asyncio.run(build())  # without a running loop gradio makes some and leaves them open
    assert [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)] == ["Reconstruction"]


def test_a_model_without_maps_says_so(reader, photograph, monkeypatch):
    from retfound_hf.errors import RetFoundError

    def refuse(*_):
        raise RetFoundError("no attention among all patches")

    monkeypatch.setattr("retfound_hf.app.page.relevance_layer", refuse)
    _, kept, target = look(reader, photograph(0), "eye.png")
    picture = explained(reader, kept, target)
    assert "No relevance map: no attention among all patches" in picture and "rf-heat" not in picture
