"""Cards: every snippet runs as printed, metadata the Hub takes, figures those of the files, finished ones complete."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from huggingface_hub import ModelCard
from markdown_it import MarkdownIt
from tiny import save_autoencoder, save_noise

from retfound_hf import RetFoundConfig, RetFoundImageProcessor
from retfound_hf.hub.contents import Contents, check_card, read_card, sections_of
from retfound_hf.hub.publish import publish
from retfound_hf.models import conversion
from retfound_hf.models.cards import (
    BALANCED,
    calibration_text,
    evaluation_text,
    title,
    write_card,
    write_converted_card,
)
from retfound_hf.models.conversion import CheckpointFile

CARDS = Path(__file__).parents[2] / "model_cards"


def snippets(card: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card, re.S)


def test_every_snippet_runs_as_printed(hub_here, workshop, image):
    """Those that import the package in one process, those that do not in another that must never see it."""
    publish(workshop / "base", "org/base")
    publish(workshop / "classifier", "org/classifier")
    publish(workshop / "adapter", "org/adapter", base_model="org/base")
    found = []
    for name in ("base", "classifier", "adapter"):
        found += snippets(hub_here.repo(f"org/{name}").at("main").files["README.md"].content.decode())
    assert len(found) == 3 + 2 + 2
    with_package = [code for code in found if "retfound_hf" in code]
    without = [code for code in found if "retfound_hf" not in code]
    assert len(with_package) == 3 and len(without) == 4
    without.append("import sys\nassert 'retfound_hf' not in sys.modules")
    for codes in (with_package, without):
        done = subprocess.run(
            [sys.executable, "-c", "\n\n".join(codes)],
            env={**os.environ, **hub_here.env(image.parent / "home")}, cwd=image.parent,
            capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize(
    "problem_type, scores, called",
    [("single_label_classification", "probabilities = {}.softmax(-1)\n", 'classify("image.jpg")'),
     ("multi_label_classification", "probabilities = {}.sigmoid()\n", 'classify("image.jpg")'),
     ("regression", "values = {}\n", 'classify("image.jpg", function_to_apply="none")')],
)  # fmt: skip
def test_snippets_read_the_outputs_as_the_model_means_them(tmp_path, problem_type, scores, called):
    names = ("title", "description", "targets", "training_data", "preprocessing", "evaluation", "calibration", "cost")
    facts = {**dict.fromkeys((*names, "provenance"), "Said."), "problem_type": problem_type}
    codes = snippets(write_card(tmp_path, "adapter", None, **facts).read_text())
    logits = 'model(**processor("image.jpg", return_tensors="pt")).logits'
    assert len(codes) == 2 and all(code.endswith(scores.format(logits)) for code in codes)
    codes = snippets(write_card(tmp_path, "finetuned", None, **facts).read_text())
    assert len(codes) == 2 and all(code.endswith(f"print({called})\n") for code in codes)


@pytest.mark.parametrize("name", ["base", "classifier", "adapter"])
def test_the_hub_takes_the_metadata(hub_here, workshop, name):
    card = ModelCard.load(workshop / name / "README.md")
    card.validate()
    assert card.data.license == "cc-by-nc-4.0"
    if name != "base":
        results = {result.metric_type: result.metric_value for result in card.data.eval_results}
        metrics = json.loads((workshop / name / "metrics.json").read_text())
        assert results["auroc"] == metrics["auroc"] and results["accuracy"] == metrics["accuracy"]


def test_figures_have_their_intervals(workshop):
    metrics = json.loads((workshop / "classifier" / "metrics.json").read_text())
    name = next(key for key in metrics if key.endswith("_ci95") and "/" not in key).removesuffix("_ci95")
    low, high = metrics[f"{name}_ci95"]
    text = sections_of((workshop / "classifier" / "README.md").read_text())["Evaluation"]
    assert f"| {title(name)} | {metrics[name]:.3f} | {low:.3f} to {high:.3f} |" in text
    assert "| class | AUROC | AUPRC | F1 | PPV (precision) | Sensitivity (recall) |" in text and "stage 3" in text


def test_training_data_are_counted(workshop):
    text = sections_of((workshop / "classifier" / "README.md").read_text())["Training data"]
    assert "`images`, the splits kept apart by image" in text and str(workshop) not in text
    assert "| train | 12 | 6 | 6 |" in text and "| test | 8 | 4 | 4 |" in text


def test_subgroups_and_temperature_are_shown(tmp_path):
    (tmp_path / "metrics.json").write_text(json.dumps({"auroc": 0.75, "ece": 0.05, "brier": 0.2, "f1_macro": None}))
    names = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps({"calibration_temperature": 1.5, "id2label": names}))
    rows = ["column,group,rows,metric,value,low,high,n,undefined,p_value"]
    rows += ["age,40-60,20,auroc,0.81234,0.7,0.9,15,0,", "age,40-60 - 60+,40,auroc,0.1,-0.05,0.25,30,0,0.04"]
    rows += ["age,60+,20,auroc,,,,15,1,", "age,60+,20,brier,0.3,0.2,0.4,15,0,"]
    (tmp_path / "subgroups.csv").write_text("\n".join(rows) + "\n")
    text = evaluation_text(tmp_path, "the test split, 40 images")
    assert "| age | 40-60 | 15 | AUROC | 0.812 | 0.700 to 0.900 |  |" in text
    assert "| age | 40-60 - 60+ | 30 | AUROC | 0.100 | -0.050 to 0.250 | 0.040 |" in text
    assert "| age | 60+ | 15 | AUROC | undefined |  |  |" in text and "0.300" not in text
    assert "Undefined on these images: F1, mean of classes." in text
    assert "temperature 1.50" in calibration_text(tmp_path, "single_label_classification")
    assert "not calibrated" not in calibration_text(tmp_path, "single_label_classification")
    assert calibration_text(tmp_path, "regression").startswith("Not applicable")
    fitted = {"calibration_slope": [0.5, 0.5], "calibration_intercept": [-0.6, 0.6], "id2label": names}
    (tmp_path / "config.json").write_text(json.dumps(fitted))
    text = calibration_text(tmp_path, "single_label_classification", balanced=True)
    assert "slope 0.50" in text and "-0.60 (a)" in text and BALANCED not in text
    (tmp_path / "config.json").write_text(json.dumps({"id2label": names}))
    assert BALANCED in calibration_text(tmp_path, "single_label_classification", balanced=True)


@pytest.mark.parametrize("patients", [1, 9])
def test_no_card_shows_a_group_of_few_patients(tmp_path, patients):
    (tmp_path / "metrics.json").write_text(json.dumps({"auroc": 0.75}))
    rows = ["column,group,rows,metric,value,low,high,n,undefined,p_value"]
    rows += [f"name,J. Doe,20,auroc,0.81234,,,{patients},0,", "sex,F,20,auroc,0.7,0.6,0.8,10,0,"]
    (tmp_path / "subgroups.csv").write_text("\n".join(rows) + "\n")
    text = evaluation_text(tmp_path, "the test split, 40 images")
    assert "Doe" not in text and "0.812" not in text and "| sex | F | 10 | AUROC | 0.700 |" in text
    assert text.endswith("\n\nGroups of fewer than 10 patients are left out.")
    (tmp_path / "subgroups.csv").write_text("\n".join(rows[:2]) + "\n")
    text = evaluation_text(tmp_path, "the test split, 40 images")
    assert "Doe" not in text and "By group" not in text and text.endswith("are left out.")


@pytest.mark.parametrize("temperature", [20.0, 19.99998])
def test_a_head_that_validation_knew_nothing_of_is_not_called_calibrated(tmp_path, temperature):
    (tmp_path / "metrics.json").write_text(json.dumps({"ece": 0.01, "brier": 0.5}))
    names = {"0": "a", "1": "b"}
    (tmp_path / "config.json").write_text(json.dumps({"calibration_temperature": temperature, "id2label": names}))
    text = calibration_text(tmp_path, "single_label_classification")
    assert "temperature 20.00" in text and "hardly better than guessing" in text
    assert "The probabilities are not calibrated" in text


@pytest.mark.parametrize(
    ("source", "kind", "modality"),
    [("RETFound_dinov2_meh", "dinov2", "cfp"), ("own-1.5", "classifier", "oct"),
     ("RETFound_mae_meh", "encoder", "cfp")],
)  # fmt: skip
def test_cards_of_converted_folders_pass(tmp_path, monkeypatch, source, kind, modality):
    monkeypatch.setattr(conversion, "sha256_of", lambda path: "12e4567890" * 6 + "5e12")
    file = CheckpointFile(tmp_path / f"{source}.pth", {}, "model", {}, kind, "RETFound")
    processor = RetFoundImageProcessor(image_mean=(0.5, 0.25, 0.125), do_fundus_crop=modality == "cfp")
    processor.save_pretrained(tmp_path)
    config = RetFoundConfig(modality=modality)
    write_converted_card(tmp_path, "mine-0.5", file, file.path, modality, config, processor)
    check_card(Contents(tmp_path, "model", {}, (), {}), *read_card(tmp_path))


@pytest.mark.parametrize("name", ["retfound-cfp", "retfound-oct"])
def test_finished_cards_are_complete(hub_here, name, tmp_path):
    text = (CARDS / f"{name}.md").read_text()
    (tmp_path / "README.md").write_text(text)
    metadata, body = read_card(tmp_path)
    check_card(Contents(tmp_path, "model", {}, (), {}), metadata, body)
    ModelCard(text).validate()
    assert metadata["license"] == "cc-by-nc-4.0" and metadata["base_model"].startswith("YukunZhou/RETFound_mae_nature")
    assert {"retfound-cfp": "904,170", "retfound-oct": "736,442"}[name] in body


def test_the_official_weights_get_their_finished_card(tmp_path, monkeypatch):
    monkeypatch.setattr(conversion, "sha256_of", lambda path: "0" * 64)
    file = tmp_path / "RETFound_mae_natureOCT.pth"
    arguments = (CheckpointFile(file, {}, "model", {}, "autoencoder", "RETFound"), file, "oct")
    processor = RetFoundImageProcessor(do_fundus_crop=False)
    folder = tmp_path / "mine"
    folder.mkdir()
    path = write_converted_card(folder, "mine", *arguments, RetFoundConfig(modality="oct"), processor)
    text = path.read_text()
    assert "# mine: RETFound for OCT B-scans" in text and 'from_pretrained("mine")' in text
    assert "736,442 OCT B-scans" in text and f"SHA-256 `{'0' * 64}`" in text and "{{" not in text
    small = RetFoundConfig(hidden_size=64, num_attention_heads=4, image_size=64, modality="oct")
    assert "736,442" not in write_converted_card(folder, "mine", *arguments, small, processor).read_text()


def test_names_of_data_are_text_in_the_card_and_in_the_report(hub_here, tmp_path):
    """Classes, columns, groups, table, base and folder whose names are HTML, Markdown or quotes."""
    from retfound_hf.finetuning.finetune import main

    classes, sites = ["<img src=x onerror=alert(1)>", "a|b `c` [x](y) # d"], ["<b>A|B</b>", "`c` <!--"]
    base, data, out = tmp_path / "ba|se <u>`x`", tmp_path / "ta|ble<hr>*.csv", tmp_path / 'my "model" <b>`|\''
    save_autoencoder(base, weights_license="cc-by-nc-4.0", modality="cfp")
    rows = [
        {"image": save_noise(tmp_path / f"{number}.png", number).name, "label": classes[number % 2],
         "patient_id": f"p{number}", "split": ["train", "val", *["test"] * 3][number // 8], "sex": "<i>F",
         "si<te>|x": sites[number // 2 % 2]} for number in range(40)
    ]  # fmt: skip
    pd.DataFrame(rows).to_csv(data, index=False)
    words = ["--model_name_or_path", str(base), "--data", str(data), "--output_dir", str(out), "--method", "linear"]
    words += ["--problem_type", "single_label_classification", "--dataloader_num_workers", "0", "--calibrate", "true"]
    main([*words, "--subgroup_columns", "si<te>|x"])
    card = (out / "README.md").read_text()
    found = MarkdownIt("commonmark").enable("table").parse(read_card(out)[1])
    kinds = {part.type for token in found for part in [token, *(token.children or [])]}
    assert not [kind for kind in kinds if kind.startswith(("html", "link", "image", "em_", "strong"))]
    assert not re.search(r"<\w|<!", card.partition("\n---\n\n")[2])
    texts = {"".join(part.content for part in token.children) for token in found if token.type == "inline"}
    assert {*classes, *sites, "si<te>|x"} <= texts and f"{out.name}: RETFound fine-tuned (linear)" in texts
    ModelCard(card).validate()
    assert f"model={json.dumps(out.name)}".replace("<", "\\u003c") in card
    assert publish(out, "org/name", dry_run=True, base_model="org/base").files
    page = (out / "report.html").read_text()
    assert "<img src=x" not in page and "<b>" not in page and "&lt;img src=x" in page
