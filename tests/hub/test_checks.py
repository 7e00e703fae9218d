"""What is not published, and why: one line each, and every check passes on what the commands make."""

import itertools
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from retfound_hf import RetFoundError
from retfound_hf.hub.card_checks import is_known, numbers_of
from retfound_hf.hub.publishing import publish


def refused(folder, **options) -> str:
    with pytest.raises(RetFoundError) as error:
        publish(folder, "org/name", dry_run=True, **options)
    return " ".join(str(error.value).split())


@pytest.mark.parametrize("name", ["base", "classifier"])
def test_what_the_commands_make_passes_offline(workshop, name, capsys):
    assert publish(workshop / name, "org/name", dry_run=True) is None
    said = capsys.readouterr().out
    assert "model.safetensors" in said and "modeling_retfound.py" in said and "nothing was sent" in said


def test_names_of_patients_and_paths_stay_at_home(workshop, capsys):
    publish(workshop / "classifier", "org/name", dry_run=True)
    listed, left_out = capsys.readouterr().out.split("files ", 1)
    assert not [name for name in ("predictions.csv", "splits.csv", "run.json") if name in listed]
    names = "predictions.csv, splits.csv, validation/predictions.csv"
    assert f"left out (names of images and patients): {names}" in left_out
    assert "left out (paths of this machine): run.json" in left_out


def test_sizes_are_those_of_the_files(workshop, capsys):
    publish(workshop / "base", "org/name", dry_run=True)
    size = (workshop / "base" / "model.safetensors").stat().st_size
    assert re.search(rf"model\.safetensors +{size / 1e3:.2f} kB", capsys.readouterr().out)


def test_the_folder_is_left_as_it_was(workshop):
    before = {path: path.stat().st_mtime_ns for path in (workshop / "base").rglob("*")}
    publish(workshop / "base", "org/name", dry_run=True)
    assert {path: path.stat().st_mtime_ns for path in (workshop / "base").rglob("*")} == before


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "README.md", "model.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    place = folder("classifier")
    (place / missing).unlink()
    assert f"lacks {missing}" in refused(place)


def test_pickles_are_refused(folder):
    place = folder("base")
    torch.save({}, place / "pytorch_model.bin")
    assert "pytorch_model.bin, which may be pickles" in refused(place)


def test_damaged_weights_are_refused(folder):
    place = folder("base")
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "model.safetensors is damaged or cut short" in refused(place)


@pytest.mark.parametrize("word", ["TODO: write", "{{ description }}", "[More Information Needed]"])
def test_a_placeholder_is_named(folder, word):
    place = folder("base")
    card = place / "README.md"
    card.write_text(card.read_text().replace("A small model.", f"A small model. {word}"))
    assert "has a placeholder left" in refused(place) and word in refused(place)


@pytest.mark.parametrize("section", ["Limits", "Evaluation", "Calibration", "Intended use"])
def test_a_missing_section_is_named(folder, section):
    place = folder("classifier")
    card = place / "README.md"
    card.write_text(card.read_text().replace(f"## {section}\n", "## Something else\n"))
    assert f"no section `## {section}`" in refused(place)


def test_a_number_that_no_result_holds_is_named(folder):
    place = folder("classifier")
    card = place / "README.md"
    auroc = json.loads((place / "metrics.json").read_text())["auroc"]
    assert f"| AUROC | {auroc:.3f} |" in card.read_text()
    card.write_text(card.read_text().replace(f"| AUROC | {auroc:.3f} |", "| AUROC | 0.987 |"))
    assert "`## Evaluation`" in refused(place) and "says 0.987, which is in none of the results" in refused(place)


def test_a_value_of_the_index_that_no_result_holds_is_named(folder, change_json):
    place = folder("classifier")
    value = json.loads((place / "metrics.json").read_text())["auroc"]
    card = place / "README.md"
    card.write_text(card.read_text().replace(f"value: {value}\n", "value: 0.9876543\n", 1))
    assert "model-index" in refused(place) and "0.9876543" in refused(place)


def test_invalid_metadata_are_refused(folder):
    place = folder("base")
    card = place / "README.md"
    card.write_text(card.read_text().replace("---\n", "---\nbroken: [\n", 1))
    assert "are not valid for the Hub" in refused(place)


@pytest.mark.parametrize("name", ["base", "classifier"])
@pytest.mark.parametrize("stated", ["license: apache-2.0\n", ""])
def test_the_licence_cannot_be_dropped(folder, name, stated):
    place = folder(name)
    card = place / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", stated))
    assert "the weights carry on cc-by-nc-4.0" in refused(place)


def test_the_licence_is_known_by_the_base_too(folder, change_json):
    place = folder("base")
    change_json(place / "config.json", weights_license=None)
    card = place / "README.md"
    text = card.read_text().replace("license: cc-by-nc-4.0\n", "license: mit\n")
    card.write_text(text)
    publish(place, "org/name", dry_run=True)  # nothing tells
    card.write_text(text.replace("license: mit\n", "license: mit\nbase_model: YukunZhou/RETFound_mae_natureCFP\n"))
    assert "made from YukunZhou/RETFound_mae_natureCFP" in refused(place)
    card.write_text(text)
    (place / "run.json").write_text(json.dumps({"arguments": {"model_name_or_path": "YukunZhou/RETFound_mae_meh"}}))
    assert "made from YukunZhou/RETFound_mae_meh" in refused(place)


def test_a_card_without_any_licence_is_refused(folder, change_json):
    place = folder("base")
    change_json(place / "config.json", weights_license=None)
    card = place / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", ""))
    assert "has no license; add one" in refused(place)


def test_an_adapter_names_a_base_that_others_can_load(workshop, capsys):
    assert "which is no Hub id" in refused(workshop / "adapter")
    publish(workshop / "adapter", "org/name", dry_run=True, base_model="org/base")
    assert "adapter_model.safetensors" in capsys.readouterr().out


@pytest.mark.parametrize("name", ["name", "a/b/c", "https://hub/org/name", "org/na me"])
def test_a_bad_name_is_refused(workshop, name):
    with pytest.raises(RetFoundError, match="is no name of a repository"):
        publish(workshop / "base", name, dry_run=True)


def test_what_counts_as_a_number():
    text = "AUROC 0.912 (0.880 to 0.941) at 95% on 1,200 images of stage 3; `top5 0.5`, f1_macro, v1.0.2, 12.5%"
    assert list(numbers_of(text, ["stage 3"])) == ["0.912", "0.880", "0.941", "1,200", "12.5%"]


@pytest.mark.parametrize("labels", [["0", "1"], ["1", "2", "3"], ["0", "1", "2", "3", "4"], ["a", "I", "1.0"]])
def test_no_name_takes_digits_out_of_a_figure(labels):
    text = "On 71 images, all of Ia: AUROC 0.193, 0.871, ece 1.012, stage 3\n\n| class | AUROC |\n| --- | ---: |\n"
    text += "".join(f"| {label} | 0.50{index} |\n" for index, label in enumerate(labels))
    figures = [f"0.50{index}" for index in range(len(labels))]
    assert list(numbers_of(text, labels)) == ["71", "0.193", "0.871", "1.012", "3", *figures]


@pytest.fixture(scope="module")
def grades(workshop, tmp_path_factory):
    """A classifier of the grades 0 to 4, as `finetune` makes it; in the test split is none of grade 4."""
    from retfound_hf.finetuning.command import main

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
    words += ["--confidence_intervals", "true", "--resamples", "100", "--dataloader_num_workers", "0"]
    main([*words, "--output_dir", str(place / "grades")])
    return place / "grades"


def test_the_card_of_numbered_classes_passes(grades):
    text = (grades / "README.md").read_text()
    assert "| 3 | " in text and "AUROC of `4`" in text
    assert publish(grades, "org/name", dry_run=True) is None


@pytest.mark.parametrize("said", ["0.123", "0.023", "1.04", "40"])
def test_a_forged_figure_is_seen_among_numbered_classes(grades, tmp_path, said):
    place = Path(shutil.copytree(grades, tmp_path / "grades"))
    card = place / "README.md"
    text, changed = re.subn(r"^\| AUROC \| [\d.]+ \|", f"| AUROC | {said} |", card.read_text(), flags=re.M)
    card.write_text(text)
    assert changed == 1 and f"says {said}, which is in none of the results" in refused(place)


def test_a_number_is_known_as_it_is_rounded():
    known = {0.91249, 1200.0, 0.125}
    assert is_known("0.912", known) and is_known("0.91", known) and not is_known("0.913", known)
    assert is_known("1,200", known) and not is_known("1201", known) and is_known("12.5%", known)
    assert not is_known("1", known)
