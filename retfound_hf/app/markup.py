"""HTML of the page, from templates that escape whatever is put into them; theme, pictures, examples."""

import base64
import re
from dataclasses import dataclass
from functools import cached_property, lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..evaluation.calibration import is_uninformed
from ..images.quality import Quality
from ..images.synthetic import CLASSES, draw_patient
from ..images.synthetic import render as draw
from .predictor import PRESENT, Answer, Reader


def theme() -> Any:
    """A calm theme without a font from elsewhere."""
    import gradio
    from gradio.themes import Color, Font

    ink = Color(
        c50="#eef6f7", c100="#d6e9eb", c200="#aed3d7", c300="#7fb8be", c400="#4b979f", c500="#217780", c600="#0f5f68",
        c700="#0c4d55", c800="#0b3f45", c900="#0a3338", c950="#062125",
    )  # fmt: skip
    fonts = [Font("system-ui"), Font("-apple-system"), Font("Segoe UI"), Font("Roboto"), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("Consolas"), Font("monospace")]
    return gradio.themes.Base(primary_hue=ink, neutral_hue="slate", font=fonts, font_mono=mono, radius_size="md")


NO_CARD = "The folder has no card that says what the model is intended for."


def intended_use(name_or_path: str) -> str:
    """The section of the card whose heading speaks of intended use, as Markdown without the heading."""
    text = _card(name_or_path)
    found = re.search(r"^(#{1,4}) [^\n]*intended use[^\n]*\n(.*?)(?=^#{1,4} |\Z)", text, re.M | re.S | re.I)
    return found[2].strip() if found else NO_CARD


def _card(name_or_path: str) -> str:
    path: Path | str | None = Path(name_or_path) / "README.md"
    if not Path(name_or_path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(name_or_path, "README.md")
    return Path(path).read_text(encoding="utf-8") if isinstance(path, (str, Path)) and Path(path).is_file() else ""


LONGEST_SIDE = 1024


@dataclass(frozen=True)
class Photo:
    """An image as the page shows it: an address that holds it, width and height in pixels."""

    uri: str
    size: tuple[int, int]


def photo_of(image: Image.Image) -> Photo:
    """The image reduced to at most 1,024 pixels."""
    small = image.copy()
    small.thumbnail((LONGEST_SIDE, LONGEST_SIDE), Image.Resampling.BICUBIC, reducing_gap=3)
    return Photo(data_uri(small), small.size)


def data_uri(image: Image.Image, kind: str = "JPEG") -> str:
    """The image as an address that holds it, `JPEG` for photographs or `PNG` for layers with transparency."""
    file = BytesIO()
    image.save(file, kind, **({"quality": 88} if kind == "JPEG" else {"compress_level": 3}))
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


SEED, SEVERITY, SIZE, THUMBNAIL = 7, 0.8, 384, 96


@dataclass(frozen=True)
class Example:
    name: str
    image: Image.Image

    @cached_property
    def thumbnail(self) -> Image.Image:
        small = self.image.copy()
        small.thumbnail((2 * THUMBNAIL, 2 * THUMBNAIL))  # twice, for screens of high density
        return small


def draw_examples(modality: str | None, size: int = SIZE) -> list[Example]:
    """One image of each synthetic condition of the modality; of both modalities where it is unknown."""
    found = []
    for kind in (modality,) if modality else tuple(CLASSES):
        eye = draw_patient(np.random.default_rng(SEED), kind)[0]
        for condition in CLASSES[kind]:
            image = draw(eye, condition, SEVERITY, size, np.random.default_rng(SEED)).image
            found.append(Example(f"synthetic {kind.upper()}, {condition}", Image.fromarray(image)))
    return found


FOLDER = Path(__file__).parent / "templates"
QUALITY_WORDS = {"ok": "fit to be judged", "doubtful": "doubtful", "reject": "not fit to be judged"}
LABELS = {
    "single_label_classification": "Most probable for the model",
    "multi_label_classification": "Present for the model",
    "regression": "The model predicts",
}
AIMS = {"sensitivity": "a sensitivity of {:.0%}", "specificity": "a specificity of {:.0%}", "youden": "their best sum"}


def render(template: str, **facts: Any) -> str:
    """The template of that name with its facts filled in and escaped.

    Raises:
        jinja2.UndefinedError: a fact that the template needs is missing.
    """
    return _environment().get_template(f"{template}.html").render(**facts)


def own_html(html: str, **options: Any) -> Any:
    """A gradio `HTML` that looks as style.css says and not as gradio would have it."""
    import gradio

    return gradio.HTML(html, apply_default_css=False, **options)


def message(error: object, name: str = "") -> str:
    """What is wrong, where an answer would stand; `name` is the file that it is wrong with."""
    text = str(error).removeprefix("cannot read the image: ")
    return render("message", text=f"{name}: {text}" if name else text[:1].upper() + text[1:])


def describe(reader: Reader, answer: Answer, name: str, size: tuple[int, int]) -> str:
    """Prediction, bars, calibration and quality of one image."""
    rows = sorted(zip(reader.class_names, answer.scores.tolist(), strict=True), key=lambda row: -row[1])
    if reader.problem_type == "regression":
        rows = list(zip(reader.class_names, answer.scores.tolist(), strict=True))
    is_single = reader.problem_type == "single_label_classification"
    return render(
        "answer",
        kind=reader.problem_type,
        label=LABELS[reader.problem_type],
        confidence=f"{rows[0][1]:.1%}" if is_single else "",
        headline=headline(reader.problem_type, rows),
        rows=rows,
        calibration=calibration(reader),
        decisions=decisions(reader, rows),
        quality=quality_facts(answer.quality),
        name=name,
        width=size[0],
        height=size[1],
    )


def headline(problem_type: str, rows: list[tuple[str, float]]) -> str:
    """The answer in one line; `rows` are names and scores, the highest first."""
    if problem_type == "regression":
        return ", ".join(f"{name} {value:.4g}" for name, value in rows)
    if problem_type == "multi_label_classification":
        return ", ".join(name for name, value in rows if value >= PRESENT) or f"Nothing above {PRESENT:.0%}"
    return rows[0][0]


def calibration(reader: Reader) -> str:
    """Whether the probabilities were fitted to what was seen on validation data."""
    if reader.problem_type == "regression":
        return ""
    if reader.temperature is None:
        return "Not calibrated: read the numbers as an order, not as chances."
    if is_uninformed(reader.temperature):
        return (
            "Not calibrated: on validation data the scores were hardly better than guessing, or far too sure; the "
            "numbers say little."
        )
    return f"Calibrated on validation data (temperature {reader.temperature:.2f})."


def decisions(reader: Reader, rows: list[tuple[str, float]]) -> list[tuple[str, list[tuple[str, float]]]]:
    """What the thresholds of the model folder were chosen for, each with the classes that reach theirs and these."""
    scores = dict(rows)
    present: dict[str, list[tuple[str, float]]] = {}
    for point in sorted(reader.points, key=lambda point: -scores[point.label]):
        reached = present.setdefault(AIMS[point.criterion].format(point.target), [])
        if scores[point.label] >= point.threshold:
            reached.append((point.label, point.threshold))
    return list(present.items())


def quality_facts(quality: Quality) -> dict[str, Any]:
    return {
        "verdict": quality.verdict,
        "words": QUALITY_WORDS[quality.verdict],
        "reasons": [reason[:1].upper() + reason[1:] for reason in quality.reasons],
    }


@lru_cache
def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        undefined=jinja2.StrictUndefined,
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
