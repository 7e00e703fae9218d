"""HTML of the page, from templates that escape what is put into them; theme, pictures and examples."""

import base64
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from gradio.themes import Base, Color, Font
from PIL import Image

from ..errors import UnreadableImageError
from ..evaluation.metrics import THRESHOLD
from ..images.synthetic import CLASSES, draw_patient
from ..images.synthetic import render as draw
from ..vocabulary import MULTI_LABEL, PROBLEM_TYPES, SINGLE_LABEL
from .predictor import Answer, Reader
from .words import ENGLISH, Words

HERE = Path(__file__).parent
TEMPLATES = jinja2.Environment(
    loader=jinja2.FileSystemLoader(HERE / "templates"), undefined=jinja2.StrictUndefined, autoescape=True,
    trim_blocks=True, lstrip_blocks=True,
)  # fmt: skip
NO_CARD = "The model has no card that says what it is intended for."
AIMS = {
    "sensitivity": "for a sensitivity of {target:.0%}",
    "specificity": "for a specificity of {target:.0%}",
    "youden": "for their best sum",
}


def theme() -> Base:
    """A calm theme with fonts of the visitor's machine."""
    ink = Color(
        c50="#eef6f7", c100="#d6e9eb", c200="#aed3d7", c300="#7fb8be", c400="#4b979f", c500="#217780", c600="#0f5f68",
        c700="#0c4d55", c800="#0b3f45", c900="#0a3338", c950="#062125",
    )  # fmt: skip
    fonts = [Font("system-ui"), Font("-apple-system"), Font("Segoe UI"), Font("Roboto"), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("Consolas"), Font("monospace")]
    return Base(primary_hue=ink, neutral_hue="slate", font=fonts, font_mono=mono, radius_size="md")


def render(template: str, words: Words = ENGLISH, **facts: Any) -> str:
    """The template of that name, filled with escaped facts, in the language of `words`.

    Raises:
        jinja2.UndefinedError: a fact that the template needs is missing.
    """
    return TEMPLATES.get_template(f"{template}.html").render(_=words, **facts)


def message(error: Exception, name: str = "") -> str:
    """HTML that says what is wrong, and with which file."""
    text = error.reason if isinstance(error, UnreadableImageError) else str(error)
    return render("message", text=f"{name}: {text}" if name else text[:1].upper() + text[1:])


def intended_use(name_or_path: str) -> str:
    """Section of the model's card on its intended use, as Markdown without the heading."""
    from huggingface_hub import try_to_load_from_cache

    is_folder = Path(name_or_path).is_dir()
    path = Path(name_or_path, "README.md") if is_folder else try_to_load_from_cache(name_or_path, "README.md")
    is_there = isinstance(path, (str, Path)) and Path(path).is_file()
    text = Path(path).read_text(encoding="utf-8", errors="replace") if is_there else ""
    found = re.search(r"^(#{1,4}) [^\n]*intended use[^\n]*\n(.*?)(?=^#{1,4} |\Z)", text, re.M | re.S | re.I)
    return found[2].strip() if found else NO_CARD


def reduced(image: Image.Image, side: int = 1024) -> Image.Image:
    """A copy of which no side is longer than `side` pixels."""
    small = image.copy()
    small.thumbnail((side, side), Image.Resampling.BICUBIC, reducing_gap=3)
    return small


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """The image within an address: `JPEG` for photographs, `PNG` for layers with transparency."""
    file = BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 3}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def draw_examples(modality: str | None) -> dict[str, Image.Image]:
    """Synthetic images by name, one of each condition; of every modality where the model's is unknown."""
    found = {}
    for kind in (kind for kind in CLASSES if modality in (None, kind)):
        eye = draw_patient(np.random.default_rng(7), kind)[0]
        for condition in CLASSES[kind]:
            image = draw(eye, condition, 0.8, 384, np.random.default_rng(7)).image
            found[f"synthetic {kind.upper()}, {condition}"] = Image.fromarray(image)
    return found


def describe(reader: Reader, answer: Answer, name: str, size: tuple[int, int], words: Words = ENGLISH) -> str:
    """Prediction, bars, calibration and quality of one image, as HTML.

    Args:
        reader: the model that answered.
        answer: its answer.
        name: of the image.
        size: its width and height in pixels.
        words: of the visitor's language.
    """
    rows = list(zip(reader.class_names, answer.scores.tolist(), strict=True))
    has_bars = PROBLEM_TYPES[reader.problem_type].is_classification
    if has_bars:
        rows.sort(key=lambda row: -row[1])
    if not has_bars:
        label, headline = words("The model predicts"), ", ".join(f"{name} {value:.4g}" for name, value in rows)
    elif reader.problem_type == MULTI_LABEL:
        present = ", ".join(name for name, value in rows if value >= THRESHOLD)
        nothing = words("Nothing above {threshold:.0%}", threshold=THRESHOLD)
        label, headline = words("Present, says the model"), present or nothing
    else:
        label, headline = words("Most probable, says the model"), rows[0][0]
    return render(
        "answer", words, label=label, headline=headline, rows=rows, has_bars=has_bars,
        calibration=calibration(reader, words), is_single=reader.problem_type == SINGLE_LABEL,
        decisions=decisions(reader, dict(rows), words), quality=answer.quality, name=name, width=size[0],
        height=size[1],
    )  # fmt: skip


def calibration(reader: Reader, words: Words = ENGLISH) -> str:
    """Whether the probabilities can be read as chances."""
    if reader.calibration is None:
        return words("Not calibrated: compare the numbers with each other, but do not read them as chances.")
    if reader.calibration.is_uninformed:
        return words(
            "Not calibrated: on validation data the model was hardly better than guessing, or far too sure of itself."
        )
    fit = reader.calibration.describe(reader.class_names)
    return words("Calibrated on validation data ({fit} of the log odds).", fit=fit)


def decisions(reader: Reader, scores: dict[str, float], words: Words = ENGLISH) -> dict[str, list[tuple[str, float]]]:
    """Classes that reach their thresholds, with these, by what the thresholds were chosen for."""
    present: dict[str, list[tuple[str, float]]] = {}
    for point in sorted(reader.points, key=lambda point: -scores[point.label]):
        reached = present.setdefault(words(AIMS[point.criterion], target=point.target), [])
        if scores[point.label] >= point.threshold:
            reached.append((point.label, point.threshold))
    return present
