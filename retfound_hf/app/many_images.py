"""The tab for many images: a zip or several files in, predictions.csv out."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..images.quality import assess_quality
from ..images.reading import IMAGE_SUFFIXES, UnreadableImageError, read_image
from ..inference.report import predictions_table
from ..runs.errors import RetFoundError
from .archives import Archive, ArchiveLimits, is_archive
from .limits import Limits
from .markup import message, own_html, render
from .reader import Reader
from .uploads import Upload, drop_zone

CHUNK = 4  # images from one sign of progress to the next, and what a single image may have to wait for
TITLES = (
    ("could not be read", "reject"),
    ("are not fit to be judged", "reject"),
    ("are of doubtful quality", "doubtful"),
    ("share their name with another", "doubtful"),
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

    def run(uploads: list[Upload], of_folder: list[Upload]) -> Iterator[tuple[str, Any, Any]]:
        for html in classify_all(reader, uploads + images_among(of_folder), limits):
            yield html, None, None

    # One batch at a time: a second one waits, while single images go on.
    start.click(
        run, [zone, folder], [result, zone, folder], concurrency_limit=1, show_progress="hidden",
        api_name="classify_all",
    )  # fmt: skip


def images_among(uploads: Sequence[Upload]) -> list[Upload]:
    """What of a folder is an image by its name, in order; the rest (notes, files of the system) is removed."""
    images = []
    for upload in uploads:
        if upload.name.lower().endswith(IMAGE_SUFFIXES):
            images.append(upload)
        else:
            upload.discard()
    return sorted(images, key=lambda upload: upload.name)


def classify_all(reader: Reader, uploads: Sequence[Upload], limits: Limits) -> Iterator[str]:
    """HTML after every few images, at the end with the table; every upload is removed, whatever happens."""
    if not uploads:
        yield message("choose a zip or some images first")
        return
    try:
        total = 0
        for upload in uploads:
            total += _count(upload, limits)
        if total > limits.images:
            raise RetFoundError(f"{total:,} images; at most {limits.images:,} are accepted at once")
        yield from _classify(reader, uploads, total, limits)
    except RetFoundError as error:
        yield message(error)
    finally:
        for upload in uploads:
            upload.discard()


def _classify(reader: Reader, uploads: Sequence[Upload], total: int, limits: Limits) -> Iterator[str]:
    ids: list[str] = []
    scores: list[np.ndarray] = []
    faults: dict[str, list[tuple[str, str]]] = {title: [] for title, _ in TITLES}
    unreadable, unfit, doubtful, renamed = faults.values()
    yield render("batch", done=0, total=total, table=None)
    contents, done = _told_apart(_contents(uploads, limits), renamed), 0
    while chunk := list(islice(contents, CHUNK)):
        images: list[Image.Image] = []
        for name, content in chunk:
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
    table = _table(reader, ids, scores)
    lists = [(title, verdict, faults[title]) for title, verdict in TITLES]
    yield render("batch", done=done, total=total, table=table, rows=len(ids), lists=lists)


def _table(reader: Reader, ids: list[str], scores: list[np.ndarray]) -> str:
    """`predictions.csv`, as `evaluate` writes it without labels, as an address that holds it."""
    if not ids:
        return ""
    rows = pd.DataFrame({"id": ids})
    table = predictions_table(rows, None, np.concatenate(scores), reader.problem_type, reader.class_names)
    content = table.to_csv(index=False, float_format="%.6g").encode()
    return f"data:text/csv;charset=utf-8;base64,{base64.b64encode(content).decode()}"


def _count(upload: Upload, limits: Limits) -> int:
    if not is_archive(upload.name):
        return 1
    with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
        return len(archive)


def _contents(uploads: Sequence[Upload], limits: Limits) -> Iterator[tuple[str, bytes]]:
    """Name and content of every image; an upload is removed as soon as it is read."""
    for upload in uploads:
        if is_archive(upload.name):
            with open(upload.path, "rb") as file, closing(Archive(file, _of_archives(limits))) as archive:
                yield from archive
            upload.discard()
        else:
            yield upload.name, upload.take()


def _told_apart(contents: Iterator[tuple[str, bytes]], renamed: list[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """The same with names that are unique, lest rows of the table share an id; browsers send files without folders."""
    given: set[str] = set()
    for name, content in contents:
        unique, count = name, 1
        while unique in given:
            count += 1
            unique = f"{name} ({count})"
        if unique != name:
            renamed.append((unique, f"an image before it is called {name} too; a zip keeps the folders"))
        given.add(unique)
        yield unique, content


def _of_archives(limits: Limits) -> ArchiveLimits:
    return ArchiveLimits(images=limits.images, bytes_each=limits.upload_bytes)
