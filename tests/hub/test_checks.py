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
from retfound_hf.hub.publish import publish


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


@pytest.mark.parametrize(
    "said", ["0.999", "0.95", "95%", ".912", "`0.987`", "_0.987_", "0.987x", "9.87e-1", "1/0.987"]
)
@pytest.mark.parametrize("section", ["Intended use", "Evaluation", "Limits"])
def test_an_invented_figure_is_refused_wherever_it_stands(folder, section, said):
    """0.999 is adam_beta2 in run.json, and 95% the confidence of intervals; neither is a result."""
    place = folder("classifier")
    assert 0.999 in json.loads((place / "run.json").read_text())["arguments"].values()
    card = place / "README.md"
    claim = f"## {section}\n\nIt reaches an AUROC of {said} on external data.\n"
    card.write_text(card.read_text().replace(f"## {section}\n", claim, 1))
    shown = said.strip("`_").rstrip("x").removeprefix("1/")
    assert f"the section `## {section}` of {card} says {shown}, which is in none of the results" in refused(place)


def test_an_invented_figure_above_the_sections_is_refused(folder):
    place = folder("base")
    card = place / "README.md"
    card.write_text(card.read_text().replace("A small model.", "A small model: AUROC-0.987."))
    assert f"the top of {card} says 0.987" in refused(place)


def test_a_figure_from_elsewhere_is_cited_with_its_source(folder, capsys):
    place = folder("classifier")
    card = place / "README.md"
    claim = "## Limits\n\nElsewhere another model reached 0.991, and 52% were women."
    card.write_text(card.read_text().replace("## Limits\n", claim, 1))
    assert "a figure from elsewhere goes into cited.csv beside the card, with the columns value and s" in refused(
        place
    )
    (place / "cited.csv").write_text("value,source\n0.991,Doe 2021\n52%,\n")
    assert "row 2 of" in refused(place) and "source (where it is from)" in refused(place)
    (place / "cited.csv").write_text("value,source\n0.991,Doe 2021\n52%,the registry\n")
    publish(place, "org/name", dry_run=True)
    assert "cited.csv" in capsys.readouterr().out.split("files")[0]


def test_honest_prose_passes(folder):
    place = folder("classifier")
    card = place / "README.md"
    said = (
        "Written on 2024-05-01 with Transformers 5.17 and Python 3.11 (see section 2.3), for ViT-L/16 on 224 x 224 "
        "pixels: 1,204 patients followed for 3 years, mean age 63.5 (SD 10.2) years. Sensitivity at 3 years is "
        "unknown. Training took 2.5 hours. The AUROC has a 95% confidence interval, other figures a 95% CI. "
        "Licence CC BY-NC 4.0."
    )
    text = card.read_text()
    for section in ("Intended use", "Training data", "Evaluation", "Limits"):
        text = text.replace(f"## {section}\n", f"## {section}\n\n{said}\n", 1)
    card.write_text(text)
    publish(place, "org/name", dry_run=True)


@pytest.mark.parametrize("said", ["a temperature of 0.912", "a mask ratio of 0.9", "a weight decay of 0.95"])
def test_a_setting_is_that_of_the_run(folder, said):
    place = folder("classifier")
    card = place / "README.md"
    decay = json.loads((place / "run.json").read_text())["arguments"]["weight_decay"]
    own = f"a mask ratio of 0.75, a weight decay of {float(decay)}, a learning rate of 1e-3"
    text = card.read_text()
    card.write_text(text.replace("## Limits\n", f"## Limits\n\nTrained with {own}.\n", 1))
    publish(place, "org/name", dry_run=True)
    card.write_text(text.replace("## Limits\n", f"## Limits\n\nTrained with {said}.\n", 1))
    assert f"says {said.split()[-1]}, which is in none" in refused(place)


def test_a_group_of_few_patients_proves_no_figure(folder):
    place = folder("classifier")
    rows = ["column,group,rows,metric,value,low,high,n,undefined,p_value", "camera,A,9,auroc,0.7654,,,9,0.8123,"]
    card = place / "README.md"
    text = card.read_text()
    for patients, said, passes in ((9, "0.765", False), (10, "0.765", True), (10, "0.812", False)):
        (place / "subgroups.csv").write_text("\n".join(rows).replace(",9,0.8", f",{patients},0.8") + "\n")
        card.write_text(text.replace("## Limits\n", f"## Limits\n\nOf camera A {said}.\n", 1))
        if passes:
            publish(place, "org/name", dry_run=True)
        else:
            assert f"says {said}, which is in none" in refused(place)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("0.9876543", "says auroc 0.9876543, which is"),
        ("0.9", "says auroc 0.9, which is"),
        ("high", "accepted: numbers"),
    ],
)
def test_a_value_of_the_index_that_is_not_that_of_its_metric_is_named(folder, value, message):
    place = folder("classifier")
    card, own = place / "README.md", 0.912345
    metrics = json.loads((place / "metrics.json").read_text())
    text = card.read_text().replace(f"value: {metrics['auroc']}\n", f"value: {value}\n", 1)
    (place / "metrics.json").write_text(json.dumps({**metrics, "other": metrics["auroc"], "auroc": own}))
    card.write_text(text.replace(f"| AUROC | {metrics['auroc']:.3f} |", f"| AUROC | {own:.3f} |"))
    assert "the model-index of" in refused(place) and message in refused(place)
    card.write_text(card.read_text().replace(f"value: {value}\n", "value: 0.9123\n"))
    publish(place, "org/name", dry_run=True)


def test_metrics_of_the_index_cannot_be_swapped(folder, change_json):
    place = folder("classifier")
    card = place / "README.md"
    metrics = json.loads((place / "metrics.json").read_text())
    change_json(place / "metrics.json", mae=0.3210)
    text = card.read_text()
    assert f"- type: auroc\n      value: {metrics['auroc']}\n" in text and metrics["auroc"] != 0.3210
    card.write_text(
        text.replace(f"- type: auroc\n      value: {metrics['auroc']}\n", "- type: auroc\n      value: 0.321\n")
    )
    assert f"says auroc 0.321, which is {metrics['auroc']} in" in refused(place)
    entry = f"- type: mae\n      value: 0.321\n      name: {{}}\n    - type: auroc\n      value: {metrics['auroc']}\n"
    for name in ("AUROC", "auroc", "Brier score"):
        card.write_text(text.replace(f"- type: auroc\n      value: {metrics['auroc']}\n", entry.format(name)))
        assert "says mae 0.321 under the name of " in refused(place)
    card.write_text(text.replace(f"- type: auroc\n      value: {metrics['auroc']}\n", entry.format("MAE on day one")))
    publish(place, "org/name", dry_run=True)


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


@pytest.fixture(scope="module")
def grades(workshop, tmp_path_factory):
    """A classifier of the grades 0 to 4, as `finetune` makes it; in the test split is none of grade 4."""
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
