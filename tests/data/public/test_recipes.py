import re
from pathlib import Path

import pytest

from retfound_hf.data.public_sets import recipe, recipes
from retfound_hf.errors import RetFoundError

README = (Path(__file__).parents[3] / "retfound_hf/data/README.md").read_text(encoding="utf-8")


def test_the_eight_sets_with_their_numbers_of_classes():
    assert {name: len(found.classes) for name, found in recipes().items()} == {
        "APTOS2019": 5, "MESSIDOR2": 5, "IDRiD": 5, "PAPILA": 3, "Glaucoma_fundus": 3, "JSIEC": 39, "Retina": 4,
        "OCTID": 5,
    }  # fmt: skip
    assert [name for name, found in recipes().items() if found.modality == "oct"] == ["OCTID"]


@pytest.mark.parametrize("name", recipes())
def test_every_recipe_is_whole(name):
    found = recipe(name)
    assert found.task and found.site.startswith("https://") and found.split.startswith("https://")
    assert all(folder.strip() == folder and meaning for folder, meaning in found.classes.items())
    # What the official code does with folder names: their sorted order is the order of the classes.
    assert list(found.classes) == sorted(found.classes)
    assert len({re.sub(r"\W", "", folder.casefold()) for folder in found.classes}) == len(found.classes)


@pytest.mark.parametrize("name", ["idrid", "IDRID", "Idrid", "glaucoma-fundus", "aptos 2019", "messidor-2"])
def test_names_in_any_spelling(name):
    assert recipe(name).name in ("IDRiD", "Glaucoma_fundus", "APTOS2019", "MESSIDOR2")


def test_the_readme_names_them_all():
    section = README.split("## Public data sets")[1].split("\n## ")[0]
    assert all(name in section for name in recipes())


def test_an_unknown_name():
    with pytest.raises(
        RetFoundError, match="data set 'aptos' is unknown; did you mean aptos2019\\?; accepted: APTOS2019"
    ):
        recipe("aptos")
