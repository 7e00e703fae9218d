"""Evaluation of a folder on labelled sets like the one it was trained on, and on others."""

import json
import logging
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from noise import with_noise
from peft import LoraConfig, get_peft_model
from sklearn.metrics import roc_auc_score
from tiny import named
from transformers import AutoModelForImageClassification
from two_processes import run_in_two

from retfound_hf import RetFoundImageProcessor
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError, OutputError, RetFoundError
from retfound_hf.evaluation.report import ReportArguments, write_points
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.inference.evaluate import evaluate, main, split_of_training, splits_in_training, write_splits
from retfound_hf.inference.predict import Classifier
from retfound_hf.models.loading import load_processor

CLASSES = ("mild", "none", "severe")
COLUMNS = [f"prob/{name}" for name in CLASSES]
SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def evaluated(classifier_folder, cache_dir, tmp_path):
    """Evaluates and returns what was written."""

    def run(data, model=classifier_folder, **options):
        folder = Path(options.pop("output_dir", tmp_path / "out"))
        done = evaluate(model, data, folder, cache_dir=str(cache_dir), dataloader_num_workers=0, **options)
        metrics, record = (json.loads((folder / name).read_text()) for name in ("metrics.json", "run.json"))
        assert metrics == done.metrics
        predictions = pd.read_csv(folder / "predictions.csv", keep_default_na=False)
        return SimpleNamespace(metrics=metrics, predictions=predictions, record=record, folder=folder, result=done)

    return run


@pytest.fixture
def absolute(labelled_table):
    """The labelled table with absolute paths, to be changed and written elsewhere."""
    table = pd.read_csv(labelled_table, keep_default_na=False)
    table["image"] = [str(labelled_table.parent / name) for name in table["image"]]
    return table


def expected_probabilities(folder, files) -> np.ndarray:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = RetFoundImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor([str(file) for file in files], return_tensors="pt")).logits.softmax(-1).numpy()


def test_predictions_are_the_models_own(evaluated, classifier_folder, labelled_table):
    done = evaluated(labelled_table, per_device_eval_batch_size=7)
    source = pd.read_csv(labelled_table, keep_default_na=False)
    test, table = source[source["split"] == "test"], done.predictions
    assert list(table.columns) == ["id", "label", "prediction", *COLUMNS, "patient_id"]
    assert list(table["id"]) == list(test["image"]) == list(done.result.predictions.ids)
    assert list(table["label"]) == list(test["label"])
    assert list(table["patient_id"]) == list(test["patient_id"])
    files = [labelled_table.parent / name for name in test["image"]]
    found = table[COLUMNS].to_numpy()
    assert found == pytest.approx(expected_probabilities(classifier_folder, files), abs=1e-5)
    aurocs = [roc_auc_score(test["label"] == name, found[:, index]) for index, name in enumerate(CLASSES)]
    assert done.metrics["auroc"] == pytest.approx(np.mean(aurocs))
    assert [done.metrics[f"auroc/{name}"] for name in CLASSES] == pytest.approx(aurocs)
    assert (done.record["images"], done.record["command"]) == (25, "evaluate")


@pytest.mark.parametrize(("split", "count"), [("train", 21), ("val", 15), ("all", 61)])
def test_other_splits(evaluated, labelled_table, split, count):
    assert len(evaluated(labelled_table, split=split).predictions) == count


def test_an_external_set_need_not_have_every_class_nor_splits(evaluated, labelled_table, classifier_folder, tmp_path):
    """Class folders, of which the model's first is absent and whose order is the disk's own."""
    source = pd.read_csv(labelled_table, keep_default_na=False)
    for row in source[source["label"] != "mild"].to_dict("records"):
        place = tmp_path / "external" / row["label"] / row["image"].split("/")[1]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(labelled_table.parent / row["image"], place)
    with pytest.warns(UserWarning, match="mild"):
        done = evaluated(tmp_path / "external", split="all")
    assert done.metrics["auroc/mild"] is None
    assert done.metrics["auroc"] == pytest.approx(np.mean([done.metrics[f"auroc/{name}"] for name in CLASSES[1:]]))
    files = [tmp_path / "external" / name for name in done.predictions["id"]]
    found = done.predictions[COLUMNS].to_numpy()
    assert found == pytest.approx(expected_probabilities(classifier_folder, files), abs=1e-5)
    assert "patient_id" not in done.predictions


def test_a_single_class_gives_nulls_and_no_crash(evaluated, absolute, tmp_path):
    table = absolute[absolute["label"] == "none"].drop(columns="split")
    table.to_csv(tmp_path / "one.csv", index=False)
    with pytest.warns(UserWarning):
        done = evaluated(tmp_path / "one.csv", split="all")
    assert done.metrics["auroc"] is None and 0 <= done.metrics["accuracy"] <= 1
    assert len(done.predictions) == len(table)


def test_without_a_folder_nothing_is_written(classifier_folder, evaluated, absolute, cache_dir, tmp_path, capsys):
    (tmp_path / "work").mkdir()
    absolute["label"] = absolute.groupby("patient_id")["label"].transform("first")
    absolute.to_csv(tmp_path / "set.csv", index=False)
    options = {"level": "patient", "confidence_intervals": True, "resamples": 100, "split": "all"}
    done = evaluate(
        classifier_folder, tmp_path / "set.csv", cache_dir=str(cache_dir), dataloader_num_workers=0, **options
    )
    assert done.output_dir is None and not (tmp_path / "out").exists()
    assert done.metrics == evaluated(tmp_path / "set.csv", **options).metrics
    assert done.metrics["auroc_ci95"][0] < done.metrics["auroc"] < done.metrics["auroc_ci95"][1]
    assert len(done.predictions) == 61  # images, whatever the level
    assert capsys.readouterr().out == ""


def test_the_command_with_all_that_a_report_can_hold(classifier_folder, labelled_table, tmp_path, capsys):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(classifier_folder, folder)
    write_points(folder, [OperatingPoint("mild", "youden", None, 0.3)], ReportArguments(), images=15)
    words = ["--model_name_or_path", folder, "--data", labelled_table, "--output_dir", out, "--split", "all",
             "--dataloader_num_workers", "0", "--confidence_intervals", "--subgroup_columns", "split",
             "--resamples", "100"]  # fmt: skip
    main([str(word) for word in words])
    names = {path.name for path in out.iterdir()}
    assert {"intervals.csv", "calibration.csv", "subgroups.csv", "operating_points.csv"} <= names
    assert json.loads((out / "run.json").read_text())["arguments"]["confidence_intervals"] is True
    assert "auroc" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"subgroup_columns": ["patient"]}, RetFoundError),
        ({"subgroup_columns": ["split", "id:1,2"]}, RetFoundError),
        ({"resamples": 10}, RetFoundError),
        ({"level": "eye"}, RetFoundError),
        ({"level": "patient"}, RetFoundError),
        ({"per_device_eval_batch_size": 0}, BadArgumentError),
        ({"split": "tset"}, RetFoundError),
    ],
)
def test_requests_that_cannot_be_met(evaluated, labelled_table, tmp_path, options, error):
    with pytest.raises(error):
        evaluated(labelled_table, **options)
    assert not (tmp_path / "out").exists()


def test_models_and_data_that_cannot_be_used(evaluated, encoder_folder, absolute, labelled_table, tmp_path):
    for model in (encoder_folder, tmp_path / "absent"):
        with pytest.raises(BadModelError) as error:
            evaluated(labelled_table, model=model)
        assert error.value.model == str(model)
    unknown, untested, moved = absolute.copy(), absolute[absolute["split"] != "test"], absolute.copy()
    unknown.loc[unknown["label"] == "severe", "label"] = "proliferative"
    moved["image"] = moved["image"] + "x"
    for name, table in {"unknown": unknown, "untested": untested, "moved": moved}.items():
        table.to_csv(tmp_path / f"{name}.csv", index=False)
    for name in ("unknown", "untested", "moved", "absent"):
        with pytest.raises(RetFoundError):
            evaluated(tmp_path / f"{name}.csv")
    assert not (tmp_path / "out").exists()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(OutputError):
        evaluated(labelled_table)
    with pytest.raises(TypeError):
        evaluate("x", "y", splitt="test")


def test_corrupt_images_are_named_or_skipped(evaluated, labelled_table, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(labelled_table.parent, root)
    victim = root / "images" / "40.png"
    victim.write_bytes(b"no image")
    with pytest.raises(BadDataError) as error:
        evaluated(root / "table.csv")
    assert "40.png" in str(error.value)
    done = evaluated(root / "table.csv", on_bad_image="skip")
    assert len(done.predictions) == 24
    assert done.record["rejected_images"][0][0] == str(victim)
    source = pd.read_csv(labelled_table, keep_default_na=False).set_index("image")
    assert list(done.predictions["label"]) == list(source.loc[done.predictions["id"], "label"])


def test_how_a_table_without_splits_is_split(tmp_path):
    table = pd.DataFrame({"id": ["a"], "image": ["a.png"], "patient_id": [None]})
    record = {"arguments": {"split_seed": 3, "split_fractions": [0.6, 0.2, 0.2], "data": "set.csv"}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    found = split_of_training(str(tmp_path), 5, "set.csv")
    assert (found["seed"], found["split_fractions"]) == (3, (0.6, 0.2, 0.2))
    assert found["divide"](table) is None  # a folder without a list of its images: by seed and fractions
    assert list(split_of_training(str(tmp_path), 5, "other.csv")["divide"](table)) == ["all"]


@pytest.fixture(scope="module")
def trained(classifier_folder, labelled_table, tmp_path_factory):
    """A folder that was trained on the first 50 images of the labelled table, without its splits; and their splits."""
    folder = tmp_path_factory.mktemp("trained") / "model"
    shutil.copytree(classifier_folder, folder)
    source = pd.read_csv(labelled_table, keep_default_na=False).drop(columns="split")
    source["patient_id"] = [f"P{number // 2:02d}" for number in range(len(source))]
    images = [str(labelled_table.parent / name) for name in source["image"]]
    table = source.assign(id=source["image"], image=images)[:50]
    splits = np.repeat(["train", "val", "test"], (24, 8, 18))
    write_splits(folder, table.assign(split=splits))
    return SimpleNamespace(folder=folder, source=source.assign(image=images), splits=pd.Series(splits))


@pytest.mark.parametrize("way", ["grown", "renamed", "relative", "copied", "all", "column"])
def test_a_model_is_not_tested_on_what_it_was_trained_on(evaluated, trained, tmp_path, monkeypatch, caplog, way):
    table, path, data, options = trained.source.copy(), tmp_path / "labels.csv", None, {"model": trained.folder}
    if way == "copied":  # under other names, in another folder and another format of the table's paths
        for number, image in enumerate(table["image"]):
            shutil.copy(image, tmp_path / f"copy{number}.png")
        table["image"] = [f"./copy{number}.png" for number in range(len(table))]
    if way == "relative":
        monkeypatch.chdir(tmp_path)
        data = "labels.csv"
    if way == "column":
        table["split"] = "Test_Set"
    if way == "all":
        options["split"] = "all"
    table.to_csv(path, index=False)
    with caplog.at_level(logging.INFO, "retfound_hf"):
        done = evaluated(data or path, **options)
    # The 18 test images of the training, and 11 that it has not seen.
    assert len(done.predictions) == 29
    assert set(done.predictions["patient_id"]) == {f"P{number:02d}" for number in range(16, 31)}
    assert "29 of its 61 images" in caplog.text
    assert ("32 of 61" in caplog.text) == (way in ("all", "column"))


def test_a_split_that_is_asked_for_is_that_of_the_training(evaluated, trained, tmp_path):
    trained.source.to_csv(tmp_path / "labels.csv", index=False)
    for split, count in {"train": 24, "val": 8}.items():
        assert len(evaluated(tmp_path / "labels.csv", model=trained.folder, split=split).predictions) == count
        shutil.rmtree(tmp_path / "out")
    trained.source[:30].to_csv(tmp_path / "labels.csv", index=False)
    for split in ("test", "all"):
        with pytest.raises(RetFoundError):
            evaluated(tmp_path / "labels.csv", model=trained.folder, split=split)


def test_new_images_of_trained_patients_are_no_test_images(trained):
    """Two images of one patient of whom the training saw one."""
    table = trained.source.assign(id=trained.source["image"])
    table = pd.concat([table[:50], pd.DataFrame([{"id": "new", "image": "new.png", "patient_id": "P00"}])])
    table = table.reset_index(drop=True)
    assert splits_in_training(str(trained.folder), table, None).iloc[-1] == "train"
    # Patients of a set without a known image are others, whatever their names.
    assert splits_in_training(str(trained.folder), table[-1:], None).isna().all()


def test_images_that_the_base_was_trained_on_are_known_too(trained, tmp_path):
    table = trained.source.assign(id=trained.source["image"])
    write_splits(tmp_path, table[50:].assign(split="test"), str(trained.folder))
    found = splits_in_training(str(tmp_path), table, None)
    assert found.value_counts().to_dict() == {"train": 24, "val": 8, "test": 11}


def test_an_unseen_table_without_splits_is_evaluated_whole(evaluated, trained, tmp_path, caplog):
    trained.source[50:].to_csv(tmp_path / "other.csv", index=False)
    with caplog.at_level(logging.INFO, "retfound_hf"):
        assert len(evaluated(tmp_path / "other.csv", model=trained.folder).predictions) == 11
    assert "11 of its 11 images" in caplog.text


def test_a_list_of_names_alone_is_read_as_before(trained, tmp_path):
    table = trained.source.assign(id=trained.source["image"])
    (tmp_path / "run.json").write_text(json.dumps({"arguments": {"data": "labels.csv"}}))
    listed = table[:50].assign(split=trained.splits)[["id", "patient_id", "split"]]
    listed.to_csv(tmp_path / "splits.csv", index=False)
    assert list(splits_in_training(str(tmp_path), table, "labels.csv")[:50]) == list(trained.splits)
    assert splits_in_training(str(tmp_path), table, "elsewhere.csv").isna().all()


def test_two_processes_write_what_one_writes(classifier_folder, labelled_table, tmp_path):
    def words(name: str) -> list[str]:
        return [
            "--model_name_or_path", str(classifier_folder), "--data", str(labelled_table), "--output_dir",
            str(tmp_path / name), "--cache_dir", str(tmp_path / f"cache-{name}"), "--dataloader_num_workers", "0",
            "--per_device_eval_batch_size", "1",
        ]  # fmt: skip

    printed = run_in_two(SCRIPTS / "evaluate.py", words("two"), tmp_path, CUDA_VISIBLE_DEVICES="")
    assert printed.count("balanced_accuracy") == 1
    main(words("one"))
    for name in ("metrics.json", "predictions.csv"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name


def test_an_adapter_of_peft_is_evaluated(encoder_folder, labelled_table, evaluated, caplog, tmp_path):
    """It has no names of classes: the outputs are taken in the order of the data's, and that is said."""
    network = AutoModelForImageClassification.from_pretrained(encoder_folder, num_labels=3)
    adapted = get_peft_model(network, LoraConfig(target_modules=["query"], modules_to_save=["classifier"]))
    with_noise(adapted.base_model.model.classifier, 0.5)
    adapted.save_pretrained(tmp_path / "adapter")
    found = evaluated(labelled_table, tmp_path / "adapter")
    assert "mild, none, severe" in caplog.text
    adapted.eval().get_base_model().config.update(named(CLASSES))
    expected = Classifier(adapted, load_processor(str(encoder_folder)))
    files = [labelled_table.parent / name for name in found.predictions["id"]]
    assert np.allclose(found.predictions[COLUMNS], expected.predict(files).scores, atol=1e-5)


def test_a_model_without_names_of_classes(labelled_table, absolute, classifier_folder, evaluated, tmp_path):
    """Numbers are the places of its outputs; names that are sorted in two ways are not guessed."""
    folder = Path(shutil.copytree(classifier_folder, tmp_path / "unnamed"))
    config = json.loads((folder / "config.json").read_text())
    config |= {"id2label": {str(place): f"LABEL_{place}" for place in range(3)}}
    config |= {"label2id": {f"LABEL_{place}": place for place in range(3)}}
    (folder / "config.json").write_text(json.dumps(config))
    expected = evaluated(labelled_table, output_dir=tmp_path / "named").metrics
    absolute.assign(label=[CLASSES.index(name) for name in absolute["label"]]).to_csv(tmp_path / "n.csv", index=False)
    found = evaluated(tmp_path / "n.csv", folder, output_dir=tmp_path / "numbers").metrics
    assert (found["auroc"], found["accuracy"]) == (expected["auroc"], expected["accuracy"])
    stages = absolute["label"].map({"mild": "stage 2", "none": "stage 1", "severe": "stage 10"})
    absolute.assign(label=stages).to_csv(tmp_path / "stages.csv", index=False)
    with pytest.raises(BadDataError):
        evaluated(tmp_path / "stages.csv", folder, output_dir=tmp_path / "refused")
