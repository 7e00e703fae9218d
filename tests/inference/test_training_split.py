"""A model is not tested on what it was trained on, even if its table has changed since."""

import json

import pandas as pd
import pytest

from retfound_hf.data.labelled import read_labelled
from retfound_hf.errors import RetFoundError
from retfound_hf.inference.evaluate import refuse_trained_images, write_splits

SEED = {"seed": 0, "split_fractions": (0.5, 0.2, 0.3)}


@pytest.fixture
def write_table(tmp_path, photograph_files):
    def write(patients: int, name: str = "set.csv"):
        rows = [
            {"image": str(path), "label": "ab"[number % 2], "patient_id": f"P{number:02d}"}
            for number, path in enumerate(photograph_files[:patients])
        ]
        pd.DataFrame(rows).to_csv(tmp_path / name, index=False)
        return str(tmp_path / name)

    return write


@pytest.fixture
def photograph_files(tmp_path):
    from PIL import Image

    paths = [tmp_path / f"{number}.png" for number in range(44)]
    for number, path in enumerate(paths):
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    return paths


@pytest.fixture
def trained(tmp_path, write_table):
    """The folder of a model that was trained on the table of 40 patients."""
    folder = tmp_path / "model"
    folder.mkdir()
    data = write_table(40)
    write_splits(folder, read_labelled(data, **SEED))
    (folder / "run.json").write_text(json.dumps({"arguments": {"data": data}}))
    return str(folder)


def test_the_same_table_has_the_same_test_images(trained, write_table):
    data = write_table(40)
    refuse_trained_images(trained, read_labelled(data, **SEED), data)
    stored = pd.read_csv(f"{trained}/splits.csv")
    assert list(stored) == ["id", "patient_id", "split"] and len(stored) == 40
    assert stored["split"].value_counts()["test"] == 12


def test_a_table_with_more_patients_is_refused(trained, write_table):
    data = write_table(44)
    with pytest.raises(RetFoundError, match=r"\d+ test image\(s\) of .* were trained or validated on .*; give it"):
        refuse_trained_images(trained, read_labelled(data, **SEED), data)
    # With the splits of the training, and new patients in the test split, it is accepted.
    table = pd.read_csv(data).merge(
        pd.read_csv(f"{trained}/splits.csv")[["patient_id", "split"]], on="patient_id", how="left"
    )
    table.fillna({"split": "test"}).to_csv(data, index=False)
    refuse_trained_images(trained, read_labelled(data), data)


def test_other_sets_may_have_files_of_the_same_name(trained, write_table):
    data = write_table(44, "elsewhere.csv")
    refuse_trained_images(trained, read_labelled(data, **SEED), data)
