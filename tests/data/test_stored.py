import datasets
import numpy as np
import pytest
from PIL import Image

from retfound_hf.data.labelled import read_labelled
from retfound_hf.errors import RetFoundError
from retfound_hf.images.reading import read_image

NAMES = ["healthy", "amd", "dme"]


@pytest.fixture
def stored(divided, tmp_path):
    """The divided table as a data set with embedded images and class labels."""
    features = datasets.Features(
        {
            "picture": datasets.Image(),
            "label": datasets.ClassLabel(names=NAMES),
            "patient_id": datasets.Value("string"),
        }
    )

    def make(split: str | None):
        part = divided if split is None else divided[divided["split"] == split]
        encoded = [{"path": None, "bytes": (tmp_path / name).read_bytes()} for name in part["image"]]
        columns = {"picture": encoded, "label": part["label"].tolist(), "patient_id": part["patient_id"].tolist()}
        return datasets.Dataset.from_dict(columns, features=features)

    return make


def test_parquet_folder_with_splits(stored, divided, tmp_path):
    folder = tmp_path / "hub"
    for split, name in (("train", "train"), ("val", "validation"), ("test", "test")):
        stored(split).to_parquet(folder / f"{name}-00000-of-00001.parquet")
    found = read_labelled(str(folder))
    assert found.class_names == ("amd", "dme", "healthy")
    assert found.counts().to_dict("list") == {"train": [4] * 3, "val": [2] * 3, "test": [2] * 3}
    row = found.table.set_index("id").loc["train/0"]
    assert (row["label"], row["patient_id"]) == ("healthy", "p00")
    expected = np.asarray(Image.open(tmp_path / divided["image"].iloc[0]))
    np.testing.assert_array_equal(np.asarray(read_image(row["image"])), expected)


def test_one_part_is_split_by_patient(stored, tmp_path):
    stored(None).to_parquet(tmp_path / "hub/data.parquet")
    found = read_labelled(str(tmp_path / "hub"))
    assert found.table.groupby("patient_id")["split"].nunique().max() == 1
    assert (found.counts() > 0).all(axis=None)


def test_parquet_file_that_holds_images(stored, tmp_path):
    stored(None).rename_column("picture", "image").to_parquet(tmp_path / "all.parquet")
    found = read_labelled(str(tmp_path / "all.parquet"))
    assert len(found.table) == 24
    assert read_image(found.table["image"].iloc[0]).size == (24, 20)


def test_saved_to_disk(stored, tmp_path):
    datasets.DatasetDict({split: stored(split) for split in ("train", "val", "test")}).save_to_disk(tmp_path / "saved")
    assert len(read_labelled(str(tmp_path / "saved")).rows("test")) == 6


def test_folder_of_images_that_only_datasets_knows(divided, tmp_path):
    rows = divided.rename(columns={"image": "file_name"}).assign(file_name=divided["image"].str.split("/").str[1])
    rows.drop(columns="split").to_csv(tmp_path / "images/metadata.csv", index=False)
    found = read_labelled(str(tmp_path / "images"))
    assert found.table["id"].iloc[0] == "p00_L.png"
    assert found.table["image"].iloc[0] == str(tmp_path / "images/p00_L.png")
    assert found.patients_known


def test_hub_id_goes_to_datasets(stored, monkeypatch):
    asked = []

    def load_dataset(name):
        asked.append(name)
        return datasets.DatasetDict({split: stored(split) for split in ("train", "val", "test")})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_labelled("someone/retinas").rows("all")) == 24
    assert asked == ["someone/retinas"]


def test_hidden_labels_and_odd_parts(stored, monkeypatch):
    part = stored("test").map(lambda row: {"label": -1})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: datasets.DatasetDict({"test": part}))
    with pytest.raises(RetFoundError, match="6 of 6 rows have no label"):
        read_labelled("someone/retinas", need_splits=())
    odd = datasets.DatasetDict({"train": part, "unlabelled": part})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: odd)
    with pytest.raises(RetFoundError, match=r"has the split\(s\) unlabelled; accepted are train"):
        read_labelled("someone/retinas")
    bare = datasets.DatasetDict({"train": part.remove_columns("picture")})
    monkeypatch.setattr(datasets, "load_dataset", lambda name: bare)
    with pytest.raises(
        RetFoundError, match="no image column 'image'; its columns are label, patient_id, of which none"
    ):
        read_labelled("someone/retinas")


def test_nothing_on_the_hub_and_nothing_in_the_folder(tmp_path, monkeypatch):
    def load_dataset(name):
        raise ConnectionError("no route\nto host")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(
        RetFoundError, match=r"someone/retinas is neither here nor on the Hub \(no route to host\); give a folder"
    ):
        read_labelled("someone/retinas")
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(RetFoundError, match="holds nothing that datasets can read"):
        read_labelled(str(tmp_path))
