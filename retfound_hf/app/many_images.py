"""The tab for many images: a zip or several files in, predictions.csv out."""

import base64
import time
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..data.checks import listed
from ..images.quality import assess_quality
from ..images.reading import UnreadableImageError, read_image
from ..inference.report import predictions_table
from ..runs.errors import RetFoundError
from .contents import contents, count, images_among, told_apart
from .kinds import ACCEPTED
from .limits import Limits
from .markup import message, own_html, render
from .reader import Reader
from .turns import Turns
from .uploads import Upload, claimed, drop_zone

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
        said = f"{none}; passed over: {listed(passed_over)}" if passed_over else "choose a zip or some images first"
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
    found, done = told_apart(contents(uploads, limits, passed_over), renamed), 0
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
    rows = pd.DataFrame({"id": ids})
    table = predictions_table(rows, None, np.concatenate(scores), reader.problem_type, reader.class_names)
    content = table.to_csv(index=False, float_format="%.6g").encode()
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"
