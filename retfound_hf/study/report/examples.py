"""Images that the reference model gets right, and wrong, with the highest confidence."""

import io
from pathlib import Path

import numpy as np
import pandas as pd

from ...images.reading import UnreadableImageError, read_image
from ..folder import StudyResults
from .classes import class_titles
from .numbers import number
from .parts import Block, Gallery, Section, Thumbnail
from .systems import System, systems_of

SIDE = 160  # pixels
MOST_CLASSES = 6


def examples(found: StudyResults, figures: Path) -> Section | None:
    """Thumbnails of test images by class; single-label tasks alone, where an answer is right or wrong."""
    count, blocks = found.study.reporting.examples, []
    for data in found.study.data:
        systems = [one for one in systems_of(found, data.name) if one.model == found.study.reporting.reference]
        single = found.task(data.name)["problem_type"] == "single_label_classification"
        if not count or not systems or not single:
            continue
        galleries = list(_galleries(found, systems[0], count))
        if galleries:
            note = f"{systems[0].label}, the training whose result is the median, on test images."
            blocks.append(Block(data.name, galleries=galleries, notes=[note]))
    lead = (
        "What the model is surest of. Look at the wrong ones first: a wrong label, a poor image, or a sign that the "
        "model takes for another all show here."
    )
    if (level := found.study.reporting.level) != "image":
        lead += f" Each image stands for itself here, with its own answer, and not for its {level} as elsewhere."
    return Section("examples", "Right and wrong with the highest confidence", lead, blocks) if blocks else None


def _galleries(found: StudyResults, system: System, count: int):
    predictions = found.predictions(system.job.id, "test")
    paths = found.images(system.data, "test").set_index("id")["image"]
    titles = class_titles(found, system.data)
    predictions["said"] = predictions["prediction"].map(titles)
    confidence = predictions[[f"prob/{name}" for name in titles]].to_numpy(float).max(axis=1)
    right = (predictions["label"] == predictions["prediction"]).to_numpy()
    for name, title in list(titles.items())[:MOST_CLASSES]:
        of_class = (predictions["label"] == name).to_numpy()
        both = []
        for kind, chosen in (("right", of_class & right), ("wrong", of_class & ~right)):
            rows = np.flatnonzero(chosen)
            rows = rows[np.argsort(-confidence[rows], kind="stable")][:count]
            pictures = [_picture(predictions.iloc[row], confidence[row], paths) for row in rows]
            both.append(Gallery(f"{title}, {kind}", [picture for picture in pictures if picture is not None]))
        if any(gallery.pictures for gallery in both):  # side by side, so that one without pictures keeps its place
            yield from both


def _picture(row: pd.Series, confidence: float, paths: pd.Series) -> Thumbnail | None:
    """None where the image is not a file, or not here any more."""
    try:
        image = read_image(paths[row["id"]])
    except (UnreadableImageError, KeyError, OSError):
        return None
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return Thumbnail(file.getvalue(), [f"said {row['said']}", f"confidence {number(confidence, 2)}"])
