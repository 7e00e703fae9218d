"""Published contents: nothing private, no path of this machine, the licence, complete cards, true figures."""

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageClassification

from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError
from retfound_hf.hub.contents import FROM_BASE, read_card, read_contents
from retfound_hf.hub.publish import main, publish, staged


def refused(folder, **options) -> str:
    with pytest.raises(BadModelError) as error:
        publish(folder, "org/name", dry_run=True, **options)
    return str(error.value)


@pytest.mark.parametrize("name", ["base", "classifier"])
def test_what_the_commands_make_passes_offline(workshop, name):
    before = {path: path.stat().st_mtime_ns for path in (workshop / name).rglob("*")}
    published = publish(workshop / name, "org/name", dry_run=True)
    assert published.url is None
    size = (workshop / name / "model.safetensors").stat().st_size
    assert published.files["model.safetensors"] == size and f"{size / 1e3:.2f} kB" in str(published)
    assert {"modeling_retfound.py", "README.md", "config.json"} <= set(published.files)
    assert {path: path.stat().st_mtime_ns for path in (workshop / name).rglob("*")} == before


def test_names_of_patients_and_paths_are_left_out(workshop, capsys):
    main([str(workshop / "classifier"), "--repo_id", "org/name", "--dry_run"])
    assert "left out (paths of this machine): run.json" in capsys.readouterr().out
    published = publish(workshop / "classifier", "org/name", dry_run=True)
    assert capsys.readouterr().out == ""
    private = {"predictions.csv", "splits.csv", "validation/predictions.csv", "run.json"}
    assert private <= set(published.left_out) and not private & set(published.files)


def test_links_and_leftovers_are_left_out(folder, tmp_path):
    """A link of any name may lead to any file, and a hidden one may be half of a picture."""
    place = folder("classifier")
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "roc.pdf").write_text("secret")
    links = dict.fromkeys(["LICENSE-x", "plots/roc.pdf", "calibration.csv"], secret / "roc.pdf")
    links["LICENSE-gone"] = secret / "gone"
    for name, target in links.items():
        (place / name).unlink(missing_ok=True)
        (place / name).symlink_to(target)
    (place / "validation" / "plots").rename(tmp_path / "plots")
    (place / "validation" / "plots").symlink_to(tmp_path / "plots")
    left = ["plots/.roc-x1y2z3.png", "plots/patient-7.png", ".config.json-abc", ".partial-1/metrics.json",
            "validation/.metrics-1.json", ".publish-1/README.md", "LICENSE~", "LICENSE.tmp"]  # fmt: skip
    for name in left:
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("half")
    published = publish(place, "org/name", dry_run=True)
    assert not {*links, *left} & set(published.files) and {*links, *left} <= set(published.left_out)
    assert not [name for name in published.files if name.startswith("validation/plots/")]
    assert {"plots/roc.png", "metrics.json"} <= set(published.files)
    with staged(read_contents(place), "org/name") as stage:
        assert not [path for path in stage.rglob("*") if path.is_symlink()]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "README.md"])
def test_a_model_of_links_is_refused(folder, tmp_path, name):
    place = folder("base")
    (place / name).rename(tmp_path / "elsewhere")
    (place / name).symlink_to(tmp_path / "elsewhere")
    assert name in refused(place)


@pytest.mark.parametrize("missing", ["config.json", "preprocessor_config.json", "README.md", "model.safetensors"])
def test_a_missing_file_is_named(folder, missing):
    place = folder("classifier")
    (place / missing).unlink()
    assert missing in refused(place)


def test_what_trainer_leaves_beside_the_model_is_left_out(folder):
    """Its pickles say nothing of the model; weights in a pickle are refused still."""
    place = folder("classifier")
    left = {"training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "trainer_state.json"}
    for name in left:
        torch.save({}, place / name)
    published = publish(place, "org/name", dry_run=True)
    assert left <= set(published.left_out) and not left & set(published.files)
    torch.save({}, place / "head.pt")
    assert "head.pt" in refused(place)


def test_the_blank_form_of_peft_gives_way_to_a_card_of_what_is_known(workshop, tmp_path, caplog):
    """A form with a line of somebody's own does not: it is to be filled in."""
    base, place = str(workshop / "base"), tmp_path / "by-peft"
    model = AutoModelForImageClassification.from_pretrained(base, num_labels=3)
    options = {"r": 4, "target_modules": ["query", "value"], "modules_to_save": ["fc_norm", "classifier"]}
    get_peft_model(model, LoraConfig(**options)).save_pretrained(place)
    form = (place / "README.md").read_text()
    assert "[More Information Needed]" in form and set(FROM_BASE).isdisjoint(path.name for path in place.iterdir())
    assert "README.md" in publish(place, "org/mine", dry_run=True, base_model="org/base").files
    assert "README.md" in caplog.text and (place / "README.md").read_text() == form
    with staged(read_contents(place), "org/mine", "org/base") as stage:
        metadata, text = read_card(stage)
    assert (metadata["license"], metadata["base_model"], metadata["library_name"]) == (
        "cc-by-nc-4.0", "org/base", "peft"
    )  # fmt: skip
    assert (
        "of rank 4 on query, value" in text
        and "LABEL_0, LABEL_1, LABEL_2" in text
        and 'load_classifier("org/mine")' in text
    )
    assert str(tmp_path) not in text and str(workshop) not in text
    own = form.replace("by:** [More Information Needed]", "by:** me").replace(
        "peft\n", "peft\nlicense: cc-by-nc-4.0\n", 1
    )
    (place / "README.md").write_text(own)
    assert "[More Information Needed]" in refused(place, base_model="org/base")


def test_pickles_and_damaged_weights_are_refused(folder):
    place = folder("base")
    torch.save({}, place / "pytorch_model.bin")
    assert "pytorch_model.bin" in refused(place)
    (place / "pytorch_model.bin").unlink()
    weights = place / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged" in refused(place)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "run.json"])
@pytest.mark.parametrize("content", ["{", "[]", "null"])
def test_json_that_holds_no_settings_is_refused(folder, change_json, name, content):
    place = folder("classifier")
    change_json(place / "config.json", weights_license=None)  # so that the record is asked
    (place / name).write_text(content)
    assert name in refused(place)


@pytest.mark.parametrize("name", ["base", "classifier"])
@pytest.mark.parametrize("stated", ["license: apache-2.0\n", ""])
def test_the_licence_cannot_be_dropped(folder, name, stated):
    place = folder(name)
    card = place / "README.md"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", stated))
    assert "cc-by-nc-4.0" in refused(place)


def test_the_licence_is_known_by_the_base_too(folder, change_json):
    place = folder("base")
    change_json(place / "config.json", weights_license=None)
    card = place / "README.md"
    text = card.read_text().replace("license: cc-by-nc-4.0\n", "license: mit\n")
    card.write_text(text)
    publish(place, "org/name", dry_run=True)  # nothing states another
    card.write_text(text.replace("license: mit\n", "license: mit\nbase_model: YukunZhou/RETFound_mae_natureCFP\n"))
    for base_model in (None, "org/mine", "YukunZhou/RETFound_mae_meh"):
        assert "made from YukunZhou/RETFound" in refused(place, base_model=base_model)
    card.write_text(text)
    (place / "run.json").write_text(json.dumps({"arguments": {"model_name_or_path": "YukunZhou/RETFound_mae_meh"}}))
    assert "made from YukunZhou/RETFound_mae_meh" in refused(place)
    (place / "run.json").unlink()
    card.write_text(text.replace("license: mit\n", ""))
    assert "license" in refused(place)


def test_the_licence_of_a_wrapped_encoder_holds(stock_workshop, monkeypatch, tmp_path):
    place = Path(shutil.copytree(stock_workshop / "classifier", tmp_path / "classifier"))
    card = place / "README.md"
    assert "license: cc-by-nc-4.0\n" in card.read_text()
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", "license: apache-2.0\n"))
    (place / "run.json").unlink()  # the configuration alone states it
    monkeypatch.chdir(tmp_path)
    for base_model in (None, "org/mine"):
        assert "weights_license" in refused(place, base_model=base_model)


def test_an_adapter_names_a_base_that_others_can_load(workshop):
    assert "base_model" in refused(workshop / "adapter")
    published = publish(workshop / "adapter", "org/name", dry_run=True, base_model="org/base")
    assert "adapter_model.safetensors" in published.files


def test_an_adapter_on_another_class_of_weights_is_refused(stock_workshop):
    """Auto classes would load it from the Hub into the class of its base, under another head."""
    base = str(stock_workshop / "base")
    assert base in refused(stock_workshop / "adapter", base_model="org/base")


@pytest.mark.parametrize("name", ["name", "a/b/c", "https://hub/org/name", "org/na me"])
def test_a_bad_name_is_refused(workshop, name):
    with pytest.raises(BadArgumentError) as error:
        publish(workshop / "base", name, dry_run=True)
    assert (error.value.field, error.value.value) == ("repo_id", name)


HEADER = "column,group,rows,metric,value,low,high,n,undefined,p_value"
ROWS = [
    "patient_id,p017,4,auroc,0.9,,,1,0,", "patient_id,p018,4,auroc,,,,1,1,", "camera,A,40,auroc,0.8,0.7,0.9,10,0,",
    "camera,B,36,auroc,0.7,0.6,0.8,9,0,", "camera,B2,80,auroc,0.6,0.5,0.7,20,0,",
    "camera,A - B,156,auroc,0.1,0.0,0.2,39,0,0.04", "camera,A - B2,156,auroc,0.2,0.1,0.3,39,0,0.04",
]  # fmt: skip


@pytest.mark.parametrize("name", ["subgroups.csv", "validation/subgroups.csv"])
@pytest.mark.parametrize("rows", [ROWS, [ROWS[2], ROWS[4], ROWS[6]]])
def test_small_groups_and_gaps_to_them_are_not_sent(folder, name, rows):
    place = folder("classifier")
    table = "\n".join([HEADER, *rows]) + "\n"
    (place / name).write_text(table)
    with staged(read_contents(place), "org/name") as stage:
        sent = list(csv.DictReader((stage / name).open(encoding="utf-8")))
        assert len(rows) == len(ROWS) or (stage / name).read_text() == table
    assert [row["group"] for row in sent] == ["A", "B2", "A - B2"]
    assert (place / name).read_text() == table


@pytest.mark.parametrize("header", [HEADER.replace(",n,", ",patients,"), HEADER.replace("group", "name")])
def test_a_table_without_the_number_of_patients_is_refused(folder, header):
    place = folder("classifier")
    (place / "subgroups.csv").write_text("\n".join([header, *ROWS]) + "\n")
    with pytest.raises(BadDataError) as error:
        publish(place, "org/name", dry_run=True)
    assert error.value.source == str(place / "subgroups.csv")


def test_a_card_that_shows_a_small_group_is_refused(folder):
    place = folder("classifier")
    (place / "validation" / "subgroups.csv").write_text("\n".join([HEADER, *ROWS]) + "\n")
    publish(place, "org/name", dry_run=True)
    card = place / "README.md"
    table = "## Limits\n\n| by | group | patients | metric | value |\n| --- | --- | ---: | --- | ---: |\n"
    card.write_text(card.read_text().replace("## Limits\n", f"{table}| patient_id | p017 | 1 | AUROC | 0.900 |\n", 1))
    assert "p017" in refused(place)
    card.write_text(card.read_text().replace("| p017 |", "| X |").replace("| patient_id | X", "| camera | A - B"))
    assert "A - B" in refused(place)


def texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from texts_in(item)
    elif isinstance(value, str):
        yield value


@pytest.mark.parametrize("place", ["workshop", "stock_workshop"])
@pytest.mark.parametrize("name", ["classifier", "adapter"])
def test_no_path_of_this_machine_is_sent(request, place, name):
    place = request.getfixturevalue(place)
    with staged(read_contents(place / name), "org/name", "org/base") as stage:
        found = {str(path.relative_to(stage)): json.loads(path.read_text()) for path in stage.rglob("*.json")}
        assert {"config.json", "preprocessor_config.json", "metrics.json"} <= set(found)
        texts = list(texts_in(found))
        assert not [text for text in texts if str(place) in text or Path(text).is_absolute()]
        for path in (*stage.glob("*.md"), *stage.glob("*.csv"), *stage.glob("*.py")):
            assert str(place) not in path.read_text(), path.name


@pytest.mark.parametrize("name", ["classifier", "adapter"])
def test_paths_that_a_folder_holds_already_are_left_out(stock_workshop, name, change_json, tmp_path):
    place = Path(shutil.copytree(stock_workshop / name, tmp_path / name))
    nested = json.loads((place / "config.json").read_text())["encoder_config"]
    assert not nested.get("_name_or_path")
    within = nested | {"_name_or_path": "secret/base"}
    change_json(place / "config.json", encoder_config=within, _name_or_path="secret")
    with staged(read_contents(place), "org/name", "org/base") as stage:
        config = json.loads((stage / "config.json").read_text())
    assert "secret" not in json.dumps(config)
    assert {**config["encoder_config"], "_name_or_path": ""} == {**nested, "_name_or_path": ""}


@pytest.mark.parametrize("name", ["base", "classifier", "adapter"])
@pytest.mark.parametrize("renamed", ["another", "image-classification"])
def test_the_snippets_of_a_renamed_folder_load_what_is_published(workshop, tmp_path, name, renamed):
    place = Path(shutil.copytree(workshop / name, tmp_path / renamed))
    card = place / "README.md"
    card.write_text(
        f"{card.read_text()}\n`AutoModel.from_pretrained('{name}')`, not `from_pretrained(\"org/other\")`.\n"
    )
    before = card.read_text()
    with staged(read_contents(place), "org/name", "org/base") as stage:
        text = (stage / "README.md").read_text()
    loads = re.compile(r"""(?:from_pretrained\((?:model, )?|load_\w+\(|model=)["']([^"']+)["']""")
    expected = ["org/other" if found == "org/other" else "org/name" for found in loads.findall(before)]
    assert len(expected) > 3 and loads.findall(text) == expected
    assert text.count('pipeline("image-classification"') == before.count('pipeline("image-classification"')


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
