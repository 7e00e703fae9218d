"""Predictions for images without labels: those of `evaluate` and `pipeline`, with thresholds, quality, patients."""

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pandas as pd
import pytest
from tiny import save_classifier, save_noise
from transformers import pipeline

import retfound_hf as rf
from retfound_hf.errors import BadDataError
from retfound_hf.evaluation.report import ReportArguments, write_points
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.images.reading import find_images
from retfound_hf.inference.unlabelled import main

QUIET = {"dataloader_num_workers": 0}


@pytest.fixture(scope="module")
def unlabelled(labelled_table, tmp_path_factory):
    """The labelled table without labels and splits, in another order, with eyes."""
    table = pd.read_csv(labelled_table).sample(frac=1, random_state=0).drop(columns=["label", "split"])
    table["image"] = "./" + table["image"]
    path = labelled_table.parent / "unlabelled.csv"
    table.assign(eye=["L", "R"] * 30 + ["L"]).to_csv(path, index=False)
    return path


def test_probabilities_are_those_of_evaluate_and_of_the_pipeline(
    classifier_folder, labelled_table, unlabelled, tmp_path
):
    expected = rf.evaluate(
        classifier_folder, labelled_table, split="all", cache_dir=str(tmp_path), **QUIET
    ).predictions
    found = rf.predict(classifier_folder, unlabelled, **QUIET).predictions
    assert found.targets is None and np.array_equal(found.ids, expected.ids)
    assert np.array_equal(found.scores, expected.scores) and np.array_equal(found.patients, expected.patients)
    assert set(found.eyes) == {"L", "R"}
    in_folder = rf.predict(classifier_folder, labelled_table.parent / "images", **QUIET).predictions
    assert np.array_equal(in_folder.scores, expected.scores) and in_folder.patients is None
    classify = pipeline("image-classification", model=str(classifier_folder))
    said = {one["label"]: one["score"] for one in classify(str(labelled_table.parent / "images/07.png"))}
    row = found.scores[list(found.ids).index("images/07.png")]
    assert [said[name] for name in found.class_names] == pytest.approx(list(row), abs=1e-5)


def test_what_is_written(classifier_folder, unlabelled, images_folder, tmp_path, capsys):
    model = tmp_path / "model"
    model.symlink_to(classifier_folder)
    (tmp_path / "data").mkdir()
    for number, path in enumerate(find_images(images_folder)[:6]):
        (tmp_path / f"data/{number}{path.suffix}").write_bytes(path.read_bytes())
    (tmp_path / "data/bad.png").write_bytes(b"x")
    words = ["--model_name_or_path", str(model), "--data", str(tmp_path / "data"), "--dataloader_num_workers", "0"]
    main([*words, "--output_dir", str(tmp_path / "out")])
    said = capsys.readouterr().out
    assert "6 images" in said and "1 images could not be read" in said and "6 reject" in said
    table = pd.read_csv(tmp_path / "out/predictions.csv")
    classes = ["prob/mild", "prob/none", "prob/severe"]
    assert list(table) == ["id", "prediction", *classes, "quality", "quality_reasons"] and len(table) == 6
    assert (table["prediction"] == table[classes].idxmax(axis=1).str.removeprefix("prob/")).all()
    assert set(table["quality"]) == {"reject"} and table["quality_reasons"].str.contains("too small").all()
    assert pd.read_csv(tmp_path / "out/rejected.csv")["id"].tolist() == ["bad.png"]
    assert json.loads((tmp_path / "out/run.json").read_text())["images"] == 6
    for options in ({"on_bad_image": "error"}, {}):
        if not options:
            for path in (tmp_path / "data").iterdir():
                path.write_bytes(b"x")
        with pytest.raises(BadDataError) as error:
            rf.predict(model, tmp_path / "data", **QUIET, **options)
        assert "bad.png" in error.value.rows


def test_thresholds_of_the_model_are_applied(tmp_path, labelled_table, unlabelled):
    model = save_classifier(tmp_path / "model", ("mild", "none", "severe"), class_order=["none", "mild", "severe"])
    points = [OperatingPoint("severe", "sensitivity", 0.9, 0.694), OperatingPoint("none", "youden", None, 0.15)]
    write_points(model, points, ReportArguments(), 30)
    found = rf.predict(model, unlabelled, **QUIET)
    table, scores = found.table, found.predictions.scores
    assert found.predictions.class_order == ("none", "mild", "severe")
    assert table["positive/severe/sensitivity_0.9"].tolist() == (scores[:, 2] >= 0.694).astype(int).tolist()
    assert table["positive/none/youden"].tolist() == (scores[:, 1] >= 0.15).astype(int).tolist()
    assert 0 < table["positive/severe/sensitivity_0.9"].sum() < 61
    assert {"patient_id", "eye", "quality"} <= set(table)
    write_points(model, points, dataclasses.replace(ReportArguments(), level="patient"), 30)
    assert not any(name.startswith("positive/") for name in rf.predict(model, unlabelled, **QUIET).table)


@pytest.mark.parametrize("kind", ["multi_label_classification", "regression"])
def test_findings_and_numbers(tmp_path, labelled_table, kind):
    model = save_classifier(tmp_path / "model", ("one", "two"), problem_type=kind)
    table = pd.read_csv(labelled_table)[["image"]].assign(one=[0.0, 1.0] * 30 + [1.0], two=[1.0, 0.0] * 30 + [1.0])
    table.to_csv(labelled_table.parent / "two.csv", index=False)
    data = labelled_table.parent / "two.csv"
    expected = rf.evaluate(model, data, split="all", cache_dir=str(tmp_path / "c"), **QUIET).predictions
    found = rf.predict(model, data, **QUIET)
    assert np.array_equal(found.predictions.scores, expected.scores)
    written = found.table.drop(columns=["quality", "quality_reasons"])
    pd.testing.assert_frame_equal(written, expected.table().filter(regex="^(id|pred|prob)"))


def test_patients_of_a_folder_and_of_shards(classifier_folder, tmp_path):
    for number in range(5):
        save_noise(tmp_path / f"data/{number}.png", number)
    known = pd.DataFrame({"image": [f"{n}.png" for n in range(4)], "patient_id": list("aabb"), "eye": list("LRLR")})
    known.to_csv(tmp_path / "data/metadata.csv", index=False)
    found = rf.predict(classifier_folder, tmp_path / "data", **QUIET)
    assert found.table["patient_id"].fillna("?").tolist() == list("aabb?")
    contents = [(tmp_path / f"data/{n}.png").read_bytes() for n in range(5)]
    pd.DataFrame({"image": contents, "patient_id": list("aabbc")}).to_parquet(tmp_path / "five.parquet")
    stored = rf.predict(classifier_folder, tmp_path / "five.parquet", **QUIET)
    assert np.array_equal(stored.predictions.scores, found.predictions.scores)
    assert stored.table["patient_id"].tolist() == list("aabbc") and stored.table["id"].tolist()[0] == "train/0"
    listed = rf.predict(classifier_folder, contents, **QUIET)
    assert np.array_equal(listed.predictions.scores, found.predictions.scores)


def test_every_command_takes_a_hub_data_set_with_the_ids_of_evaluate(classifier_folder, tmp_path, monkeypatch):
    for number in range(6):
        save_noise(tmp_path / f"{number}.png", number)
    images = [str(tmp_path / f"{number}.png") for number in (3, 1, 0, 2, 5, 4)]
    part = datasets.Dataset.from_dict(
        {"image": images, "label": ["mild", "none", "severe"] * 2, "patient_id": [*"aabbcc"]}
    )
    parts = {"train": part.select(range(4)), "test": part.select(range(4, 6))}
    monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: SimpleNamespace(cache_dir=tmp_path))
    monkeypatch.setattr(datasets, "load_dataset", lambda name: parts)
    options = {**QUIET, "image_root": str(tmp_path)}
    expected = rf.evaluate(classifier_folder, "me/eyes", split="all", cache_dir=str(tmp_path), **options).predictions
    found = rf.predict(classifier_folder, "me/eyes", **options)
    assert list(found.predictions.ids) == list(expected.ids) == [f"{number}.png" for number in range(6)]
    assert np.array_equal(found.predictions.scores, expected.scores)
    assert found.table["patient_id"].tolist() == list(expected.patients)
    embedded = rf.embed(classifier_folder, "me/eyes", tmp_path / "features", **options)
    alone = rf.embed(classifier_folder, images, **options)
    assert list(embedded.ids) == [Path(path).name for path in images]
    assert np.array_equal(embedded.vectors, alone.vectors)
    maps = rf.explain(classifier_folder, "me/eyes", **options)
    assert [one.opened.id for one in maps] == list(embedded.ids)


@pytest.mark.slow
def test_batches_in_real_processes_are_those_of_evaluate(classifier_folder, labelled_table, unlabelled, tmp_path):
    options = {"dataloader_num_workers": 2, "per_device_eval_batch_size": 2}
    expected = rf.evaluate(classifier_folder, labelled_table, split="all", cache_dir=str(tmp_path), **options)
    found = rf.predict(classifier_folder, unlabelled, **options)
    assert np.array_equal(found.predictions.scores, expected.predictions.scores)
