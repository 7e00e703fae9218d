"""HTML of an answer: order, numbers, what is hidden, what is escaped; the card's text and the examples."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from retfound_hf.app.markup import NO_CARD, describe, draw_examples, intended_use, message, reduced
from retfound_hf.app.predictor import Answer
from retfound_hf.errors import RetFoundError
from retfound_hf.evaluation.calibration import LogitScaling
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.images.quality import Quality, assess_quality
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL


def html(kind=SINGLE_LABEL, names=("a", "b", "c"), scores=(0.2, 0.7, 0.1), quality=None, calibration=None, points=()):
    reader = SimpleNamespace(problem_type=kind, class_names=names, calibration=calibration, points=list(points))
    answer = Answer(np.array(scores), torch.zeros(1), quality or Quality("ok"))
    return describe(reader, answer, "eye.png", (640, 480))


def bars(text: str) -> list[tuple[str, str, str]]:
    return re.findall(r'rf-name">(.*?)</span>.*?width: (.*?)%.*?rf-value">(.*?)%', text, re.S)


def headline(text: str) -> str:
    return re.search(r'<p class="rf-headline">(.*?)</p>', text)[1]


def test_bars_are_sorted_and_as_long_as_their_numbers():
    text = html()
    assert bars(text) == [("b", "70.0", "70.0"), ("a", "20.0", "20.0"), ("c", "10.0", "10.0")]
    assert headline(text) == "b <span>70.0%</span>" and "eye.png · 640 × 480 pixels" in text


def test_calibration_is_said_either_way():
    fits = [None, *(LogitScaling((slope,) * 3, (-0.25, 0.5, -0.25)) for slope in (0.6251, 0.05))]
    notes = [re.search(r'rf-note">(.*?)<', html(calibration=fit))[1] for fit in fits]
    assert [note.startswith("Not calibrated") for note in notes] == [True, False, True]
    assert len(set(notes)) == 3 and "0.63" in notes[1] and "0.50 (b)" in notes[1]


def test_thresholds_decide_beside_the_probabilities():
    assert "threshold" not in html()
    aims = {
        ("sensitivity", 0.95): (0.2, 0.5, 0.11),
        ("specificity", 0.9): (0.3, 0.6, 0.4),
        ("youden", None): (0.25, 0.55, 0.2),
    }
    points = [
        OperatingPoint(name, *aim, value)
        for aim, values in aims.items()
        for name, value in zip("abc", values, strict=True)
    ]
    found = dict(re.findall(r"<dt>(.*?)</dt>\s*<dd>(.*?)</dd>", html(points=points), re.S))
    assert found == {
        "for a sensitivity of 95%": "b (from 50.0%), a (from 20.0%)",
        "for a specificity of 90%": "b (from 60.0%)",
        "for their best sum": "b (from 55.0%)",
    }
    assert re.findall(r"<dd>(.*?)</dd>", html(scores=(0.1, 0.2, 0.7), points=points[:2])) == ["none"]


def test_headlines_of_findings_and_numbers():
    assert headline(html(MULTI_LABEL, scores=(0.5, 0.9, 0.1))) == "b, a"
    assert "50%" in headline(html(MULTI_LABEL, scores=(0.4, 0.2, 0.1)))
    text = html(REGRESSION, ("age", "pressure"), (61.23456, -3.0))
    assert headline(text) == "age 61.23, pressure -3" and bars(text) == [] and "alibrated" not in text


def test_an_unfit_image_hides_the_answer_behind_a_click():
    unfit = html(quality=Quality("reject", ("blurred: hardly any fine detail",)))
    details = re.search(r"<details><summary>.*?</summary>(.*)</details>", unfit, re.S)
    assert "rf-headline" in details[1] and "<li>Blurred: hardly any fine detail</li>" in unfit
    doubtful = html(quality=Quality("doubtful", ("too dark: x",)))
    assert "<details>" not in doubtful and "rf-doubtful" in doubtful


def test_everything_is_escaped():
    text = html(names=("<img src=x onerror=alert(1)>", "b", "c"), scores=(1, 0, 0))
    assert "<img src=x" not in text and "&lt;img src=x" in text
    assert "<script>" not in message(RetFoundError("<script>alert(1)</script>"), "<script>.png")


def test_intended_use_comes_from_the_card(classifier_folder, autoencoder_folder):
    assert intended_use(str(classifier_folder)) == "For research on **synthetic** photographs alone."
    assert intended_use(str(autoencoder_folder)) == NO_CARD


@pytest.mark.parametrize(("modality", "count"), [("cfp", 3), ("oct", 3), (None, 6), ("octa", 0)])
def test_examples_are_of_the_modality_and_fit_to_be_judged(modality, count):
    examples = draw_examples(modality)
    assert len(examples) == count
    for image in examples.values():
        assert assess_quality(image, modality).verdict == "ok"
        assert max(reduced(image, 192).size) == 192
