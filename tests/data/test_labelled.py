import numpy as np
import pandas as pd
import pytest
from PIL import Image

from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.splits import SPLITS
from retfound_hf.errors import RetFoundError


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


def test_table_and_folder_give_the_same_set(class_folder):
    by_folder = read_labelled(str(class_folder))
    by_table = read_labelled(str(class_folder / "metadata.csv"))
    columns = sorted(by_folder.table.columns)
    pd.testing.assert_frame_equal(by_folder.table[columns], by_table.table[columns], check_dtype=False)
    assert by_folder.class_names == by_table.class_names


def test_csv_and_parquet_and_semicolons_give_the_same_set(divided, save_table, tmp_path):
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
    assert len(found.rows("val")) == 6
    assert not found.patients_known
    table = divided.assign(split=divided["split"].replace("val", spelling))
    assert len(read_labelled(save_table(table)).rows(spelling)) == 6


def test_folder_of_classes_is_split_by_its_patients(class_folder):
    for path in list(class_folder.glob("*/*/*.png")):
        target = class_folder / path.parent.name / path.name
        target.parent.mkdir(exist_ok=True)
        path.rename(target)
    for split in SPLITS:
        for folder in (class_folder / split).iterdir():
            folder.rmdir()
        (class_folder / split).rmdir()
    metadata = pd.read_csv(class_folder / "metadata.csv")
    metadata["image"] = metadata["image"].str.split("/", n=1).str[1]
    metadata.drop(columns="split").to_csv(class_folder / "metadata.csv", index=False)
    found = read_labelled(str(class_folder))
    assert found.table.groupby("patient_id")["split"].nunique().max() == 1
    assert (found.counts() > 0).all(axis=None)
    (class_folder / "metadata.csv").unlink()
    by_image = read_labelled(str(class_folder))
    assert by_image.counts().sum().tolist() == [13, 4, 7]


def test_table_without_splits_is_split_alike_whatever_its_order(images, save_table):
    first = read_labelled(save_table(images), seed=3).table
    second = read_labelled(save_table(images.sample(frac=1, random_state=0), "shuffled.csv"), seed=3).table
    pd.testing.assert_frame_equal(first, second)
    assert first.groupby("patient_id")["split"].nunique().max() == 1
    assert (read_labelled(save_table(images), seed=4).table["split"] != first["split"]).any()
    # Evaluating the test part of the same table, on its own, meets the images that were held out.
    alone = read_labelled(save_table(images), seed=3, need_splits=("test",), class_names=("healthy", "dme", "amd"))
    assert list(alone.rows("test")["id"]) == list(first.loc[first["split"] == "test", "id"])


def test_rows_without_a_patient_are_patients_of_their_own(images, save_table):
    images.loc[:5, "patient_id"] = None
    found = read_labelled(save_table(images))
    assert not found.patients_known
    assert found.table["patient_id"].isna().sum() == 6
    assert found.table.dropna(subset="patient_id").groupby("patient_id")["split"].nunique().max() == 1


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
        (["10", "9", "stage 2"], ("10", "9", "stage 2")),
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


def test_patient_names_stay_text(images, save_table):
    found = read_labelled(save_table(images.assign(patient_id=images["patient_id"].str.replace("p", "0"))))
    assert found.table["patient_id"].iloc[0] == "000"
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


def test_other_columns_are_left_alone(divided, save_table):
    table = divided.assign(camera="A", acuity=np.arange(24) / 24)
    found = read_labelled(save_table(table)).table
    expected = table.sort_values("image")
    np.testing.assert_allclose(found["acuity"], expected["acuity"])
    assert list(found["camera"]) == ["A"] * 24


@pytest.mark.parametrize("name", ["Patient_ID", "PatientID", "patient", "subject_id", "Participant No"])
def test_patients_in_a_column_of_another_name_are_no_images(table_of_patients, name):
    table, data = table_of_patients
    table.rename(columns={"patient_id": name}).to_csv(data, index=False)
    with pytest.raises(RetFoundError, match=f"no column patient_id, but '{name}': call it patient_id"):
        read_labelled(data)
    read_labelled(data, need_splits=())  # nothing is split


def test_images_without_a_patient_are_counted(table_of_patients, caplog):
    table, data = table_of_patients
    table.loc[:4, "patient_id"] = None
    table.to_csv(data, index=False)
    read_labelled(data)
    assert "5 of 30 images have no patient_id; each counts as a patient" in caplog.text


@pytest.fixture
def table_of_patients(tmp_path):
    """30 images of 15 patients, and where to write the table."""
    rows = []
    for number in range(30):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(tmp_path / f"{number}.png")
        rows.append({"image": f"{number}.png", "label": "ab"[number // 2 % 2], "patient_id": f"P{number // 2}"})
    return pd.DataFrame(rows), str(tmp_path / "set.csv")
