import logging
import re
import shutil

import numpy as np
import pytest

from retfound_hf.data.labelled import read_labelled
from retfound_hf.errors import RetFoundError


def refused(data, match, **options):
    with pytest.raises(RetFoundError, match=match) as caught:
        read_labelled(str(data), **options)
    assert "\n" not in str(caught.value)


def test_path_absent(tmp_path):
    accepted = r"\{train,val,test\}/<class>/\*.*CSV or parquet table.*Hugging Face Hub"
    refused(tmp_path / "nothing", f"nothing does not exist; give .*{accepted}")
    refused("typo.csv", "typo.csv does not exist")


def test_folder_without_images(tmp_path):
    refused(tmp_path, "holds no image; give a folder laid out as")
    (tmp_path / "train/amd").mkdir(parents=True)
    refused(tmp_path, "holds no image")


def test_file_that_is_no_table(tmp_path):
    (tmp_path / "notes.docx").write_text("x")
    refused(tmp_path / "notes.docx", r"notes.docx is not a table \(.csv")
    (tmp_path / "broken.parquet").write_text("x")
    refused(tmp_path / "broken.parquet", "cannot be read as a parquet table")
    (tmp_path / "empty.csv").write_text("")
    refused(tmp_path / "empty.csv", "cannot be read as a csv table")
    (tmp_path / "header.csv").write_text("image,label\n")
    refused(tmp_path / "header.csv", "header.csv has no rows")
    (tmp_path / "latin.csv").write_bytes("image,label\na.png,rétine\n".encode("latin-1"))
    refused(tmp_path / "latin.csv", "cannot be read as a csv table: 'utf-8' codec")


def test_missing_split(class_folder, divided, save_table):
    shutil.rmtree(class_folder / "val")
    refused(class_folder, r"has no val split \(it has train, test\); add it")
    assert len(read_labelled(str(class_folder), need_splits=("test",)).rows("test")) == 6
    refused(save_table(divided[divided["split"] == "test"]), "no train and no val split")


def test_two_folders_for_one_split(class_folder):
    shutil.copytree(class_folder / "val", class_folder / "valid")
    refused(class_folder, r"two folders for one split \(test, train, val, valid\); keep one")


def test_empty_class_folder(class_folder):
    (class_folder / "test/glaucoma").mkdir()
    refused(class_folder, "class folder .*test/glaucoma holds no image")
    names = ("amd", "dme", "healthy", "glaucoma")
    assert len(read_labelled(str(class_folder), class_names=names, need_splits=("test",)).rows("test")) == 6


def test_class_that_train_lacks(class_folder, divided, save_table):
    shutil.rmtree(class_folder / "train/amd")
    refused(class_folder, "train split has no image of class amd, which other splits have")
    findings = divided.assign(a=1, b=(divided["split"] == "test").astype(int))
    refused(save_table(findings), "no image of class b,", label_columns=["a", "b"])


def test_class_that_test_lacks_is_a_warning(class_folder, caplog):
    shutil.rmtree(class_folder / "test/amd")
    with caplog.at_level(logging.WARNING):
        read_labelled(str(class_folder))
    assert "the test split has no image of class amd; metrics that need one will be null" in caplog.text


def test_class_spelled_in_two_ways(class_folder):
    (class_folder / "test/amd").rename(class_folder / "test/AMD")
    refused(class_folder, "classes 'AMD' and 'amd' look like one class spelled in two ways")


def test_missing_columns(divided, save_table):
    table = save_table(divided.rename(columns={"label": "Label"}))
    refused(table, "no column 'label'; its columns are .*Label.*--label_columns; did you mean Label?")
    refused(save_table(divided), "no column 'picture'.*--image_column", image_column="picture")
    refused(save_table(divided), "no column 'eyes'.*did you mean eye?", label_columns=["eyes"])


def test_images_listed_twice(divided, save_table):
    twice = divided.loc[[*range(24), 0, 1]]
    refused(save_table(twice), r"2 image\(s\) are listed more than once \(images/p00_R.png, images/p00_L.png\)")
    twice = twice.reset_index(drop=True)
    twice.loc[24, "split"] = "test"
    twice.loc[24, "image"] = "./images/p00_R.png"
    refused(save_table(twice), r"1 image\(s\) are in more than one split \(images/p00_R.png\)")


def test_same_content_in_two_splits_is_a_warning(class_folder, caplog):
    shutil.copy(class_folder / "train/amd/p01_R.png", class_folder / "test/amd/copy.png")
    shutil.copy(class_folder / "val/amd/p07_R.png", class_folder / "val/amd/copy_within.png")
    with caplog.at_level(logging.WARNING):
        read_labelled(str(class_folder))
    assert "1 image(s) occur in more than one split under other names" in caplog.text
    assert "test/amd/copy.png = train/amd/p01_R.png" in caplog.text


def test_patient_in_two_splits(class_folder, divided, save_table):
    divided.loc[0, "split"] = "test"
    refused(save_table(divided), r"1 patient\(s\) are in more than one split \(p00 in train and test\)")
    (class_folder / "train/amd/p01_R.png").rename(class_folder / "test/amd/p01_R.png")
    metadata = (class_folder / "metadata.csv").read_text().replace("train/amd/p01_R.png", "test/amd/p01_R.png")
    (class_folder / "metadata.csv").write_text(metadata)
    refused(class_folder, "p01 in train and test")
    assert len(read_labelled(str(class_folder), need_splits=()).table) == 24


def test_image_files_that_do_not_exist(divided, save_table, tmp_path):
    for name in divided["image"][:7]:
        (tmp_path / name).unlink()
    refused(save_table(divided), r"7 of 24 image files do not exist \(.*p00_L.png.* and 2 more\).*--image_root")


def test_rows_without_image_label_or_split(divided, save_table):
    refused(
        save_table(divided.assign(label=divided["label"].where(divided.index > 1))),
        "2 of 24 rows have no label.*p00_L",
    )
    refused(
        save_table(divided.assign(image=divided["image"].where(divided.index != 3))), r"1 rows name no image \(row 4\)"
    )
    refused(
        save_table(divided.assign(split=divided["split"].replace("val", "fold1"))), "split holds fold1; accepted are"
    )
    refused(save_table(divided.assign(split=divided["split"].where(divided.index > 1))), "split holds no value")
    findings = divided.assign(a=[np.nan, *[1] * 23], b=0)
    refused(save_table(findings), "1 of 24 rows have no label in column 'a'", label_columns=["a", "b"])


def test_missing_number_is_not_taken_for_a_measurement(divided, save_table):
    refused(
        save_table(divided.assign(label=[np.nan, *[0, 1] * 11, 1])), "1 of 24 rows have no label in column 'label'"
    )


def test_single_class(divided, save_table):
    refused(save_table(divided.assign(label="amd")), "a single class, 'amd'; classification needs at least two")
    one = read_labelled(save_table(divided.assign(label="amd")), class_names=("amd", "dme"), need_splits=("test",))
    assert one.targets("test").tolist() == [0] * 6


def test_label_unknown_to_the_model(divided, save_table):
    refused(
        save_table(divided),
        r"label\(s\) healthy are unknown to the model, whose classes are dme, amd",
        class_names=("dme", "amd"),
    )
    findings = save_table(divided.assign(a=1, b=0))
    options = {"label_columns": ["a", "b"], "class_names": ["a", "c"]}
    refused(findings, "label columns a, b do not fit the model, which predicts a, c", **options)


def test_label_types(divided, save_table):
    table = save_table(divided.assign(age=np.linspace(40, 80, 24), grade=[0, 1, 2] * 8, stage="late"))
    refused(table, "'age' holds 24 different values.*--problem_type regression", label_columns=["age"])
    refused(table, r"'grade' holds 2 \(images .*only 0 and 1", label_columns=["grade", "age"])
    refused(table, "'stage' holds late .*finite numbers", label_columns=["stage"], problem_type="regression")
    refused(
        table,
        "takes one label column, not 2",
        label_columns=["age", "grade"],
        problem_type="single_label_classification",
    )
    refused(table, "problem_type 'ordinal' is unknown; choose one of single_label", problem_type="ordinal")


def test_metadata_that_fit_no_image(class_folder, caplog):
    path = class_folder / "metadata.csv"
    text = path.read_text()
    path.write_text(re.sub(r"(train|val|test)/", "x/", text))
    refused(class_folder, "metadata.csv describes none of the images: it names 'x/healthy/p00_R.png'")
    path.write_text("\n".join(text.splitlines()[:-2]))
    with caplog.at_level(logging.WARNING):
        assert not read_labelled(str(class_folder)).patients_known
    assert "does not describe 2 of the images" in caplog.text
    path.write_text(text + text.splitlines()[-1])
    refused(class_folder, r"metadata.csv lists 1 image\(s\) more than once")


def test_split_that_is_not_there(class_folder):
    with pytest.raises(RetFoundError, match="split 'holdout' has no images; choose one of test, train, val, or 'all'"):
        read_labelled(str(class_folder)).rows("holdout")
