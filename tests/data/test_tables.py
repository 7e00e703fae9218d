"""Names of splits and patients as people write them, in folders, columns and data sets."""

import logging
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest

import retfound_hf
from retfound_hf.data import parquet, tables
from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.labels import find_patients
from retfound_hf.data.splits import FILLERS, SPLITS, normalise_split, splits_of
from retfound_hf.data.tables import TABLE_SUFFIXES, check_spelling, check_split_column
from retfound_hf.errors import BadDataError
from retfound_hf.vocabulary import known_order


def refused(data, **options):
    with pytest.raises(BadDataError) as error:
        read_labelled(data, **options)
    return error.value


def patients_divided(table: pd.DataFrame) -> int:
    return int((table["split"].groupby(table["id"].str.extract(r"(p\d+)")[0]).nunique() > 1).sum())


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["Training", "Testing"], ["train", "test"]),
        (["Training400", "Validation400", "Test400"], ["train", "val", "test"]),
        (["Training_Set", "Evaluation_Set", "Test_Set"], ["train", "val", "test"]),
        (["TrainingSet", "EvaluationSet"], ["train", "test"]),
        (["training", "val", "eval"], ["train", "val", "test"]),
        (["a. Training Set", "b. Testing Set"], ["train", "test"]),
        (["01_TRAIN", "02-valid", "03.test"], ["train", "val", "test"]),
        (["train_images", "test-data"], ["train", "test"]),
        (["trainset", "dev", "hold-out"], ["train", "val", "test"]),
        (["REFUGE-Training400", "REFUGE-Test400"], ["train", "test"]),
        (["Train", "Internal_Validation", "External_Test"], ["train", "val", "test"]),
        (["train.csv", "te"], ["train", "test"]),
        (["derivation", "Blind_Test"], ["train", "test"]),
        (["healthy", "trained eye", "latest", "value", "external", "public"], []),
    ],
)
def test_names_of_splits(names, expected):
    assert list(splits_of(names).values()) == expected


@pytest.mark.parametrize("names", [("Training", "val_set", "Testing"), ("X-Train", "X-Val", "X-Test")])
def test_split_folders_of_other_names(class_folder, names):
    for split, name in zip(SPLITS, names, strict=True):
        (class_folder / split).rename(class_folder / name)
    (class_folder / "metadata.csv").unlink()
    found = read_labelled(str(class_folder))
    assert found.class_names == ("amd", "dme", "healthy")
    assert found.counts().to_dict("list") == {"train": [4] * 3, "val": [2] * 3, "test": [2] * 3}


def test_splits_within_the_folders_of_classes(class_folder):
    (class_folder / "metadata.csv").unlink()
    for path in list(class_folder.glob("*/*/*.png")):
        target = class_folder / path.parent.name / path.parent.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        path.rename(target)
    for split in SPLITS:
        for folder in (class_folder / split).iterdir():
            folder.rmdir()
        (class_folder / split).rmdir()
    assert read_labelled(str(class_folder)).counts().sum().tolist() == [12, 6, 6]
    (class_folder / "amd/test/p10_L.png").rename(class_folder / "amd/p10_L.png")
    assert refused(str(class_folder)).rows == ("amd/p10_L.png",)


@pytest.mark.parametrize("names", [["fold1", "fold2", "fold3"], ["Train", "Test", "Val"], ["development", "val"]])
def test_splits_are_no_classes(images, save_table, names):
    refused(save_table(images.assign(label=np.resize(names, 24))))


@pytest.mark.parametrize("parts", [("Entrenamiento", "Prueba"), ("训练集", "测试集"), ("set1", "set2")])
def test_folders_that_share_their_folders_may_be_parts(class_folder, caplog, parts):
    """Unless their names are known, or say left and right; a warning where the shared ones may be patients."""
    (class_folder / "metadata.csv").unlink()
    (class_folder / "test").rename(class_folder / parts[1])
    shutil.rmtree(class_folder / "val")
    (class_folder / "train").rename(class_folder / parts[0])
    assert refused(str(class_folder)).source == str(class_folder)
    assert len(read_labelled(str(class_folder), class_names=parts).table) == 18
    for old, new in (("amd", "left"), ("dme", "right"), ("healthy", "left/more")):
        for part in parts:
            (class_folder / part / old).rename(class_folder / part / new)
    assert set(read_labelled(str(class_folder)).class_names) == set(parts) and "same folders" not in caplog.text
    for part in parts:
        (class_folder / part / "left").rename(class_folder / part / "1")
        (class_folder / part / "right").rename(class_folder / part / "2")
    read_labelled(str(class_folder))
    assert "same folders (1, 2)" in caplog.text


def test_folders_of_patients_bring_a_warning(images, save_table, tmp_path, caplog):
    table = images.drop(columns=["patient_id", "eye"]).assign(image=[f"{n // 4}/{n}x.png" for n in range(24)])
    for name, old in zip(table["image"], images["image"], strict=True):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / old).rename(tmp_path / name)
    read_labelled(save_table(table.assign(label=["a", "b"] * 12)))
    assert "6 folders" in caplog.text and "patient_id" in caplog.text


def test_a_folder_that_holds_the_set(class_folder, tmp_path):
    (tmp_path / "outer").mkdir()
    class_folder.rename(tmp_path / "outer/images")
    assert str(tmp_path / "outer/images") in str(refused(str(tmp_path / "outer")))


@pytest.mark.parametrize("column", ["Split", "set", "Usage", "outer_fold", "Data Split", "cv", "tvt", "group"])
def test_splits_in_a_column_of_another_name(divided, save_table, column):
    table = save_table(divided.rename(columns={"split": column}))
    assert refused(table).source == table
    read_labelled(table, need_splits=())
    spelled = divided.assign(split=divided["split"].map({"train": "Training", "val": "Evaluation", "test": "Test"}))
    assert read_labelled(save_table(spelled)).counts().sum().tolist() == [12, 6, 6]


@pytest.mark.parametrize("column", ["is_test", "isTrain", "istest", "used_train", "test", "in_validation_set"])
def test_flags_of_a_split(images, save_table, column):
    for values in ([True, False], [0, 1], ["Y", "N"]):
        refused(save_table(images.assign(**{column: values * 12})))
    read_labelled(save_table(images.assign(**{column: range(24)})))


def test_columns_that_hold_no_split(images, save_table):
    found = read_labelled(save_table(images.assign(set=["clinic A", "clinic B"] * 12, group=range(24))))
    assert len(found.table) == 24


@pytest.mark.parametrize("header", ["patient_id ", " split", "label\t"])
def test_blanks_around_headers(divided, save_table, header):
    for name in ("table.csv", "table.parquet"):
        found = read_labelled(save_table(divided.rename(columns={header.strip(): header}), name))
        assert found.patients_known and found.counts().sum().tolist() == [12, 6, 6]


@pytest.mark.parametrize("name", ["id", "ID", "f.eid", "MRN", "PID", "Study ID", "SEQN", "患者ID", "case"])
def test_patients_in_a_column_of_any_name(images, save_table, name):
    data = save_table(images.rename(columns={"patient_id": name}))
    assert refused(data).source == data
    assert patients_divided(read_labelled(data, patient_column=name).table) == 0
    assert not read_labelled(data, patient_column="none").patients_known
    read_labelled(save_table(images.drop(columns="patient_id").assign(**{name: range(24)})))  # names of the images


def test_patients_told_by_pairs(images, save_table, tmp_path, caplog):
    pairs = images.drop(columns=["patient_id", "eye"])
    read_labelled(save_table(pairs))
    assert "patient_column='image'" in caplog.text
    found = read_labelled(save_table(pairs), patient_column="image")
    assert patients_divided(found.table) == 0 and found.table["patient_id"].nunique() == 12
    caplog.clear()
    for number, name in enumerate(pairs["image"]):
        (tmp_path / name).rename(tmp_path / f"i{number}x.png")
    numbers = pairs.assign(visitor=images["patient_id"], image=[f"i{number}x.png" for number in range(24)])
    read_labelled(save_table(numbers))
    assert "patient_column='visitor'" in caplog.text
    caplog.clear()
    rng = np.random.default_rng(0)
    fours = numbers.assign(visitor=[f"v{number // 4}" for number in range(24)], age=rng.integers(50, 56, 24))
    read_labelled(save_table(fours))
    assert "patient_column='visitor'" in caplog.text and "'age'" not in caplog.text


def test_one_line_says_by_what_images_are_split(images, save_table, caplog):
    with caplog.at_level(logging.INFO):
        read_labelled(save_table(images))
    assert "by patient: 24 images, 12 patients" in caplog.text
    with caplog.at_level(logging.INFO):
        read_labelled(save_table(images), patient_column="none")
    assert "by image" in caplog.text


@pytest.mark.parametrize(
    "write",
    [
        lambda number, again: f"{number:03d}" if again else str(number),
        lambda number, again: f"{'P' if again else 'p'}{number:02d}",
        lambda number, again: f"{number}.0" if again else str(number),
        lambda number, again: f"P-{number:02d}" if again else f"P{number}",
        lambda number, again: f"pat {number}" if again else f"pat  {number}",
    ],
)
def test_one_patient_written_in_two_ways(images, save_table, write):
    names = [write(index // 2 + 1, index % 2) for index in range(24)]
    assert sorted(refused(save_table(images.assign(patient_id=names))).rows) == sorted(set(names))


def test_ids_that_are_alike_but_different(images, save_table):
    for names in (["1-1", "11", "1.1"], ["A1", "B1", "1"], ["10", "100", "1"]):
        ids = [names[index // 2 % 3] if index < 6 else f"Q{index // 2}" for index in range(24)]
        assert read_labelled(save_table(images.assign(patient_id=ids)), need_splits=()).patients_known


@pytest.mark.parametrize("placeholder", ["unknown", "-", "?", "N.A.", "Missing", "1.23E+09", "0", "999", "-1"])
def test_ids_that_are_no_patients(images, save_table, placeholder, caplog):
    ids = images["patient_id"].where(images.index >= 9, placeholder)
    found = read_labelled(save_table(images.assign(patient_id=ids)))
    assert found.table["patient_id"].isna().sum() == 9
    assert placeholder in caplog.text


def test_a_patient_with_many_images(images, save_table, caplog):
    ids = images["patient_id"].where(images.index >= 12, "clinic")
    found = read_labelled(save_table(images.assign(patient_id=ids)))
    assert found.patients_known and "'clinic'" in caplog.text


def test_validation_from_train_by_patient(divided, save_table):
    table = divided.assign(split=divided["split"].replace("val", "train"))
    found = read_labelled(save_table(table), split_fractions=(0.5, 0.25, 0.25))
    assert found.table["split"].value_counts().to_dict() == {"train": 12, "val": 6, "test": 6}
    assert patients_divided(found.table) == 0
    assert set(found.rows("test")["id"]) == set(divided.loc[divided["split"] == "test", "image"])
    again = read_labelled(save_table(table), split_fractions=(0.5, 0.25, 0.25), need_splits=("val",))
    assert list(again.rows("val")["id"]) == list(found.rows("val")["id"])


def test_splits_of_a_data_set_by_other_names(divided, tmp_path, monkeypatch):
    columns = {"image": [str(tmp_path / name) for name in divided["image"]], "label": divided["label"].tolist()}
    whole = datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image())
    parts = datasets.DatasetDict(
        {name: whole.select(divided.index[divided["split"] == split].tolist())
         for split, name in (("train", "training"), ("val", "evaluation"), ("test", "testing"))}
    )  # fmt: skip
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts)
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: SimpleNamespace(cache_dir=tmp_path))
    found = read_labelled("someone/retinas", image_root=str(tmp_path))
    assert found.counts().sum().tolist() == [12, 6, 6]


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_tables_of_a_million_columns_are_refused(tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(parquet if suffix == "parquet" else tables, "MOST_COLUMNS", 50)
    wide = pd.DataFrame([[1] * 51], columns=[str(number) for number in range(51)])
    path = tmp_path / f"wide.{suffix}"
    wide.to_csv(path, index=False) if suffix == "csv" else wide.to_parquet(path)
    with pytest.raises(BadDataError) as error:
        read_labelled(str(path))
    assert error.value.source == str(path)


@pytest.mark.parametrize("name", ["a\n# b", "a\x1b[31m", "a\u2028b", "a\u202eb"])
def test_classes_with_control_characters_are_refused(name):
    check_spelling(["a", "b c", "糖\xa0尿"], "table.csv")
    with pytest.raises(BadDataError) as error:
        check_spelling(["a", name], "table.csv")
    assert error.value.rows == (name,) and "\n" not in str(error.value)


def cells(what: str, number: int) -> list[str]:
    """Words in code type of a cell of the guide's table of what is read how, without options."""
    guide = (Path(retfound_hf.__file__).parent / "data/README.md").read_text(encoding="utf-8")
    (line,) = [line for line in guide.splitlines() if line.startswith(f"| {what}")]
    return [word for word in re.findall("`(.+?)`", line.split(" | ")[number]) if not word.startswith("--")]


def test_the_guide_names_what_the_code_knows():
    assert all(normalise_split(word) or word in FILLERS for word in cells("names of splits", 1))
    images = pd.DataFrame({"id": [f"{number}x.png" for number in range(8)]})
    for name in cells("column of splits", 2):
        with pytest.raises(BadDataError):
            check_split_column(images.assign(**{name: [0, 1] * 4 if "_" in name else ["train", "test"] * 4}), (), "t")
    for name in cells("column of patients", 2):
        if "_" not in name:
            with pytest.raises(BadDataError):
                find_patients(images.assign(**{name: [*"abcd"] * 2}), (), None, "t")
    unknown = cells("ids of patients", 1)
    assert find_patients(images.head(len(unknown)).assign(patient_id=unknown), (), None, "t").isna().all()
    spelled = cells("ids of patients", 2)
    for pair in zip(spelled[::2], spelled[1::2], strict=True):
        with pytest.raises(BadDataError):
            find_patients(images.head(2).assign(patient_id=pair), (), None, "t")
    findings = {"GON-": "GON+", "NDR": "DR", "unreferable": "referable", "0": "1"}
    for name in cells("finding of two classes", 1):
        assert known_order([findings.get(name, "glaucoma"), name])[0] == name
    for suffix in TABLE_SUFFIXES:
        assert suffix[1:] in (Path(retfound_hf.__file__).parent / "data/README.md").read_text().lower()
