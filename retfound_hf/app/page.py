"""The page: tabs for one image, many images and reconstructions."""

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2.functional import to_pil_image

from ..errors import RetFoundError, join_names
from ..evaluation.predictions import Predictions
from ..explanation.reconstruction import COLUMNS, paint, sheet_row
from ..explanation.relevance import relevance
from ..images.drawing import colour_layer, heat_on_image
from ..images.geometry import ImageRegion
from ..images.quality import assess_quality
from ..images.reading import UnreadableImageError, read_image
from ..inference.predict import process_state
from ..models.loading import load_autoencoder, load_processor
from .markup import (
    Example,
    Photo,
    data_uri,
    describe,
    draw_examples,
    intended_use,
    message,
    own_html,
    photo_of,
    render,
)
from .predictor import Reader
from .uploads import ACCEPTED, Limits, Upload, claimed, contents, count, drop_zone, images_among, unique_names

KEPT_SECONDS = 900


def remembered() -> Any:
    """A gradio `State` whose value is forgotten `KEPT_SECONDS` after it was set."""
    import gradio

    return gradio.State(None, time_to_live=KEPT_SECONDS)


def forget_sessions() -> None:
    """Let gradio's sessions keep nothing but such states, and these no longer once their page is closed.

    Gradio gives the states of a closed page an hour, and remembers every value shown (the photograph and the table
    among them) for its deep links, of which this page has none, until ten thousand sessions have come after.
    """
    from gradio import state_holder

    shared = state_holder.SessionState
    if shared.__name__ == "ForgetfulSession":
        return

    class ForgetfulSession(shared):
        def __init__(self, *args: Any, **kwargs: Any):
            super().__init__(*args, **kwargs)
            self.STATE_TTL_WHEN_CLOSED = KEPT_SECONDS

        def _update_value_in_config(self, key: int, value: Any) -> None:
            pass

    state_holder.SessionState = ForgetfulSession


class Turns:
    """A line in which the first runs and the others wait; several threads may join it at the same time.

    Args:
        most: places in the line, of which each holds a thread of the server and uploads on its disk.
    """

    def __init__(self, most: int):
        self.most = most
        self._line: list[object] = []

    @contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """A place at the end of the line; gives a function that counts who is before it, 0 when its turn has come.

        Raises:
            RetFoundError: the line is full.
        """
        if len(self._line) >= self.most:
            raise RetFoundError(f"{self.most} batches are running or waiting, as many as may; try again later")
        own = object()
        self._line.append(own)
        try:
            yield lambda: self._line.index(own)
        finally:
            self._line.remove(own)


def input_window(reader: Reader, image: Image.Image, size: tuple[int, int]) -> ImageRegion:
    """Where the network's input lies on an image that is shown at `size`."""
    window = reader.processor.input_window(image, reader.processor.crop_box(image))
    return window.scaled(size[0] / image.width, size[1] / image.height)


def relevance_layer(
    reader: Reader, pixel_values: Tensor, window: ImageRegion, target: str, size: tuple[int, int]
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
    window: ImageRegion
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


CHUNK = 4  # images from one sign of progress to the next, and what a single image may have to wait for
LINE = 16  # batches that may run or wait; single images need the rest of gradio's forty threads
LOOKS_EVERY = 0.5  # seconds, in a batch that waits
TITLES = (
    ("could not be read", "reject"),
    ("are not fit to be judged", "reject"),
    ("are of doubtful quality", "doubtful"),
    ("share their name with another", "doubtful"),
    ("were passed over", "doubtful"),
)


def many_images_tab(reader: Reader, limits: Limits) -> None:
    """Build the tab within the current gradio page."""
    import gradio

    with gradio.Row(equal_height=False):
        with gradio.Column(scale=6, min_width=320):
            zone = drop_zone(
                label="A zip, or several images", file_count="multiple", height=150, elem_id="rf-batch-zone"
            )
        with gradio.Column(scale=5, min_width=320):
            # Browsers let a control ask either for files or for a folder.
            folder = drop_zone(label="Or a folder", file_count="directory", height=150, elem_id="rf-batch-folder")
    start = gradio.Button("Classify all", variant="primary", elem_id="rf-batch-start")
    result = own_html(
        render("waiting", text="A table with one row per image will be here to download."), elem_id="rf-batch"
    )

    turns = Turns(LINE)

    def run(uploads: list[Upload], of_folder: list[Upload]) -> Iterator[tuple[str, Any, Any]]:
        for html in in_turn(turns, reader, uploads, of_folder, limits):
            yield html, None, None

    # Batches wait for each other in here and not in gradio's queue, where nobody would look after their uploads.
    start.click(
        run, [zone, folder], [result, zone, folder], concurrency_limit=None, show_progress="hidden",
        api_name="classify_all",
    )  # fmt: skip


def in_turn(
    turns: Turns, reader: Reader, uploads: Sequence[Upload], of_folder: Sequence[Upload], limits: Limits
) -> Iterator[str]:
    """`classify_all` for files and what of a folder is an image, after the batches that came before."""
    try:
        with claimed(uploads) as files, claimed(of_folder) as folder, turns.place() as batches_before:
            while before := batches_before():
                yield render("waiting", text=f"Waiting for {before} batch{'es' if before > 1 else ''} sent before.")
                time.sleep(LOOKS_EVERY)
            images, passed_over = images_among(folder)
            yield from classify_all(reader, files + images, limits, passed_over)
    except RetFoundError as error:
        yield message(error)


def classify_all(
    reader: Reader, uploads: Sequence[Upload], limits: Limits, passed_over: Sequence[str] = ()
) -> Iterator[str]:
    """HTML after every few images, at the end with the table; every upload is removed, whatever happens.

    Args:
        passed_over: names of what came along and is no image.
    """
    if not uploads:
        none = f"none of the {len(passed_over):,} files is an image; accepted: {ACCEPTED}"
        said = (
            f"{none}; passed over: {join_names(passed_over)}" if passed_over else "choose a zip or some images first"
        )
        yield message(said)
        return
    try:
        total = sum(count(upload, limits) for upload in uploads)
        if total > limits.images:
            raise RetFoundError(f"{total:,} images; at most {limits.images:,} are accepted at once")
        yield from _classify(reader, uploads, total, limits, list(passed_over))
    except RetFoundError as error:
        yield message(error)
    finally:
        for upload in uploads:
            upload.discard()


def _classify(
    reader: Reader, uploads: Sequence[Upload], total: int, limits: Limits, passed_over: list[str]
) -> Iterator[str]:
    ids: list[str] = []
    scores: list[np.ndarray] = []
    faults: dict[str, list[tuple[str, str]]] = {title: [] for title, _ in TITLES}
    unreadable, unfit, doubtful, renamed, rest = faults.values()
    yield render("batch", done=0, total=total, table=None)
    found, done = unique_names(contents(uploads, limits, passed_over), renamed), 0
    while chunk := list(islice(found, CHUNK)):
        images: list[Image.Image] = []
        for name, content in chunk:
            if isinstance(content, OSError):
                unreadable.append((name, _why_gone(content)))
                continue
            try:
                image = read_image(content, max_pixels=limits.pixels)
            except UnreadableImageError as error:
                unreadable.append((name, str(error).removeprefix("cannot read the image: ")))
                continue
            ids.append(name)
            images.append(image)
            quality = assess_quality(image, reader.modality)
            if quality.verdict != "ok":
                (unfit if quality.verdict == "reject" else doubtful).append((name, "; ".join(quality.reasons)))
        if images:
            scores.append(reader.scores(images))
        done += len(chunk)
        if done < total:
            yield render("batch", done=done, total=total, table=None)
    rest += [(name, "no image by its name, nor DICOM by its content") for name in passed_over]
    table = _table(reader, ids, scores)
    lists = [(title, verdict, faults[title]) for title, verdict in TITLES]
    yield render("batch", done=done, total=total, table=table, rows=len(ids), lists=lists)


def _why_gone(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "it lay here for too long before the batch was started, and was removed; send it again"
    return f"the server's disk does not give it ({error.strerror or error})"


def _table(reader: Reader, ids: list[str], scores: list[np.ndarray]) -> str:
    """`predictions.csv`, as `evaluate` writes it without labels, as an address that holds it."""
    if not ids:
        return ""
    found = Predictions(ids, np.concatenate(scores), None, reader.class_names, reader.problem_type)
    content = found.table().to_csv(index=False, float_format="%.6g").encode()
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"


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


STYLE = Path(__file__).with_name("style.css")
SWEPT_EVERY, SWEPT_AFTER = 60, 600  # seconds; of uploads for which no answer was ever asked
KINDS = {
    "single_label_classification": "Classifier",
    "multi_label_classification": "Classifier of findings that may occur together",
    "regression": "Regression",
}
SEES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans", None: "retinal images"}


def build_page(reader: Reader | None, painter: Painter | None, limits: Limits) -> Any:
    """The page as gradio `Blocks`; it holds nothing of a visitor beside his session."""
    import gradio

    title = _title((reader or painter).name_or_path)
    with gradio.Blocks(title=f"RETFound: {title}", delete_cache=(SWEPT_EVERY, SWEPT_AFTER)) as page:
        own_html(render("header", title=title, description=_description(reader)))
        with gradio.Tabs():
            if reader is not None:
                with gradio.Tab("One image"):
                    one_image_tab(reader, limits, draw_examples(reader.modality), intended_use(reader.name_or_path))
                with gradio.Tab("Many images"):
                    many_images_tab(reader, limits)
            if painter is not None:
                with gradio.Tab("Reconstruction"):
                    reconstruction_tab(painter, limits)
    return page


def _title(name_or_path: str) -> str:
    """The folder's own name, or the whole id on the Hub."""
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else name_or_path


def _description(reader: Reader | None) -> str:
    if reader is None:
        return "Masked autoencoder of retinal images"
    names = ", ".join(reader.class_names[:8]) + (" …" if len(reader.class_names) > 8 else "")
    return f"{KINDS[reader.problem_type]} of {SEES[reader.modality]}: {names}"
