"""Evaluation of a folder on labelled sets like the one it was trained on, and on others."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score
from transformers import AutoModelForImageClassification

from retfound_hf import RetFoundImageProcessor
from retfound_hf.inference.evaluate import main
from retfound_hf.options import run_command

CLASSES = ("mild", "none", "severe")


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("decoded")


@pytest.fixture
def evaluated(classifier_folder, cache_dir, tmp_path):
    """Runs the command; returns metrics, predictions and the record."""

    def run(data, *words, out="out"):
        main(
            ["--model_name_or_path", str(classifier_folder), "--data", str(data), "--output_dir", str(tmp_path / out),
             "--cache_dir", str(cache_dir), "--dataloader_num_workers", "0", *map(str, words)]
        )  # fmt: skip
        folder = tmp_path / out
        return (
            json.loads((folder / "metrics.json").read_text()),
            pd.read_csv(folder / "predictions.csv", keep_default_na=False),
            json.loads((folder / "run.json").read_text()),
        )

    return run


def expected_probabilities(folder, files) -> np.ndarray:
    model = AutoModelForImageClassification.from_pretrained(folder).eval()
    processor = RetFoundImageProcessor.from_pretrained(folder)
    with torch.no_grad():
        return model(**processor([str(file) for file in files], return_tensors="pt")).logits.softmax(-1).numpy()


def test_predictions_are_the_models_own(evaluated, classifier_folder, labelled_table):
    metrics, predictions, record = evaluated(labelled_table, "--per_device_eval_batch_size", 7)
    source = pd.read_csv(labelled_table, keep_default_na=False)
    test = source[source["split"] == "test"]
    assert list(predictions.columns) == [
        "id", "label", "prediction", "prob/mild", "prob/none", "prob/severe", "patient_id",
    ]  # fmt: skip
    assert list(predictions["id"]) == list(test["image"])
    assert list(predictions["label"]) == list(test["label"])
    assert list(predictions["patient_id"]) == list(test["patient_id"])
    files = [labelled_table.parent / name for name in test["image"]]
    found = predictions[[f"prob/{name}" for name in CLASSES]].to_numpy()
    assert found == pytest.approx(expected_probabilities(classifier_folder, files), abs=1e-5)
    aurocs = [roc_auc_score(test["label"] == name, found[:, index]) for index, name in enumerate(CLASSES)]
    assert metrics["auroc"] == pytest.approx(np.mean(aurocs))
    assert [metrics[f"auroc/{name}"] for name in CLASSES] == pytest.approx(aurocs)
    assert record["images"] == 25
    assert record["command"] == "evaluate"


@pytest.mark.parametrize(("split", "count"), [("train", 21), ("val", 15), ("all", 61)])
def test_other_splits(evaluated, labelled_table, split, count):
    assert len(evaluated(labelled_table, "--split", split)[1]) == count


def test_an_external_set_need_not_have_every_class_nor_splits(evaluated, labelled_table, classifier_folder, tmp_path):
    """Class folders, of which the model's first is absent and whose order is the disk's own."""
    source = pd.read_csv(labelled_table, keep_default_na=False)
    for row in source[source["label"] != "mild"].to_dict("records"):
        place = tmp_path / "external" / row["label"] / row["image"].split("/")[1]
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(labelled_table.parent / row["image"], place)
    with pytest.warns(UserWarning, match="mild"):
        metrics, predictions, _ = evaluated(tmp_path / "external", "--split", "all")
    assert metrics["auroc/mild"] is None
    assert metrics["auroc"] == pytest.approx(np.mean([metrics["auroc/none"], metrics["auroc/severe"]]))
    files = [tmp_path / "external" / name for name in predictions["id"]]
    found = predictions[[f"prob/{name}" for name in CLASSES]].to_numpy()
    assert found == pytest.approx(expected_probabilities(classifier_folder, files), abs=1e-5)
    assert "patient_id" not in predictions


def test_a_single_class_gives_nulls_and_no_crash(evaluated, labelled_table, tmp_path):
    source = pd.read_csv(labelled_table, keep_default_na=False)
    table = source[source["label"] == "none"].drop(columns="split")
    table["image"] = [str(labelled_table.parent / name) for name in table["image"]]
    table.to_csv(tmp_path / "one.csv", index=False)
    with pytest.warns(UserWarning):
        metrics, predictions, _ = evaluated(tmp_path / "one.csv", "--split", "all")
    assert metrics["auroc"] is None
    assert 0 <= metrics["accuracy"] <= 1
    assert len(predictions) == len(table)


@pytest.fixture
def refused(classifier_folder, labelled_table, cache_dir, tmp_path, capsys):
    def run(**changes) -> str:
        options = {
            "model_name_or_path": classifier_folder, "data": labelled_table, "output_dir": tmp_path / "refused",
            "cache_dir": cache_dir, "dataloader_num_workers": 0, **changes,
        }  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        capsys.readouterr()
        assert run_command(main, words) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert lines[-1].startswith("error: ")
        assert sum(line.startswith("error: ") for line in lines) == 1
        assert not any("Traceback" in line for line in lines)
        if "output_dir" not in changes:
            assert not (tmp_path / "refused").exists()
        return lines[-1]

    return run


def test_models_without_a_head_are_refused(refused, encoder_folder, tmp_path):
    assert "has no trained classifier" in refused(model_name_or_path=encoder_folder)
    assert "neither a model folder" in refused(model_name_or_path=tmp_path / "absent")


def test_labels_the_model_does_not_know_are_named(refused, labelled_table, tmp_path):
    table = pd.read_csv(labelled_table, keep_default_na=False)
    table["image"] = [str(labelled_table.parent / name) for name in table["image"]]
    table.loc[table["label"] == "severe", "label"] = "proliferative"
    table.to_csv(tmp_path / "unknown.csv", index=False)
    message = refused(data=tmp_path / "unknown.csv")
    assert "label(s) proliferative are unknown to the model, whose classes are mild, none, severe" in message


def test_other_bad_input(refused, labelled_table, tmp_path):
    assert "does not exist" in refused(data=tmp_path / "absent.csv")
    assert "invalid choice: 'tset'" in refused(split="tset")
    assert "unknown option --splitt; did you mean --split?" in refused(splitt="test")
    occupied = tmp_path / "occupied"
    occupied.mkdir()
    (occupied / "notes.txt").write_text("mine")
    assert "is not empty" in refused(output_dir=occupied)
    assert "must be at least 1" in refused(per_device_eval_batch_size=0)
    table = pd.read_csv(labelled_table, keep_default_na=False)
    table["image"] = [str(labelled_table.parent / name) for name in table["image"]]
    table[table["split"] != "test"].to_csv(tmp_path / "untested.csv", index=False)
    assert "has no test split" in refused(data=tmp_path / "untested.csv")
    table["image"] = table["image"] + "x"
    table.to_csv(tmp_path / "moved.csv", index=False)
    assert "image files do not exist" in refused(data=tmp_path / "moved.csv")


def test_corrupt_images_are_named_or_skipped(refused, evaluated, labelled_table, tmp_path):
    root = tmp_path / "damaged"
    shutil.copytree(labelled_table.parent, root)
    victim = root / "images" / "40.png"
    victim.write_bytes(b"no image")
    assert "40.png" in refused(data=root / "table.csv")
    _, predictions, record = evaluated(root / "table.csv", "--on_bad_image", "skip")
    assert len(predictions) == 24
    assert record["rejected_images"][0][0] == str(victim)
    source = pd.read_csv(labelled_table, keep_default_na=False).set_index("image")
    assert list(predictions["label"]) == list(source.loc[predictions["id"], "label"])


def test_a_table_without_splits_is_split_as_in_training(classifier_folder, tmp_path):
    from retfound_hf.inference.evaluate import split_of_training

    assert split_of_training(str(classifier_folder), 5) == {"seed": 5}
    record = {"arguments": {"split_seed": 3, "split_fractions": [0.6, 0.2, 0.2]}}
    (tmp_path / "run.json").write_text(json.dumps(record))
    assert split_of_training(str(tmp_path), 5) == {"seed": 3, "split_fractions": (0.6, 0.2, 0.2)}
