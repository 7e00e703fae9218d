import itertools
import json
import re
from pathlib import Path

import pytest
from tiny import save_noise

from retfound_hf.data import public_sets
from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.public_sets import check_copy, main, recipe, recipes
from retfound_hf.errors import BadArgumentError, BadDataError

SPLITS = ("train", "val", "test")


@pytest.fixture
def copy(tmp_path):
    """A copy of PAPILA's layout with two images of noise in each class folder."""
    folder = tmp_path / "PAPILA"
    for seed, (split, name, number) in enumerate(itertools.product(SPLITS, recipe("PAPILA").classes, range(2))):
        save_noise(folder / split / name / f"RET{number}.jpg", seed, (80, 70))
    return folder


def problems(folder, **options):
    return check_copy(recipe("PAPILA"), folder, **options).problems


def test_a_whole_copy_has_no_problems(copy):
    report = check_copy(recipe("PAPILA"), copy)
    assert report.problems == report.notes == []
    assert {key: len(images) for key, images in report.images.items()} == {
        (split, name): 2 for split in SPLITS for name in recipe("PAPILA").classes
    }
    assert set(read_labelled(str(copy)).class_names) == set(recipe("PAPILA").classes)


def test_missing_and_misnamed_folders(copy):
    (copy / "val").rename(copy / "validation")
    (copy / "train/anormal").rename(copy / "train/A_Normal")
    (copy / "train/cglaucoma").rename(copy / "train/glaucoma")
    (copy / "test/bsuspectglaucoma").rename(copy / "elsewhere")
    (copy / "test/leftovers").mkdir()
    assert problems(copy) == [
        "train/anormal is missing: train/A_Normal looks like it, rename it",
        "train/cglaucoma is missing: train/glaucoma looks like it, rename it",
        "folder val is missing: rename validation to it",
        "test/bsuspectglaucoma is missing",
        "test/leftovers is no class of PAPILA; remove it",
    ]


def test_empty_folders_and_unreadable_images(copy):
    for path in (copy / "val/anormal").iterdir():
        path.unlink()
    (copy / "train/anormal/RET0.jpg").write_bytes(b"")
    whole = (copy / "train/anormal/RET1.jpg").read_bytes()
    (copy / "train/anormal/RET1.jpg").write_bytes(whole[: len(whole) // 2])
    (copy / "test/anormal/RET0.jpg").write_text("<html>quota exceeded</html>")
    found = problems(copy)
    assert found[0] == "val/anormal holds no image"
    assert found[1] == "train/anormal/RET0.jpg cannot be read: the file is empty"
    assert found[2].startswith("train/anormal/RET1.jpg cannot be read: the file is truncated")
    assert found[3] == "test/anormal/RET0.jpg cannot be read: it is not an image in a format that Pillow knows"
    assert problems(copy, read=False) == found[:1]


def test_images_that_are_there_twice(copy):
    train, test = copy / "train", copy / "test"
    (test / "anormal/copy.jpg").write_bytes((train / "anormal/RET0.jpg").read_bytes())
    (train / "cglaucoma/copy.jpg").write_bytes((train / "anormal/RET1.jpg").read_bytes())
    (train / "cglaucoma/again.jpg").write_bytes((train / "cglaucoma/RET1.jpg").read_bytes())
    report = check_copy(recipe("PAPILA"), copy)
    assert report.problems == [
        "one image is in several splits: test/anormal/copy.jpg = train/anormal/RET0.jpg",
        "one image is in several classes: train/anormal/RET1.jpg = train/cglaucoma/copy.jpg",
    ]
    assert report.notes == ["one image is there 2 times: train/cglaucoma/RET1.jpg = train/cglaucoma/again.jpg"]


def test_other_files_are_noted(copy):
    (copy / "train/readme.txt").write_text("x")
    (copy / "train/anormal/Thumbs.db").write_text("x")
    (copy / "train/anormal/.hidden").write_text("x")
    report = check_copy(recipe("PAPILA"), copy)
    assert report.problems == []
    assert report.notes == [
        "train holds 1 file(s) outside its classes (readme.txt)",
        "train/anormal holds 1 file(s) that are no images",
    ]


def test_the_wrong_folder(copy):
    for folder, pattern in ((copy.parent, str(copy)), (copy / "nothing", "PAPILA is at https://drive")):
        with pytest.raises(BadDataError, match=pattern) as error:
            problems(folder)
        assert error.value.source == str(folder)


def test_command(copy, tmp_path, capsys):
    main(["papila", str(copy), "--output_dir", str(tmp_path / "report")])
    said = capsys.readouterr().out
    assert said.startswith("PAPILA: glaucoma, 3 grades (CFP); licence: ")
    assert "  anormal                2       2       2  healthy\n" in said
    assert said.endswith("is as it should be\n")
    report = json.loads((tmp_path / "report/report.json").read_text())
    assert report["images"]["val"] == {"anormal": 2, "bsuspectglaucoma": 2, "cglaucoma": 2}
    assert json.loads((tmp_path / "report/run.json").read_text())["problems"] == 0
    (copy / "val/anormal/RET0.jpg").write_bytes(b"")
    with pytest.raises(BadDataError) as error:
        main(["PAPILA", str(copy)])
    assert error.value.rows == ("val/anormal/RET0.jpg cannot be read: the file is empty",)
    assert "val/anormal/RET0.jpg cannot be read: the file is empty" in capsys.readouterr().out


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
    # The official code takes the sorted order of folder names as the order of the classes.
    assert list(found.classes) == sorted(found.classes)
    assert len({re.sub(r"\W", "", folder.casefold()) for folder in found.classes}) == len(found.classes)


@pytest.mark.parametrize("name", ["idrid", "IDRID", "Idrid", "glaucoma-fundus", "aptos 2019", "messidor-2"])
def test_names_in_any_spelling(name):
    assert recipe(name).name in ("IDRiD", "Glaucoma_fundus", "APTOS2019", "MESSIDOR2")


def test_an_unknown_name():
    with pytest.raises(BadArgumentError) as error:
        recipe("aptos")
    assert error.value.value == "aptos" and set(error.value.accepted) == set(recipes())


def test_the_guide_names_them_all():
    guide = (Path(public_sets.__file__).parent / "README.md").read_text(encoding="utf-8")
    assert all(name in guide for name in recipes())
