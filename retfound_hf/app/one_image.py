"""The tab for one image: upload, answer, and where the model looked."""

from dataclasses import dataclass
from typing import Any

from PIL import Image
from torch import Tensor

from ..images.reading import read_image
from ..images.window import Window
from ..runs.errors import RetFoundError
from .examples import Example
from .limits import Limits
from .markup import describe, message, own_html, render
from .pictures import Photo, data_uri, photo_of
from .reader import Reader
from .relevance import input_window, relevance_layer
from .sessions import remembered
from .uploads import Upload, drop_zone

OPACITY = 80
NO_PICTURE = "The image will be here, with what the model looked at laid over it."
NO_ANSWER = "The answer will be here."
PICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) trigger('pick', {index: Number(button.dataset.index)});
});
"""
# The slider mixes in the browser: the image never travels again, and nothing waits.
SLIDE = """
element.addEventListener("input", event => {
  const layers = event.target.closest(".rf-picture").querySelector(".rf-layers");
  layers.style.setProperty("--opacity", event.target.value / 100);
});
"""


@dataclass(frozen=True)
class Seen:
    """What a session keeps of its last image, in memory, so that maps for other classes can be made.

    Attributes:
        photo: the image as it is shown.
        window: where on the photo the network's input lies.
        pixel_values: (1, 3, height, width), that input.
    """

    photo: Photo
    window: Window
    pixel_values: Tensor


def one_image_tab(reader: Reader, limits: Limits, examples: list[Example], use: str) -> None:
    """Build the tab within the current gradio page; `use` is the card's word on intended use."""
    import gradio

    seen = remembered()
    with gradio.Row(equal_height=False):
        with gradio.Column(scale=6, min_width=320):
            zone = drop_zone(label="Image: JPEG, PNG, TIFF or DICOM", height=140, elem_id="rf-zone")
        with gradio.Column(scale=5, min_width=320):
            thumbnails = [(example.name, data_uri(example.thumbnail)) for example in examples]
            offered = own_html(render("examples", examples=thumbnails), js_on_load=PICK, elem_id="rf-offered")
    with gradio.Row(equal_height=False, elem_classes="rf-results"):
        with gradio.Column(scale=6, min_width=320):
            picture = own_html(render("waiting", text=NO_PICTURE), js_on_load=SLIDE, elem_id="rf-picture")
        with gradio.Column(scale=5, min_width=320):
            answer = own_html(render("waiting", text=NO_ANSWER), elem_id="rf-answer")
            choice = gradio.Dropdown(
                list(reader.class_names), label="Relevance for", visible=False, filterable=False, elem_id="rf-choice"
            )
    with gradio.Accordion("Intended use, from the model's card", open=True):
        gradio.Markdown(use, elem_id="rf-use")

    def show(image: Image.Image, name: str) -> tuple[Any, ...]:
        html, kept, target = look(reader, image, name)
        waiting = render(
            "picture", photo=kept.photo.uri, heat="", target="", opacity=OPACITY, note="Relevance follows …"
        )
        return html, waiting, kept, gradio.Dropdown(value=target, visible=True), None

    def from_upload(uploads: list[Upload]) -> tuple[Any, ...]:
        if not uploads:
            return (gradio.skip(),) * 5
        name = uploads[0].name
        try:
            return show(read_image(uploads[0].take(), max_pixels=limits.pixels), name)
        except RetFoundError as error:
            return message(error, name), render("waiting", text=NO_PICTURE), None, gradio.Dropdown(visible=False), None

    def from_example(event: gradio.EventData) -> tuple[Any, ...]:
        example = examples[int(event.index) % len(examples)]
        return show(example.image, example.name)

    def explain(kept: Seen | None, target: str | None) -> str:
        return gradio.skip() if kept is None or target is None else explained(reader, kept, target)

    shown = [answer, picture, seen, choice, zone]
    asked = {
        "concurrency_limit": 4,
        "concurrency_id": "answer",
        "show_progress": "minimal",
        "show_progress_on": answer,
    }
    mapped = {"concurrency_limit": 2, "concurrency_id": "explain", "show_progress": "hidden"}
    answered = zone.upload(from_upload, zone, shown, api_name="answer", **asked)
    picked = offered.pick(from_example, None, shown, api_visibility="private", **asked)
    answered.success(explain, [seen, choice], picture, api_name="explain", **mapped)
    picked.success(explain, [seen, choice], picture, api_visibility="private", **mapped)
    choice.input(explain, [seen, choice], picture, api_visibility="private", **mapped)


def look(reader: Reader, image: Image.Image, name: str) -> tuple[str, Seen, str]:
    """The answer as HTML, what is kept for maps, and the class that they first speak of."""
    answer = reader.answer(image)
    target = reader.class_names[int(answer.scores.argmax())]
    photo = photo_of(image)
    kept = Seen(photo, input_window(reader, image, photo.size), answer.pixel_values)
    return describe(reader, answer, name, image.size), kept, target


def explained(reader: Reader, kept: Seen, target: str) -> str:
    """The picture with its relevance layer as HTML, or with the reason why there is none."""
    facts = {"photo": kept.photo.uri, "target": target, "opacity": OPACITY}
    try:
        layer, top = relevance_layer(reader, kept.pixel_values, kept.window, target, kept.photo.size)
    except RetFoundError as error:
        return render("picture", **facts, heat="", note=f"No relevance map: {error}")
    return render("picture", **facts, heat=data_uri(layer, "PNG"), top=top)
