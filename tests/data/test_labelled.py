"""Labelled sets from folders, tables and data sets, and the errors that stop what would make results wrong."""

import logging
import re
import shutil
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import save_noise

from retfound_hf.data.labelled import LabelledSet, keep_fraction, read_labelled
from retfound_hf.data.splits import SPLITS
from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.images.reading import read_image

NAMES = ["healthy", "amd", "dme"]


def refused(data, *words, rows=None, **options):
    """The set is an error whose one line has all `words`, and whose `rows` are these."""
    with pytest.raises(BadDataError) as error:
        read_labelled(str(data), **options)
    message = str(error.value)
    assert "\n" not in message and "--" not in message
    assert all(word in message for word in words), message
    assert rows is None or sorted(error.value.rows) == sorted(rows)
    return error.value


def refused_option(field, data, **options):
    with pytest.raises(BadArgumentError) as error:
        read_labelled(str(data), **options)
    assert error.value.field == field
    return error.value


# ---- folders and tables


def test_folder_with_metadata(class_folder):
    found = read_labelled(str(class_folder))
    assert found.class_names == ("amd", "dme", "healthy")
    assert found.problem_type == "single_label_classification"
    assert found.patients_known
    assert list(found.table["id"]) == sorted(found.table["id"])
    assert found.counts().to_dict("list") == {"train": [4] * 3, "val": [2] * 3, "test": [2] * 3}
    row = found.rows("val").iloc[0]
    assert (row["id"], row["label"], row["patient_id"], row["eye"]) == ("val/amd/p07_L.png", "amd", "p07", "L")
    assert row["image"] == str(class_folder / "val/amd/p07_L.png")
    assert found.targets("val").dtype == np.int64
    np.testing.assert_array_equal(found.targets("val"), [0, 0, 1, 1, 2, 2])
    with pytest.raises(BadArgumentError) as error:
        found.rows("night")
    assert error.value.accepted == ("test", "train", "val", "all")


def test_the_same_set_in_every_form(class_folder, divided, save_table, tmp_path):
    by_folder = read_labelled(str(class_folder)).table
    columns = sorted(by_folder.columns)
    by_table = read_labelled(str(class_folder / "metadata.csv")).table
    pd.testing.assert_frame_equal(by_folder[columns], by_table[columns], check_dtype=False)
    by_csv = read_labelled(save_table(divided)).table
    by_parquet = read_labelled(save_table(divided, "table.parquet")).table
    pd.testing.assert_frame_equal(by_csv, by_parquet[by_csv.columns], check_dtype=False)
    divided.to_csv(tmp_path / "semicolon.csv", index=False, sep=";", encoding="utf-8-sig")
    pd.testing.assert_frame_equal(by_csv, read_labelled(str(tmp_path / "semicolon.csv")).table)


@pytest.mark.parametrize("spelling", ["validation", "valid", "dev", "Val"])
def test_spellings_of_val(class_folder, divided, save_table, spelling):
    (class_folder / "val").rename(class_folder / spelling)
    (class_folder / "metadata.csv").unlink()
    found = read_labelled(str(class_folder))
    assert len(found.rows("val")) == 6 and not found.patients_known
    table = divided.assign(split=divided["split"].replace("val", spelling))
    assert len(read_labelled(save_table(table)).rows(spelling)) == 6


def test_folder_of_classes_is_split_by_its_patients(class_folder):
    for path in list(class_folder.glob("*/*/*.png")):
        target = class_folder / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    for split in SPLITS:
        shutil.rmtree(class_folder / split)
    metadata = pd.read_csv(class_folder / "metadata.csv")
    metadata["image"] = metadata["image"].str.split("/", n=1).str[1]
    metadata.drop(columns="split").to_csv(class_folder / "metadata.csv", index=False)
    found = read_labelled(str(class_folder))
    assert found.table.groupby("patient_id")["split"].nunique().max() == 1
    assert (found.counts() > 0).all(axis=None)
    (class_folder / "metadata.csv").unlink()
    assert read_labelled(str(class_folder)).counts().sum().tolist() == [13, 4, 7]


def test_table_without_splits_is_split_alike_whatever_its_order(images, save_table):
    first = read_labelled(save_table(images), seed=3).table
    second = read_labelled(save_table(images.sample(frac=1, random_state=0), "shuffled.csv"), seed=3).table
    pd.testing.assert_frame_equal(first, second)
    assert first.groupby("patient_id")["split"].nunique().max() == 1
    assert (read_labelled(save_table(images), seed=4).table["split"] != first["split"]).any()
    # Evaluating the test part of the same table, on its own, meets the images that were held out.
    alone = read_labelled(save_table(images), seed=3, need_splits=("test",), class_names=("healthy", "dme", "amd"))
    assert list(alone.rows("test")["id"]) == list(first.loc[first["split"] == "test", "id"])


def test_rows_without_a_patient_are_patients_of_their_own(images, save_table, caplog):
    images.loc[:5, "patient_id"] = None
    found = read_labelled(save_table(images))
    assert not found.patients_known
    assert found.table["patient_id"].isna().sum() == 6
    assert found.table.dropna(subset="patient_id").groupby("patient_id")["split"].nunique().max() == 1
    assert "6 of 24 images" in caplog.text


@pytest.mark.parametrize("name", ["Patient_ID", "PatientID", "patient", "subject_id", "Participant No"])
def test_patients_in_a_column_of_another_name_are_no_images(images, save_table, name):
    data = save_table(images.rename(columns={"patient_id": name}))
    refused(data, f"'{name}'")
    read_labelled(data, need_splits=())  # nothing is split


def test_a_set_without_splits_can_be_used_whole(images, save_table):
    found = read_labelled(save_table(images), need_splits=())
    assert len(found.rows("all")) == len(found.targets("all")) == 24
    assert set(found.table["split"]) == {"all"}
    assert found.counts()["all"].tolist() == [8, 8, 8]


def test_image_root_and_absolute_paths(images, save_table, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    bare = images.assign(image=images["image"].str.removeprefix("images/"))
    bare.to_csv(tmp_path / "elsewhere/table.csv", index=False)
    found = read_labelled(str(tmp_path / "elsewhere/table.csv"), image_root=str(tmp_path / "images"))
    assert found.table["id"].iloc[0] == "p00_L.png"
    absolute = images.assign(image=[str(tmp_path / name) for name in images["image"]])
    assert read_labelled(save_table(absolute)).table["id"].iloc[0] == "images/p00_L.png"


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        ([10, 2, 0], ("0", "2", "10")),
        ([2.0, 10.0, 0.0], ("0", "2", "10")),
        (["10", "9", "stage 2"], ("stage 2", "9", "10")),
        (["None", "NA", "dme"], ("NA", "None", "dme")),
        ([True, False, True], ("False", "True")),
    ],
)
def test_class_names_and_their_order(images, save_table, labels, names):
    table = images.assign(label=labels * 8)
    for name in ("table.csv", "table.parquet"):
        found = read_labelled(save_table(table, name), need_splits=())
        assert found.class_names == names
        first = found.table["id"].eq("images/p00_R.png")
        expected = str(labels[0]).removesuffix(".0")
        assert [found.class_names[target] for target in found.targets("all")[first]] == [expected]


def test_patient_names_stay_text_and_other_columns_are_left_alone(images, save_table):
    table = images.assign(patient_id=images["patient_id"].str.replace("p", "0"), acuity=np.arange(24) / 24)
    found = read_labelled(save_table(table)).table
    assert found["patient_id"].iloc[0] == "000"
    np.testing.assert_allclose(found["acuity"], table.sort_values("image")["acuity"])
    numbers = images.assign(patient_id=images["patient_id"].str[1:].astype(float))
    assert read_labelled(save_table(numbers, "t.parquet")).table["patient_id"].iloc[-1] == "11"


def test_classes_of_a_model_set_the_order_and_may_be_absent(images, save_table):
    names = ("healthy", "glaucoma", "dme", "amd")
    found = read_labelled(save_table(images), class_names=names, need_splits=())
    assert found.class_names == names
    assert found.targets("all")[:2].tolist() == [0, 0]
    assert found.counts()["all"].tolist() == [8, 0, 8, 8]


def test_multi_label(images, save_table):
    table = images.drop(columns="label").assign(drusen=[0, 1, 1, 0] * 6, fluid=[1, 0, 0, 0] * 6)
    found = read_labelled(save_table(table), label_columns=["drusen", "fluid"])
    assert found.problem_type == "multi_label_classification"
    assert found.class_names == ("drusen", "fluid")
    targets = found.targets("all")
    assert targets.dtype == np.float32
    np.testing.assert_array_equal(targets, table.sort_values("image")[["drusen", "fluid"]])
    assert found.counts().loc["fluid"].sum() == 6
    # A model's own order of findings decides over the order asked for.
    again = read_labelled(
        save_table(table),
        label_columns=["drusen", "fluid"],
        class_names=["fluid", "drusen"],
        problem_type="multi_label_classification",
        need_splits=(),
    )
    np.testing.assert_array_equal(again.targets("all"), targets[:, ::-1])


def test_regression(images, save_table):
    table = images.assign(age=np.linspace(40, 80, 24), thickness=np.arange(24) / 10)
    one = read_labelled(save_table(table), label_columns=["age"], problem_type="regression")
    assert (one.class_names, one.targets("all").shape, one.targets("all").dtype) == (("age",), (24,), np.float32)
    two = read_labelled(save_table(table), label_columns=["age", "thickness"], problem_type="regression")
    np.testing.assert_allclose(two.targets("all"), two.table[["age", "thickness"]], rtol=1e-6)
    assert two.counts().sum().sum() == 48
    model = read_labelled(save_table(table), class_names=["age"], problem_type="regression", need_splits=())
    np.testing.assert_array_equal(model.targets("all"), one.targets("all"))


def test_only_training_rows_are_left_out_of_a_share():
    table = pd.DataFrame(
        {
            "id": [f"i{number:02d}" for number in range(40)],
            "split": ["train"] * 20 + ["val"] * 10 + ["test"] * 10,
            "patient_id": None,
            "label": ["a", "b"] * 20,
        }
    )
    labelled = LabelledSet(table, "single_label_classification", ("a", "b"), ("label",))
    kept = keep_fraction(labelled, 0.5, seed=0)
    assert kept.table["split"].value_counts().to_dict() == {"train": 10, "val": 10, "test": 10}
    assert keep_fraction(labelled, 1.0) is labelled


# ---- what is refused


def test_nothing_that_can_be_read(tmp_path):
    refused(tmp_path / "nothing", "{train,val,test}", "Hub")
    refused("typo.csv")
    refused(tmp_path, "holds no image")
    (tmp_path / "train/amd").mkdir(parents=True)
    refused(tmp_path, "holds no image")
    contents = {
        "notes.docx": b"x", "broken.parquet": b"x", "empty.csv": b"", "header.csv": b"image,label\n",
        "latin.csv": "image,label\na.png,rétine\n".encode("latin-1"),
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        refused(tmp_path / name, name)


def test_folders_that_do_not_fit(class_folder):
    (class_folder / "test/glaucoma").mkdir()
    refused(class_folder, "test/glaucoma")
    names = ("amd", "dme", "healthy", "glaucoma")
    assert len(read_labelled(str(class_folder), class_names=names, need_splits=("test",)).rows("test")) == 6
    shutil.rmtree(class_folder / "test/glaucoma")
    shutil.copytree(class_folder / "val", class_folder / "valid")
    refused(class_folder, "val, valid")
    shutil.rmtree(class_folder / "valid")
    shutil.rmtree(class_folder / "val")
    refused(class_folder, "no val split", "train, test", split_fractions=(0.7, 0, 0.3))
    assert len(read_labelled(str(class_folder), need_splits=("test",)).rows("test")) == 6
    (class_folder / "test/amd").rename(class_folder / "test/AMD")
    refused(class_folder, "'AMD' and 'amd'")


def test_names_that_are_not_utf8(class_folder):
    try:
        save_noise(class_folder / "test/amd/\udce9.png", 99, (24, 20))
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    refused(class_folder, "not UTF-8", rows=("test/amd/?.png",))


def test_class_that_a_split_lacks(class_folder, divided, save_table, caplog):
    findings = divided.assign(a=1, b=(divided["split"] == "test").astype(int))
    refused(save_table(findings), "class b", label_columns=["a", "b"])
    shutil.rmtree(class_folder / "test/amd")
    with caplog.at_level(logging.WARNING):
        read_labelled(str(class_folder))
    assert "the test split has no image of class amd" in caplog.text
    shutil.rmtree(class_folder / "train/amd")
    refused(class_folder, "class amd")


def test_missing_columns(divided, save_table):
    refused(
        save_table(divided.rename(columns={"label": "Label"})), "'label'", "`label_columns`", "did you mean Label?"
    )
    refused(save_table(divided), "'picture'", "`image_column`", image_column="picture")
    refused(save_table(divided), "'eyes'", "did you mean eye?", label_columns=["eyes"])


def test_images_listed_twice(divided, save_table):
    twice = divided.loc[[*range(24), 0, 1]].reset_index(drop=True)
    refused(save_table(twice), "more than once", rows=["images/p00_R.png", "images/p00_L.png"])
    twice.loc[24, ["split", "image"]] = "test", "./images/p00_R.png"
    refused(save_table(twice), "more than one split", rows=["images/p00_R.png"])


def test_same_content_in_two_splits_is_a_warning(class_folder, caplog):
    shutil.copy(class_folder / "train/amd/p01_R.png", class_folder / "test/amd/copy.png")
    shutil.copy(class_folder / "val/amd/p07_R.png", class_folder / "val/amd/copy_within.png")
    with caplog.at_level(logging.WARNING):
        read_labelled(str(class_folder))
    assert "1 image(s)" in caplog.text and "test/amd/copy.png = train/amd/p01_R.png" in caplog.text
    assert "different labels" not in caplog.text


def test_same_content_with_two_labels_is_a_warning(images, save_table, tmp_path, caplog):
    shutil.copy(tmp_path / images["image"][0], tmp_path / "copy.png")
    copy = images[:1].assign(image="copy.png", label="amd")
    read_labelled(save_table(pd.concat([images, copy], ignore_index=True)))
    assert "1 image(s) have different labels" in caplog.text and "copy.png" in caplog.text
    copy = copy.assign(label="healthy", patient_id="p99")
    read_labelled(save_table(pd.concat([images, copy], ignore_index=True)))
    assert "1 image(s) are of different patients" in caplog.text


def test_an_image_in_two_classes_by_a_link(class_folder, images, save_table, tmp_path, caplog):
    (class_folder / "val/dme/more").symlink_to(class_folder / "val/amd")
    found = refused(class_folder, "different labels by links", "val/amd/p07_L.png = val/dme/more/p07_L.png")
    assert len(found.rows) == 4
    (tmp_path / "other").symlink_to(tmp_path / "images")
    link = images[:1].assign(image="other/p00_R.png", patient_id="p99")
    refused(save_table(pd.concat([images, link], ignore_index=True)), "by links")
    read_labelled(save_table(pd.concat([images, link.assign(patient_id="p00")], ignore_index=True)))
    assert "1 images are listed more than once" in caplog.text


def test_two_columns_of_one_name(images, tmp_path):
    lines = images.to_csv(index=False).splitlines()
    (tmp_path / "t.csv").write_text("\n".join([lines[0] + ",label", *(f"{line},x" for line in lines[1:])]))
    refused(tmp_path / "t.csv", "'label'")


def test_patient_in_two_splits(class_folder, divided, save_table):
    divided.loc[0, "split"] = "test"
    refused(save_table(divided), "p00 in train and test", rows=["p00"])
    (class_folder / "train/amd/p01_R.png").rename(class_folder / "test/amd/p01_R.png")
    metadata = (class_folder / "metadata.csv").read_text().replace("train/amd/p01_R.png", "test/amd/p01_R.png")
    (class_folder / "metadata.csv").write_text(metadata)
    refused(class_folder, rows=["p01"])
    assert len(read_labelled(str(class_folder), need_splits=()).table) == 24


def test_image_files_that_do_not_exist(divided, save_table, tmp_path):
    for name in divided["image"][:7]:
        (tmp_path / name).unlink()
    rows = [str(tmp_path / name) for name in divided["image"][:7]]
    refused(save_table(divided), "7 of 24", "and 2 more", "`image_root`", rows=rows)


def test_rows_without_a_value(divided, save_table):
    first = ["images/p00_R.png", "images/p00_L.png"]
    refused(save_table(divided.assign(label=divided["label"].where(divided.index > 1))), "2 of 24", rows=first)
    refused(save_table(divided.assign(image=divided["image"].where(divided.index != 3))), "row 4", rows=[4])
    refused(save_table(divided.assign(split=divided["split"].replace("val", "fold1"))), "fold1")
    refused(save_table(divided.assign(split=divided["split"].where(divided.index > 1))), "no value", rows=first)
    findings = divided.assign(a=[np.nan, *[1] * 23], b=0)
    refused(save_table(findings), "'a'", rows=first[:1], label_columns=["a", "b"])
    # A missing whole number is read as NaN and the others as floats, which are not measurements.
    refused(save_table(divided.assign(label=[np.nan, *[0, 1] * 11, 1])), "'label'", rows=first[:1])


def test_labels_that_do_not_fit(divided, save_table):
    refused(save_table(divided.assign(label="amd")), "'amd'")
    one = read_labelled(save_table(divided.assign(label="amd")), class_names=("amd", "dme"), need_splits=("test",))
    assert one.targets("test").tolist() == [0] * 6
    healthy = divided.loc[divided["label"] == "healthy", "image"]
    refused(save_table(divided), "healthy", rows=healthy, class_names=("dme", "amd"))
    options = {"label_columns": ["a", "b"], "class_names": ["a", "c"]}
    refused_option("label_columns", save_table(divided.assign(a=1, b=0)), **options)
    table = save_table(divided.assign(age=np.linspace(40, 80, 24), grade=[0, 1, 2] * 8, stage="late"))
    refused(table, "24 different values", "`problem_type='regression'`", label_columns=["age"])
    refused(table, "'grade' holds 2", label_columns=["grade", "age"])
    refused(table, "late", label_columns=["stage"], problem_type="regression")
    single = "single_label_classification"
    refused_option("label_columns", table, label_columns=["age", "grade"], problem_type=single)
    assert refused_option("problem_type", table, problem_type="ordinal").accepted[0] == single


def test_metadata_that_fit_no_image(class_folder, caplog):
    path = class_folder / "metadata.csv"
    text = path.read_text()
    path.write_text(re.sub(r"(train|val|test)/", "x/", text))
    refused(class_folder, "'x/healthy/p00_R.png'")
    path.write_text("\n".join(text.splitlines()[:-2]))
    with caplog.at_level(logging.WARNING):
        assert not read_labelled(str(class_folder)).patients_known
    assert "2 of the images" in caplog.text
    path.write_text(text + text.splitlines()[-1])
    refused(class_folder, rows=[text.splitlines()[-1].split(",")[0]])


# ---- data sets of `datasets`


@pytest.fixture
def stored(divided, tmp_path):
    """The divided table as a data set with embedded images and class labels."""
    text, label = datasets.Value("string"), datasets.ClassLabel(names=NAMES)
    features = datasets.Features({"picture": datasets.Image(), "label": label, "patient_id": text})

    def make(split: str | None):
        part = divided if split is None else divided[divided["split"] == split]
        encoded = [{"path": None, "bytes": (tmp_path / name).read_bytes()} for name in part["image"]]
        columns = {"picture": encoded, "label": part["label"].tolist(), "patient_id": part["patient_id"].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    return make


@pytest.fixture
def on_hub(monkeypatch, tmp_path):
    """Lets `datasets.load_dataset` give a data set for every id."""

    def put(found):
        def load_dataset(name):
            if isinstance(found, Exception):
                raise found
            return found

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: SimpleNamespace(cache_dir=tmp_path))
        return "someone/retinas"

    return put


def test_parquet_folder_with_splits(stored, divided, tmp_path):
    folder = tmp_path / "hub"
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        stored(split).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    found = read_labelled(str(folder))
    assert found.class_names == ("healthy", "amd", "dme")
    assert found.counts().to_dict("list") == {"train": [4] * 3, "val": [2] * 3, "test": [2] * 3}
    row = found.table.set_index("id").loc["train/0"]
    assert (row["label"], row["patient_id"]) == ("healthy", "p00")
    expected = np.asarray(Image.open(tmp_path / divided["image"].iloc[0]))
    np.testing.assert_array_equal(np.asarray(read_image(row["image"])), expected)


def test_one_part_is_split_by_patient(stored, tmp_path):
    stored(None).to_parquet(tmp_path / "hub/data.parquet")
    stored(None).rename_column("picture", "image").to_parquet(tmp_path / "all.parquet")
    for data in (tmp_path / "hub", tmp_path / "all.parquet"):
        found = read_labelled(str(data))
        assert len(found.table) == 24 and read_image(found.table["image"].iloc[0]).size == (24, 20)
        assert found.table.groupby("patient_id")["split"].nunique().max() == 1
        assert (found.counts() > 0).all(axis=None)


def test_saved_to_disk_or_on_the_hub(stored, tmp_path, on_hub):
    whole = datasets.DatasetDict({split: stored(split) for split in ("train", "val", "test")})
    whole.save_to_disk(tmp_path / "saved")
    assert len(read_labelled(str(tmp_path / "saved")).rows("test")) == 6
    assert len(read_labelled(on_hub(whole)).rows("all")) == 24


def test_folder_of_images_that_only_datasets_knows(divided, tmp_path):
    rows = divided.rename(columns={"image": "file_name"}).assign(file_name=divided["image"].str.split("/").str[1])
    rows.drop(columns="split").to_csv(tmp_path / "images/metadata.csv", index=False)
    found = read_labelled(str(tmp_path / "images"))
    assert found.table["id"].iloc[0] == "p00_L.png"
    assert found.table["image"].iloc[0] == str(tmp_path / "images/p00_L.png")
    assert found.patients_known


def test_data_sets_that_do_not_fit(stored, tmp_path, on_hub):
    part = stored("test").map(lambda row: {"label": -1})  # the mark of a hidden label
    refused(on_hub(datasets.DatasetDict({"test": part})), "6 of 6", need_splits=())
    refused(on_hub(datasets.DatasetDict({"train": part, "unlabelled": part})), "unlabelled")
    bare = datasets.DatasetDict({"train": part.remove_columns("picture")})
    refused(on_hub(bare), "'image'", "label, patient_id", "`image_column`")
    refused(on_hub(ConnectionError("no route\nto host")), "no route to host")
    (tmp_path / "notes.md").write_text("x")
    refused(tmp_path, str(tmp_path))
