"""Cards before publishing: complete, generated figures those of the results, and free text left alone."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retfound_hf.errors import BadModelError
from retfound_hf.hub.publish import publish


def refused(folder, **options) -> str:
    with pytest.raises(BadModelError) as error:
        publish(folder, "org/name", dry_run=True, **options)
    return str(error.value)


@pytest.fixture
def card(folder):
    """The card of a copy of the workshop's classifier."""
    return folder("classifier") / "README.md"


def put(card: Path, before: str, after: str) -> None:
    text = card.read_text()
    assert before in text
    card.write_text(text.replace(before, after, 1))


@pytest.mark.parametrize("word", ["TODO: write", "{{ description }}", "[More Information Needed]"])
def test_a_placeholder_is_named(card, word):
    put(card, "## Limits\n", f"## Limits\n\n{word}\n")
    assert word in refused(card.parent)


@pytest.mark.parametrize("section", ["Limits", "Evaluation", "Calibration", "Intended use"])
def test_a_missing_section_is_named(card, section):
    put(card, f"## {section}\n", "## Something else\n")
    assert f"`## {section}`" in refused(card.parent)


@pytest.mark.parametrize("name", ["pipeline_tag", "library_name"])
def test_missing_metadata_are_named(card, name):
    card.write_text(re.sub(rf"^{name}: .*\n", "", card.read_text(), flags=re.M))
    assert name in refused(card.parent)


def test_invalid_metadata_are_refused(card):
    put(card, "---\n", "---\nbroken: [\n")
    assert "metadata" in refused(card.parent)


@pytest.mark.parametrize("section", ["Intended use", "Evaluation", "Limits"])
def test_free_text_is_free(card, section):
    said = (
        "Taken at f/2.8 with firmware 3.1, aspect ratio 1.33 (clause 4.2), -6.0 to +3.0 D. Smoking was recorded in "
        "30% of 1,204 patients, mean age 63.5 (SD 10.2) years; another model reached an AUROC of 0.991 (Doe 2021). "
        "Written on 2024-05-01 with Transformers 5.17. The AUROC has a 95% CI; it misses one case in twenty."
    )
    put(card, f"## {section}\n", f"## {section}\n\n{said}\n\n| camera | images |\n| --- | --- |\n| A | 0.5 |\n")
    publish(card.parent, "org/name", dry_run=True)


def test_a_figure_that_differs_from_the_results_is_refused(card):
    auroc = json.loads((card.parent / "metrics.json").read_text())["auroc"]
    put(card, f"| AUROC | {auroc:.3f} |", "| AUROC | 0.987 |")
    said = refused(card.parent)
    assert "| AUROC | 0.987 |" in said and f"| AUROC | {auroc:.3f} |" in said


def test_results_that_changed_are_refused(card, change_json):
    change_json(card.parent / "metrics.json", brier=0.4321)
    assert "0.432" in refused(card.parent)


def test_a_row_that_was_removed_is_named(card):
    card.write_text(re.sub(r"^\| stage 3 \|.*\n", "", card.read_text(), flags=re.M))
    assert "stage 3" in refused(card.parent)


@pytest.mark.parametrize(
    ("value", "passes"), [("0.9876543", False), ("0.9", False), ("high", False), ("0.9123", True)]
)
def test_a_value_of_the_index_is_that_of_its_metric(card, change_json, value, passes):
    metrics, own = json.loads((card.parent / "metrics.json").read_text()), 0.912345
    put(card, f"value: {metrics['auroc']}\n", f"value: {value}\n")
    put(card, f"| AUROC | {metrics['auroc']:.3f} |", f"| AUROC | {own:.3f} |")
    change_json(card.parent / "metrics.json", auroc=own, other=metrics["auroc"])
    put(card, "| Accuracy |", f"| other | {metrics['auroc']:.3f} |  |\n| Accuracy |")
    if passes:
        card.write_text(re.sub(r"^\| other .*\n", "", card.read_text(), flags=re.M))
        change_json(card.parent / "metrics.json", other=None)
        publish(card.parent, "org/name", dry_run=True)
    else:
        assert "model-index" in refused(card.parent) or "other" in refused(card.parent)


@pytest.mark.parametrize(("name", "passes"), [("Accuracy", False), ("accuracy", False), ("AUROC on day one", True)])
def test_a_result_cannot_bear_the_name_of_another(card, name, passes):
    auroc = json.loads((card.parent / "metrics.json").read_text())["auroc"]
    put(card, f"- type: auroc\n      value: {auroc}\n", f"- type: auroc\n      value: {auroc}\n      name: {name}\n")
    if passes:
        publish(card.parent, "org/name", dry_run=True)
    else:
        assert name in refused(card.parent)


def test_a_result_that_was_not_measured_is_refused(card):
    put(card, "- type: auroc\n", "- type: mae\n")
    assert "mae" in refused(card.parent)


@pytest.fixture(scope="module")
def grades(workshop, tmp_path_factory):
    """A classifier of the grades 0 to 4, as `finetune` makes it; the test split has no grade 4."""
    from retfound_hf.finetuning.finetune import main

    place = tmp_path_factory.mktemp("grades")
    rng = np.random.default_rng(0)
    rows = ["image,label,split"]
    for split, count, classes in (("train", 4, 5), ("val", 2, 5), ("test", 3, 4)):
        for grade, number in itertools.product(range(classes), range(count)):
            name = f"{split}-{grade}-{number}.png"
            Image.fromarray(rng.integers(0, 60 + 40 * grade, (64, 64, 3)).astype(np.uint8)).save(place / name)
            rows.append(f"{name},{grade},{split}")
    (place / "table.csv").write_text("\n".join(rows) + "\n")
    words = ["--model_name_or_path", str(workshop / "base"), "--data", str(place / "table.csv"), "--method", "linear"]
    main([*words, "--dataloader_num_workers", "0", "--output_dir", str(place / "grades")])
    return place / "grades"


def test_the_card_of_numbered_classes_passes_until_it_is_changed(grades, tmp_path):
    publish(grades, "org/name", dry_run=True)
    card = Path(shutil.copytree(grades, tmp_path / "grades")) / "README.md"
    text = card.read_text()
    assert "| 3 | " in text and "AUROC of `4`" in text
    card.write_text(re.sub(r"^(\| 3 \|) [\d.]+ \|", r"\1 1.04 |", text, flags=re.M))
    assert "| 3 | 1.04 |" in refused(card.parent)
