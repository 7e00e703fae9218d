"""The folder that is uploaded holds nothing of the machine it was made on."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retfound_hf import RetFoundError
from retfound_hf.hub.contents import read_contents
from retfound_hf.hub.publish import publish, staged


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
    contents = read_contents(place / name)
    with staged(contents, "org/name", "org/base") as stage:
        found = {str(path.relative_to(stage)): json.loads(path.read_text()) for path in stage.rglob("*.json")}
        assert {"config.json", "preprocessor_config.json", "metrics.json"} <= set(found)
        texts = list(texts_in(found))
        assert not [text for text in texts if str(place) in text or Path(text).is_absolute()]
        for path in (*stage.glob("*.md"), *stage.glob("*.csv"), *stage.glob("*.py")):
            assert str(place) not in path.read_text(), path.name


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


def test_the_licence_of_a_nested_encoder_holds(stock_workshop, monkeypatch, tmp_path):
    place = Path(shutil.copytree(stock_workshop / "classifier", tmp_path / "classifier"))
    card = place / "README.md"
    assert "license: cc-by-nc-4.0\n" in card.read_text()
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", "license: apache-2.0\n"))
    (place / "run.json").unlink()  # where nothing but the configuration tells
    monkeypatch.chdir(tmp_path)
    for base_model in (None, "org/mine"):
        with pytest.raises(RetFoundError, match=r"the weights carry on cc-by-nc-4\.0, since config.json says so"):
            publish(place, "org/name", dry_run=True, base_model=base_model)


def test_a_stated_base_takes_no_other_away(folder, change_json):
    place = folder("base")
    change_json(place / "config.json", weights_license=None)
    card = place / "README.md"
    metadata = "license: mit\nbase_model: YukunZhou/RETFound_mae_natureCFP\n"
    card.write_text(card.read_text().replace("license: cc-by-nc-4.0\n", metadata))
    for base_model in ("org/mine", "YukunZhou/RETFound_mae_meh"):
        with pytest.raises(RetFoundError, match=r"carry on cc-by-nc-4\.0, since it is made from YukunZhou/RETFound"):
            publish(place, "org/name", dry_run=True, base_model=base_model)
