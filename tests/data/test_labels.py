"""Label columns and files as people have them: order of grades, lists, numbers, names without suffix, encodings."""

import logging

import datasets
import numpy as np
import pandas as pd
import pytest

from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.stored_images import open_files, open_source
from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.images.reading import read_image

GRADES = ("No DR", "Mild", "Severe")
MULTI = "multi_label_classification"


def refused(data, **options):
    with pytest.raises(BadDataError) as error:
        read_labelled(data, **options)
    return error.value


@pytest.fixture
def save_stored(images, tmp_path):
    """Saves the images with a column of labels of a feature as a data set; returns its folder."""

    def save(values: list, feature, name: str = "stored") -> str:
        features = datasets.Features({"image": datasets.Image(), "labels": feature})
        columns = {"image": [str(tmp_path / path) for path in images["image"]], "labels": values}
        datasets.Dataset.from_dict(columns, features=features).save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    return save


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (["stage 10", "stage 2", "stage 1"], ("stage 1", "stage 2", "stage 10")),
        (["Severe_2", "Healthy_0", "Mild_1"], ("Healthy_0", "Mild_1", "Severe_2")),
        (["grade 2b", "grade 10a", "grade 2a"], ("grade 2a", "grade 2b", "grade 10a")),
        ([1, -1, 0], ("-1", "0", "1")),
        (["Stage III", "Stage I", "Stage II"], ("Stage I", "Stage II", "Stage III")),
    ],
)
def test_order_by_the_numbers_in_names(images, save_table, labels, names):
    assert read_labelled(save_table(images.assign(label=labels * 8))).class_names == names


def test_order_that_the_data_state(images, save_table, save_stored, caplog):
    ordered = images.assign(label=pd.Categorical([*GRADES] * 8, GRADES, ordered=True))
    assert read_labelled(save_table(ordered, "t.parquet")).class_names == GRADES
    label = datasets.ClassLabel(names=[*GRADES, "Never"])
    stored = save_stored([number % 3 for number in range(24)], label)
    with caplog.at_level(logging.INFO):
        found = read_labelled(stored, label_columns=["labels"])
    assert found.class_names == GRADES and "No DR, Mild, Severe" in caplog.text
    text = save_table(images.assign(label=[*GRADES] * 8))
    assert found.class_order == GRADES
    assert read_labelled(text, class_names=GRADES).class_order == GRADES
    assert read_labelled(text).class_order is None
    # Names in the order of the alphabet state none, be they of a folder of classes.
    label = datasets.ClassLabel(names=sorted(GRADES))
    stored = save_stored([number % 3 for number in range(24)], label, "sorted")
    assert read_labelled(stored, label_columns=["labels"]).class_order is None
    refused(text, class_names=GRADES[:2])


@pytest.mark.parametrize(
    ("labels", "options", "order"),
    [
        (["glaucoma", "normal"], {}, ("normal", "glaucoma")),
        (["glaucoma", "normal"], {"class_names": ["glaucoma", "normal"]}, ("normal", "glaucoma")),
        (["glaucoma", "normal"], {"positive_class": "normal"}, ("glaucoma", "normal")),
        (["amd", "dr"], {"class_names": ["dr", "amd"]}, ("dr", "amd")),
        (["amd", "dr"], {"positive_class": "amd"}, ("dr", "amd")),
        (["amd", "dr"], {}, None),
        ([0, 1], {}, ("0", "1")),
    ],
)  # fmt: skip
def test_the_finding_of_two_classes(images, save_table, caplog, labels, options, order):
    table = save_table(images.assign(label=labels * 12))
    with caplog.at_level(logging.INFO):
        assert read_labelled(table, **options).class_order == order
    assert ("no class has a name like normal" in caplog.text) == (order is None)


def test_findings_that_are_none_of_two_classes(images, save_table):
    for labels, finding in ((["amd", "dr"], "AMD"), (["amd", "dr", "normal"], "amd")):
        with pytest.raises(BadArgumentError) as error:
            read_labelled(save_table(images.assign(label=np.resize(labels, 24))), positive_class=finding)
        assert (error.value.field, error.value.value) == ("positive_class", finding)


@pytest.mark.parametrize("values", [range(41, 52), range(12), [10.5, 11.5], [41, 48, 50, 55, 60, 72]])
def test_many_numbers_are_a_question(images, save_table, values):
    table = save_table(images.assign(label=np.resize(list(values), 24)))
    refused(table)
    read_labelled(table, problem_type="regression")
    assert len(read_labelled(save_table(images.assign(label=np.arange(24) % 6))).class_names) == 6


def test_multi_hot_lists(save_stored, images, save_table):
    hot = [[int(number % 3 == place) for place in range(3)] for number in range(24)]
    for feature in (datasets.Sequence(datasets.Value("int64")), datasets.Sequence(datasets.Value("float32"))):
        found = read_labelled(save_stored(hot, feature, str(feature)[:40]), label_columns=["labels"])
        assert (found.problem_type, found.class_names) == (MULTI, ("labels_0", "labels_1", "labels_2"))
    text = save_table(images.assign(label=[str(row) for row in hot]))
    named = read_labelled(text, problem_type=MULTI, class_names=("a", "b", "c"), need_splits=())
    assert named.class_names == ("a", "b", "c")
    assert named.targets("all").sum(axis=0).tolist() == [8, 8, 8]


def test_lists_of_classes(save_stored, images, save_table):
    feature = datasets.Sequence(datasets.ClassLabel(names=["N", "D", "G"]))
    single = read_labelled(save_stored([[n % 3] for n in range(24)], feature, "a"), label_columns=["labels"])
    assert (single.problem_type, set(single.class_names)) == ("single_label_classification", {"N", "D", "G"})
    several = [[[0], [1, 2], [1]][n % 3] for n in range(24)]
    stored = save_stored(several, feature, "b")
    found = read_labelled(stored, label_columns=["labels"])
    assert (found.problem_type, found.class_names) == (MULTI, ("N", "D", "G"))
    assert found.counts().sum(axis=1).to_dict() == {"D": 16, "G": 8, "N": 8}
    model = read_labelled(
        stored, label_columns=["labels"], class_names=("N", "D", "G", "M"), problem_type=MULTI, need_splits=()
    )
    assert model.targets("all").sum(axis=0).tolist() == [8, 16, 8, 0]
    text = save_table(images.assign(label=["['D']", "['D', 'G']", "['N']"] * 8))
    assert read_labelled(text).class_names == ("D", "G", "N")
    with pytest.raises(BadArgumentError) as error:
        read_labelled(text, problem_type="single_label_classification")
    assert error.value.field == "problem_type"
    assert len(refused(save_table(images.assign(label=["['D']", "D", "N"] * 8))).rows) == 16


@pytest.mark.parametrize("labels", [["D", "D|G", "N"], ["D，G", "D", "N"], ["A", "B", "A, B,"], ["A", "B", "A and B"],
                                    ["A", "B", "A B"]])  # fmt: skip
def test_combined_labels_are_a_question(images, save_table, labels):
    table = save_table(images.assign(label=labels * 8))
    assert len(refused(table).rows) == 8
    assert len(read_labelled(table, problem_type="single_label_classification").class_names) == 3
    assert len(read_labelled(table, problem_type=MULTI).class_names) in (2, 3)


@pytest.mark.parametrize("rows", [["0 1 0", "1 1 0", "1 0 1"], ["0,1,0", "1,1,0", "1,0,1"], ["{'b'}", "{'a', 'b'}"]])
def test_multi_hot_as_text(images, save_table, rows):
    table = save_table(images.assign(label=np.resize(rows, 24)))
    hot = [[0, 1, 0], [1, 1, 0], [1, 0, 1]] if len(rows) == 3 else [[0, 1], [1, 1]]
    expected = {name: hot[number % len(hot)] for number, name in enumerate(images["image"])}
    for problem_type in (None, MULTI):
        found = read_labelled(table, problem_type=problem_type, need_splits=())
        assert dict(zip(found.table["id"], found.targets("all").tolist(), strict=True)) == expected


@pytest.mark.parametrize(("word", "others"), [("unknown", ["mild", "severe"]), ("?", ["a", "b"]), (999, [0, 1, 2])])
def test_labels_that_may_be_none(images, save_table, caplog, word, others):
    read_labelled(save_table(images.assign(label=np.resize([word, *others], 24).astype(str))))
    assert f"{word} in column label" in caplog.text
    caplog.clear()
    values = np.where(np.arange(24) % 8, np.arange(24) + 40.5, -999)
    read_labelled(save_table(images.assign(label=values)), problem_type="regression")
    assert "-999" in caplog.text and "3 images" in caplog.text
    caplog.clear()
    read_labelled(save_table(images.assign(label=np.arange(76, 100))), problem_type="regression")
    assert "stands for none" not in caplog.text


def test_decimal_commas_beside_semicolons(images, tmp_path):
    for sep, decimals in ((";", "{:.1f}"), ("\t", "{:.2f}")):
        values = [decimals.format(number / 4) for number in range(24)]
        table = images.assign(label=[value.replace(".", ",") for value in values])
        (tmp_path / "t.csv").write_text(table.to_csv(sep=sep, index=False))
        found = read_labelled(str(tmp_path / "t.csv"), problem_type="regression", need_splits=())
        by_id = dict(zip(images["image"], map(float, values), strict=True))
        assert found.targets("all").tolist() == pytest.approx([by_id[name] for name in found.table["id"]])
        assert found.table["patient_id"].iloc[0] == "p00"
    (tmp_path / "t.csv").write_text(images.assign(label="1,234").to_csv(sep=";", index=False))
    refused(str(tmp_path / "t.csv"), problem_type="regression")  # thousands?


def test_numbers_among_names_of_classes(images, save_table):
    refused(save_table(images.assign(label=["1", "1.0", "ungradable"] * 8)))
    found = read_labelled(save_table(images.assign(label=["1", "-1", "ungradable"] * 8)))
    assert set(found.class_names) == {"1", "-1", "ungradable"}


@pytest.mark.parametrize("written", ["{}", "{}.JPG", "{}.tif", "{}.PNG"])
def test_names_that_differ_by_their_suffix(images, save_table, tmp_path, written):
    table = images.assign(image=images["image"].str.removesuffix(".png").map(written.format))
    found = read_labelled(save_table(table))
    assert {read_image(path).size for path in found.table["image"]} == {(24, 20)}
    assert list(found.table["id"]) == sorted(table["image"])
    assert all(read_image(ref.image).size == (24, 20) for ref in open_source(str(tmp_path / "table.csv")))
    (tmp_path / "images/p00_R.webp").write_bytes(b"")
    assert len(refused(str(tmp_path / "table.csv")).rows) == 1


def test_files_that_are_passed_over_are_named(class_folder, caplog):
    (class_folder / "train/amd/scan.heic").write_bytes(b"x")
    (class_folder / "train/amd/bare").write_bytes(b"x")
    (class_folder / "test/amd/p10_R.png").rename(class_folder / "test/loose.png")
    (class_folder / "unlabelled").mkdir()
    (class_folder / "unlabelled/a.png").write_bytes(b"x")
    assert len(read_labelled(str(class_folder)).table) == 23
    for words in ("4 files", "scan.heic", "bare", "2 images outside", "unlabelled/a.png", "test/loose.png"):
        assert words in caplog.text


@pytest.mark.parametrize(
    ("encoding", "start"),
    [("cp1252", ""), ("utf-8", "sep=;\n"), ("cp1252", '"sep=;"\n'), ("utf-16", ""), ("utf-16-le", "")],
)
def test_tables_of_spreadsheets(images, tmp_path, encoding, start, caplog):
    table = images.assign(label=["sain", "rétinopathie", "œdème"] * 8)
    (tmp_path / "t.csv").write_text(start + table.to_csv(sep=";", index=False), encoding=encoding)
    assert set(read_labelled(str(tmp_path / "t.csv")).class_names) == {"sain", "rétinopathie", "œdème"}
    assert ("Windows-1252" in caplog.text) == (encoding == "cp1252")


@pytest.mark.parametrize("name", ["t.xlsx", "t.ods", "t.csv"])
def test_workbooks_are_to_be_saved_as_csv(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK\x03\x04\x80\x81")
    assert "CSV UTF-8" in str(refused(str(tmp_path / name)))


def test_parquet_of_bytes_and_of_paths(images, tmp_path):
    paths = [str(tmp_path / name) for name in images["image"]]
    content = [(tmp_path / name).read_bytes() for name in images["image"]]
    for folder in ("bytes", "paths"):
        (tmp_path / folder).mkdir()
    images.assign(image=content).to_parquet(tmp_path / "bytes/train.parquet")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    columns = {"image": paths, "label": images["label"].tolist()}
    datasets.Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "paths/train.parquet")
    for data in ("bytes", "bytes/train.parquet", "paths", "paths/train.parquet"):
        root = str(tmp_path) if data.startswith("paths") else None  # where the named files lie
        found, source = (read(str(tmp_path / data), image_root=root) for read in (read_labelled, open_source))
        opened = list(open_files(tmp_path / data, image_root=root))
        assert len(found.table) == len(opened) == len(list(source)) == 24
        assert all(read_image(image).size == (24, 20) for image in found.table["image"])
        assert all(read_image(ref.image).size == (24, 20) for ref in opened)
        assert all(read_image(source.opener()(ref.image)).size == (24, 20) for ref in source)
