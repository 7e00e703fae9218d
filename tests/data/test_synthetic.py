import json

import pandas as pd
import pytest
from PIL import Image

from retfound_hf.data.labelled import read_labelled
from retfound_hf.data.synthetic_sets import main, make_synthetic
from retfound_hf.errors import RetFoundError
from retfound_hf.images.synthetic import CLASSES


@pytest.fixture(scope="module", params=["cfp", "oct"])
def made(request, tmp_path_factory):
    folder = make_synthetic(tmp_path_factory.mktemp("made") / "set", request.param, num_patients=24, image_size=64)
    return request.param, folder


def contents(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.*")}


def test_folder_is_a_labelled_set_with_every_class_in_every_split(made):
    modality, folder = made
    found = read_labelled(str(folder))
    assert set(found.class_names) == set(CLASSES[modality])
    assert found.patients_known
    assert (found.counts() > 0).all(axis=None)
    patients = found.table.groupby("split")["patient_id"].nunique()
    assert patients[["train", "val", "test"]].tolist() == pytest.approx([13.2, 3.6, 7.2], abs=1.5)
    assert len(list(folder.rglob("*.jpg" if modality == "cfp" else "*.png"))) == len(found.table)


def test_metadata_describe_patients_eyes_and_photographs(made):
    modality, folder = made
    table = pd.read_csv(folder / "metadata.csv")
    assert list(table.columns) == ["image", "label", "patient_id", "eye", "split", "age", "sex", "camera", "severity"]
    assert (table["image"].str.split("/").str[:2].str.join("/") == table["split"] + "/" + table["label"]).all()
    by_patient = table.groupby("patient_id")
    assert (by_patient["eye"].nunique() == 2).all()
    assert (by_patient[["age", "sex", "camera"]].nunique() == 1).all(axis=None)
    assert table.groupby(["patient_id", "eye"]).size().isin([1, 2]).all()
    assert ((table["severity"] == 0) | (table["label"] != CLASSES[modality][0])).all()
    assert table.loc[table["label"] != CLASSES[modality][0], "severity"].between(0, 1).all()
    # Some patients have one healthy eye, so that the eye and not the person must be judged.
    assert (by_patient["label"].nunique() == 2).any()


def test_images_have_the_size_asked_for(made):
    modality, folder = made
    path = next(folder.rglob("*.jpg" if modality == "cfp" else "*.png"))
    image = Image.open(path)
    assert image.height == 64
    assert image.mode == ("RGB" if modality == "cfp" else "L")


def test_same_seed_same_bytes_and_another_seed_another_set(made, tmp_path):
    modality, folder = made
    again = contents(make_synthetic(tmp_path / "again", modality, num_patients=24, image_size=64))
    assert again == contents(folder)
    other = contents(make_synthetic(tmp_path / "other", modality, num_patients=13, image_size=64, seed=1))
    assert not set(other.values()) & set(again.values())


def test_a_patient_looks_the_same_in_a_larger_set(tmp_path):
    small = contents(make_synthetic(tmp_path / "small", num_patients=13, image_size=64))
    large = contents(make_synthetic(tmp_path / "large", num_patients=20, image_size=64))
    images = {name.split("/", 1)[1]: value for name, value in large.items() if name.endswith(".jpg")}
    assert all(images[name.split("/", 1)[1]] == value for name, value in small.items() if name.endswith(".jpg"))


def test_stage_and_camera_change_the_photographs_and_not_the_patients(tmp_path):
    usual = contents(make_synthetic(tmp_path / "usual", num_patients=13, image_size=64))
    main([
        str(tmp_path / "other"), "--num_patients", "13", "--image_size", "64", "--stage", "advanced",
        "--camera", "handheld",
    ])  # fmt: skip
    other = contents(tmp_path / "other")
    del other["run.json"]
    assert usual.keys() == other.keys() and usual["metadata.csv"] == other["metadata.csv"]
    assert not any(usual[name] == other[name] for name in usual if name.endswith(".jpg"))


@pytest.mark.parametrize("seed", range(40))
def test_smallest_set_has_three_patients_of_every_class(seed, tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.data.synthetic_sets.render", lambda *_: pytest.fail("nothing is to be drawn"))
    facts = []
    monkeypatch.setattr(
        "retfound_hf.data.synthetic_sets.assign_splits",
        lambda groups, labels, seed: facts.append((groups, labels)) or 1 / 0,
    )
    with pytest.raises(ZeroDivisionError):
        make_synthetic(tmp_path / "set", num_patients=13, seed=seed)
    table = pd.DataFrame({"patient": facts[0][0], "label": facts[0][1]})
    assert table.groupby("label")["patient"].nunique().min() >= 3
    assert not (tmp_path / "set").exists()


def test_prevalence_of_a_large_set(tmp_path, monkeypatch):
    from retfound_hf.data import synthetic_sets as synthetic

    monkeypatch.setattr(synthetic, "assign_splits", lambda groups, labels, seed: pytest.fail(str(labels.tolist())))
    with pytest.raises(pytest.fail.Exception) as caught:
        make_synthetic(tmp_path / "set", num_patients=600)
    shares = pd.Series(json.loads(caught.value.msg.replace("'", '"'))).value_counts(normalize=True)
    assert shares[list(CLASSES["cfp"])].tolist() == pytest.approx([0.45, 0.30, 0.25], abs=0.03)


def test_an_interrupted_run_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.data.synthetic_sets.render", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        make_synthetic(tmp_path / "set", num_patients=13)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tmp_path):
    with pytest.raises(RetFoundError, match="modality 'mri' is unknown; choose one of cfp, oct"):
        make_synthetic(tmp_path / "set", "mri")
    with pytest.raises(RetFoundError, match="num_patients 5 is too small for three splits; give at least 13"):
        make_synthetic(tmp_path / "set", num_patients=5)
    with pytest.raises(RetFoundError, match="stage 'advanced' is not known for oct; choose early"):
        make_synthetic(tmp_path / "set", "oct", stage="advanced")
    (tmp_path / "set").mkdir()
    (tmp_path / "set/mine.txt").write_text("x")
    with pytest.raises(RetFoundError, match="is not empty"):
        make_synthetic(tmp_path / "set", num_patients=13)


def test_command(tmp_path):
    main([str(tmp_path / "set"), "--modality", "oct", "--num_patients", "13", "--image_size", "64", "--seed", "2"])
    record = json.loads((tmp_path / "set/run.json").read_text())
    assert (record["command"], record["seed"], record["arguments"]["modality"]) == ("make_synthetic", 2, "oct")
