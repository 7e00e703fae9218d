"""The page: tabs for one image, many images and reconstructions."""

import base64
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import gradio
import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import RetFoundError, UnreadableImageError
from ..evaluation.predictions import Predictions
from ..files import without_formulas
from ..images.field_of_view import ImageRegion
from ..images.quality import assess_quality
from ..images.reading import read_image
from ..processes import release_memory
from ..vocabulary import MODALITIES, PROBLEM_TYPES
from .markup import data_uri, describe, draw_examples, intended_use, message, reduced, render
from .predictor import Reader, Reconstructor
from .uploads import Batch, Limits, Upload, claimed, drop_zone, session_state
from .words import ENGLISH, LANGUAGES, Words, translations, words_for

SWEPT_EVERY, SWEPT_AFTER = 60, 600  # seconds; uploads for which no answer was asked
CHUNK = 4  # images from one sign of progress to the next, and what a single image may have to wait for
LINE = 16  # batches that may run or wait; single images need the rest of gradio's forty threads
LOOKS_EVERY = 0.5  # seconds, in a batch that waits
OPACITY = 80
THUMBNAIL_SIDE, RECONSTRUCTION_SIDE = 192, 448  # pixels
ONE, MANY, PAINTED = "One image", "Many images", "Reconstruction"
FORMATS = "Image: JPEG, PNG, TIFF or DICOM"
ZIP, FOLDER, CLASSIFY = "A zip, or several images", "Or a folder", "Classify all"
RELEVANCE, USE = "Relevance for", "Intended use, from the model's card"
SHARE, SEED = "Share of hidden patches", "Seed for the choice of hidden patches"
NO_PICTURE = "The image will appear here, with a map of what the model looked at."
NO_ANSWER = "The answer will appear here."
NO_TABLE = "A table with one row per image will appear here."
NO_RECONSTRUCTION = "Parts of the image are hidden, and the model fills them in."
RECONSTRUCTED = {
    "masked": "What the model saw; the rest was hidden",
    "reconstructed": "How it filled in the hidden parts",
    "error": "Its error, from dark (small) to bright (large); white was not hidden",
}
# Problems of a batch: title, and the verdict that gives the colour.
PROBLEMS = {
    "unreadable": ("could not be read", "reject"),
    "reject": ("not fit to be judged", "reject"),
    "doubtful": ("of doubtful quality", "doubtful"),
    "renamed": ("renamed, since another image has the same name", "doubtful"),
    "passed over": ("passed over, since they are not images", "doubtful"),
}
PICK = """
element.addEventListener("click", event => {
  const button = event.target.closest("button");
  if (button) trigger('pick', {index: Number(button.dataset.index)});
});
"""


# Parts of the page that hold words, each with its update for a language.
Still = list[tuple[Any, Callable[[Words], Any]]]


@dataclass(frozen=True)
class Seen:
    """A session's last image, kept in memory so that maps for other classes can be made."""

    photo: str  # the image as it is shown, within an address
    size: tuple[int, int]  # its width and height
    window: ImageRegion  # of the network's input on it
    pixel_values: Tensor  # (1, 3, height, width), that input


def build_page(reader: Reader | None, reconstructor: Reconstructor | None, limits: Limits) -> gradio.Blocks:
    """The page, which keeps nothing of a visitor outside the session.

    Args:
        reader: model of the tabs for one and for many images; None leaves them out.
        reconstructor: model of the tab for reconstructions; None leaves it out.
        limits: for uploads.
    """
    name = (reader or reconstructor).name_or_path
    title = Path(name).resolve().name if Path(name).is_dir() else name

    def header(words: Words) -> str:
        return render("header", words, title=title, description=_description(reader, words))

    with gradio.Blocks(title=f"RETFound: {title}") as page:
        still = [_html(header)]  # what is there before anything is asked
        with gradio.Tabs():
            if reader is not None:
                with gradio.Tab(ONE) as tab:
                    still += [_labelled(tab, ONE), *one_image_tab(reader, limits)]
                with gradio.Tab(MANY) as tab:
                    still += [_labelled(tab, MANY), *many_images_tab(reader, limits)]
            if reconstructor is not None:
                with gradio.Tab(PAINTED) as tab:
                    still += [_labelled(tab, PAINTED), *reconstruction_tab(reconstructor, limits)]

        def translate(request: gradio.Request) -> list[Any]:
            words = words_for(request.headers)
            return [gradio.skip() if words == ENGLISH else make(words) for _, make in still]

        shown = [component for component, _ in still]
        page.load(translate, None, shown, show_progress="hidden", api_visibility="private")
    return page


def _description(reader: Reader | None, words: Words) -> str:
    if reader is None:
        return words("Masked autoencoder of retinal images")
    images = MODALITIES[reader.modality].title if reader.modality in MODALITIES else "retinal images"
    names = ", ".join(reader.class_names[:8]) + (" …" if len(reader.class_names) > 8 else "")
    kind = words(PROBLEM_TYPES[reader.problem_type].title)
    return words("Predicts {kind} from {images}: {names}", kind=kind, images=words(images), names=names)


def _html(make: Callable[[Words], str], **options: Any) -> tuple[gradio.HTML, Callable[[Words], Any]]:
    """A gradio `HTML` with what `make` gives in English, and its update for another language."""
    return gradio.HTML(make(ENGLISH), apply_default_css=False, **options), make


def _waiting(sentence: str, elem_id: str) -> tuple[gradio.HTML, Callable[[Words], Any]]:
    return _html(lambda words: render("waiting", words, text=words(sentence)), elem_id=elem_id)


def labels() -> gradio.I18n:
    """The table of sentences for `in_browser`."""
    return gradio.I18n(**{language: translations(language) for language in LANGUAGES})


def in_browser(sentence: str) -> Any:
    """A label that the browser translates: gradio makes a component anew that is updated, without its own methods."""
    return gradio.I18n()(sentence)


def _labelled(component: Any, sentence: str, name: str = "label") -> tuple[Any, Callable[[Words], Any]]:
    """The component, and its update that translates the sentence on it."""
    return component, lambda words: gradio.update(**{name: words(sentence)})


def _columns(**options: Any) -> tuple[gradio.Column, gradio.Column]:
    """Two columns of a new row; on a phone they lie below each other."""
    with gradio.Row(equal_height=False, **options):
        return gradio.Column(scale=6, min_width=320), gradio.Column(scale=5, min_width=320)


def one_image_tab(reader: Reader, limits: Limits) -> Still:
    """Build the tab within the current gradio page; returns what stands on it in words, with its translations."""
    seen, examples = session_state(), list(draw_examples(reader.modality).items())
    left, right = _columns()
    with left:
        zone = drop_zone(label=in_browser(FORMATS), height=140, elem_id="rf-zone")
    with right:
        thumbnails = [(name, data_uri(reduced(image, THUMBNAIL_SIDE))) for name, image in examples]
        offered, offer = _html(
            lambda words: render("examples", words, examples=thumbnails), js_on_load=PICK, elem_id="rf-offered"
        )
    left, right = _columns(elem_classes="rf-results")
    with left:
        picture, empty_picture = _waiting(NO_PICTURE, "rf-picture")
    with right:
        answer, empty_answer = _waiting(NO_ANSWER, "rf-answer")
        choice = gradio.Dropdown(
            list(reader.class_names), label=RELEVANCE, visible=False, filterable=False, elem_id="rf-choice"
        )
    with gradio.Accordion(USE, open=True) as use:
        gradio.Markdown(intended_use(reader.name_or_path), elem_id="rf-use")

    def show(image: Image.Image, name: str, words: Words) -> tuple[Any, ...]:
        html, kept, target = look(reader, image, name, words)
        facts = {"photo": kept.photo, "heat": "", "target": "", "opacity": OPACITY}
        waiting = render("picture", words, **facts, note=words("The relevance map follows …"))
        return html, waiting, kept, gradio.Dropdown(value=target, visible=True), None

    def from_upload(uploads: list[Upload], request: gradio.Request) -> tuple[Any, ...]:
        words = words_for(request.headers)
        if not uploads:
            return (gradio.skip(),) * 5
        try:
            return show(read_image(uploads[0].take(), max_pixels=limits.pixels), uploads[0].name, words)
        except RetFoundError as error:
            release_memory()
            html, waiting = message(error, uploads[0].name), empty_picture(words)
            return html, waiting, None, gradio.Dropdown(visible=False), None

    def from_example(event: gradio.EventData, request: gradio.Request) -> tuple[Any, ...]:
        name, image = examples[int(event.index) % len(examples)]
        return show(image, name, words_for(request.headers))

    def explain(kept: Seen | None, target: str | None, request: gradio.Request) -> str:
        if kept is None or target is None:
            return gradio.skip()
        return explained(reader, kept, target, words_for(request.headers))

    shown = [answer, picture, seen, choice, zone]
    asked = {"concurrency_limit": 4, "concurrency_id": "answer", "show_progress": "minimal",
             "show_progress_on": answer}  # fmt: skip
    mapped = {"concurrency_limit": 2, "concurrency_id": "explain", "show_progress": "hidden"}
    answered = zone.upload(from_upload, zone, shown, api_name="answer", **asked)
    picked = offered.pick(from_example, None, shown, api_visibility="private", **asked)
    answered.success(explain, [seen, choice], picture, api_name="explain", **mapped)
    picked.success(explain, [seen, choice], picture, api_visibility="private", **mapped)
    choice.input(explain, [seen, choice], picture, api_visibility="private", **mapped)
    still = [(offered, offer), (picture, empty_picture), (answer, empty_answer)]
    return [*still, _labelled(choice, RELEVANCE), _labelled(use, USE)]


def look(reader: Reader, image: Image.Image, name: str, words: Words = ENGLISH) -> tuple[str, Seen, str]:
    """The answer as HTML, what is kept for maps, and the class of the first map."""
    answer, small = reader.answer(image), reduced(image)
    release_memory()
    kept = Seen(data_uri(small), small.size, reader.input_window(image, small.size), answer.pixel_values)
    return describe(reader, answer, name, image.size, words), kept, reader.class_names[int(answer.scores.argmax())]


def explained(reader: Reader, kept: Seen, target: str, words: Words = ENGLISH) -> str:
    """The picture with its relevance map, or with the reason why there is none, as HTML."""
    facts = {"photo": kept.photo, "target": target, "opacity": OPACITY}
    try:
        layer, top = reader.relevance_layer(kept.pixel_values, kept.window, target, kept.size)
    except RetFoundError as error:
        return render("picture", words, **facts, heat="", note=words("No relevance map: {reason}", reason=error))
    return render("picture", words, **facts, heat=data_uri(layer, "PNG"), top=top)


class Turns:
    """Line of at most `most` batches: the first runs, the others wait. Threads may share it.

    gradio's queue has no limit per event, and would leave the uploads of a waiting batch to its own sweep.
    """

    def __init__(self, most: int):
        self.most = most
        self._line: list[object] = []

    @contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """A place at the end of the line, as a function that counts the batches before it.

        Raises:
            RetFoundError: the line is full.
        """
        if len(self._line) >= self.most:
            raise RetFoundError(f"{self.most} batches are running or waiting already; try again later")
        own = object()
        self._line.append(own)
        try:
            yield lambda: self._line.index(own)
        finally:
            self._line.remove(own)


def many_images_tab(reader: Reader, limits: Limits) -> Still:
    """Build the tab within the current gradio page; returns as `one_image_tab`."""
    left, right = _columns()
    with left:
        zone = drop_zone(label=in_browser(ZIP), file_count="multiple", height=150, elem_id="rf-batch-zone")
    with right:
        # Browsers let a control ask either for files or for a folder.
        folder = drop_zone(label=in_browser(FOLDER), file_count="directory", height=150, elem_id="rf-batch-folder")
    start = gradio.Button(CLASSIFY, variant="primary", elem_id="rf-batch-start")
    result, empty = _waiting(NO_TABLE, "rf-batch")
    turns = Turns(LINE)

    def run(files: list[Upload], in_folder: list[Upload], request: gradio.Request) -> Iterator[tuple[str, Any, Any]]:
        for html in run_batch(turns, reader, files, in_folder, limits, words_for(request.headers)):
            yield html, None, None

    start.click(
        run, [zone, folder], [result, zone, folder], concurrency_limit=None, show_progress="hidden",
        api_name="classify_all",
    )  # fmt: skip
    return [(result, empty), _labelled(start, CLASSIFY, "value")]


def run_batch(
    turns: Turns, reader: Reader, files: Sequence[Upload], folder: Sequence[Upload], limits: Limits,
    words: Words = ENGLISH,
) -> Iterator[str]:  # fmt: skip
    """HTML of a batch as it waits, advances and ends, or is refused; its uploads are removed, whatever happens.

    Args:
        turns: line in which the batch waits.
        reader: the model.
        files: images and zips.
        folder: files of a folder, of which some may not be images.
        limits: for the images.
        words: of the visitor's language.
    """
    try:
        with claimed([*files, *folder]) as own, turns.place() as batches_before:
            while before := batches_before():
                sentence = "Waiting for 1 earlier batch." if before == 1 else "Waiting for {before} earlier batches."
                yield render("waiting", words, text=words(sentence, before=before))
                time.sleep(LOOKS_EVERY)
            yield from classify(reader, Batch(own[: len(files)], own[len(files) :], limits), limits, words)
    except RetFoundError as error:
        yield message(error)


def classify(reader: Reader, batch: Batch, limits: Limits, words: Words = ENGLISH) -> Iterator[str]:
    """HTML after every few images, at the end with `predictions.csv` and a list of problems."""
    ids: list[str] = []
    scores: list[np.ndarray] = []
    problems: dict[str, list[tuple[str, str]]] = {kind: [] for kind in PROBLEMS}
    contents, total, done = iter(batch), len(batch), 0
    yield render("batch", words, done=0, total=total, table=None)
    while chunk := list(islice(contents, CHUNK)):
        images: list[Image.Image] = []
        for name, content in chunk:
            try:
                if isinstance(content, OSError):
                    raise content
                images.append(read_image(content, max_pixels=limits.pixels))
            except UnreadableImageError as error:
                problems["unreadable"].append((name, error.reason))
            except OSError as error:
                gone = "it is gone from the server, or not readable there ({reason}); send it again"
                problems["unreadable"].append((name, words(gone, reason=error.strerror)))
            else:
                ids.append(name)
                quality = assess_quality(images[-1], reader.modality)
                if quality.verdict in problems:
                    reasons = [words(sentence, **quality.measures) for sentence in quality.sentences]
                    problems[quality.verdict].append((name, "; ".join(reasons)))
        if images:
            scores.append(reader.scores(images)[0])
            images.clear()
            release_memory()
        done += len(chunk)
        if done < total:
            yield render("batch", words, done=done, total=total, table=None)
    problems["renamed"] = batch.renamed
    unknown = words("neither the name of an image nor DICOM inside")
    problems["passed over"] = [(name, unknown) for name in batch.passed_over]
    lists = [(*PROBLEMS[kind], entries) for kind, entries in problems.items()]
    table = _table(reader, ids, scores)
    yield render("batch", words, done=done, total=total, table=table, rows=len(ids), lists=lists)


def _table(reader: Reader, ids: list[str], scores: list[np.ndarray]) -> str:
    """`predictions.csv` without labels, within an address; empty without images."""
    if not ids:
        return ""
    found = Predictions(ids, np.concatenate(scores), None, reader.class_names, reader.problem_type)
    content = without_formulas(found.table()).to_csv(index=False, float_format="%.6g").encode()
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"


def reconstruction_tab(reconstructor: Reconstructor, limits: Limits) -> Still:
    """Build the tab within the current gradio page; returns as `one_image_tab`."""
    kept = session_state()
    left, right = _columns()
    with left:
        zone = drop_zone(label=in_browser(FORMATS), height=140, elem_id="rf-paint-zone")
    with right:
        ratio = gradio.Slider(0.1, 0.95, reconstructor.mask_ratio, step=0.05, label=SHARE)
        seed = gradio.Number(0, label=SEED, precision=0)
    result, empty = _waiting(NO_RECONSTRUCTION, "rf-painted")

    def receive(uploads: list[Upload], share: float, number: float, request: gradio.Request) -> tuple[Any, ...]:
        if not uploads:
            return gradio.skip(), gradio.skip(), None
        try:
            pixel_values = reconstructor.network_input(read_image(uploads[0].take(), max_pixels=limits.pixels))
        except RetFoundError as error:
            return message(error, uploads[0].name), None, None
        finally:
            release_memory()
        return show(pixel_values, share, number, request), pixel_values, None

    def show(pixel_values: Tensor | None, share: float, number: float, request: gradio.Request) -> str:
        if pixel_values is None:
            return gradio.skip()
        return reconstructed(reconstructor, pixel_values, share, int(number or 0), words_for(request.headers))

    options = {"concurrency_limit": 2, "concurrency_id": "reconstruct", "show_progress": "minimal"}
    zone.upload(receive, [zone, ratio, seed], [result, kept, zone], show_progress_on=result, **options)
    ratio.release(show, [kept, ratio, seed], result, **options)
    seed.change(show, [kept, ratio, seed], result, **options)
    return [(result, empty), _labelled(ratio, SHARE), _labelled(seed, SEED)]


def reconstructed(
    reconstructor: Reconstructor, pixel_values: Tensor, mask_ratio: float, seed: int, words: Words = ENGLISH
) -> str:
    """Three pictures side by side, as HTML; arguments as for `Reconstructor.pictures`."""
    pictures, loss = reconstructor.pictures(pixel_values, mask_ratio, seed)
    shown = []
    for name, title in RECONSTRUCTED.items():
        side = max(1, RECONSTRUCTION_SIDE // pictures[name].width) * pictures[name].width
        shown.append((words(title), data_uri(pictures[name].resize((side, side), Image.Resampling.NEAREST))))
    return render("reconstruction", words, pictures=shown, share=mask_ratio, loss=loss)
