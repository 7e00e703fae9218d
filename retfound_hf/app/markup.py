"""The parts of the page that are our own HTML, from templates that escape whatever is put into them."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from ..evaluation.temperature import is_uninformed
from ..images.quality import Quality
from .reader import PRESENT, Answer, Reader

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
