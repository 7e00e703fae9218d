"""The study file: unknown keys are refused at every level, values checked with their place, paths absolute."""

import pytest
import yaml

from retfound_hf.errors import BadArgumentError, BadDataError
from retfound_hf.study.config import read_settings
from retfound_hf.study.tables import shared_text, study_text, without_paths


def external(value):
    return {"data": {"D": {"data": "inside", "external": value}}}


@pytest.mark.parametrize(
    ("parts", "field", "near"),
    [
        ({"fractoins": [0.1]}, "fractoins", "fractions"),
        ({"models": {"A": {"model_name": "first"}}}, "models.A.model_name", "model_name_or_path"),
        ({"models": {"A": {"model_name_or_path": {"cpf": "first"}}}}, "models.A.model_name_or_path.cpf", "cfp"),
        ({"models": {"A": {"model_name_or_path": "first", "config_name": "x"}}}, "models.A", ""),
        ({"models": {"a/b": "first"}}, "models.a/b", ""),
        ({"models": {"A": 3}}, "models.A", ""),
        ({"models": []}, "models", ""),
        ({"models": None}, "models", ""),
        ({"methods": {"linaer": {}}}, "methods.linaer.method", "linear"),
        ({"methods": {"full": {"num_epochs": 3}}}, "methods.full.num_epochs", "num_train_epochs"),
        ({"methods": []}, "methods", ""),
        ({"methods": [["linear"]]}, "methods", ""),
        ({"methods": ["linear", "linear"]}, "methods", ""),
        ({"methods": "linear"}, "methods", ""),
        ({"data": {"D": {"modality": "cfp"}}}, "data.D.data", ""),
        ({"data": {"D": {"data": "inside", "modality": "octt"}}}, "data.D.modality", "oct"),
        ({"data": {"D": {"data": "inside", "extrenal": ["x"]}}}, "data.D.extrenal", "external"),
        (external({"E": {"data": "outside", "splti": "all"}}), "data.D.external.E.splti", "split"),
        (external({"E": {"data": "outside", "split": "tset"}}), "data.D.external.E.split", ""),
        (external({"test": "outside"}), "data.D.external.test", ""),
        (external(["Dd"]), "data.D.external", "D"),
        (external([["x"]]), "data.D.external", ""),
        ({"models": {"First": "retfound", "first": "retfound"}}, "models", ""),
        ({"models": {"a\nb": "retfound"}}, "models.a\nb", ""),
        ({"metrics": ["aurocc"]}, "metrics.0", "auroc"),
        ({"metrics": []}, "metrics", ""),
        ({"reporting": {"reference": "first"}}, "reporting.reference", "First"),
        ({"reporting": {"sub_groups": ["camera"]}}, "reporting.sub_groups", "subgroups"),
        ({"reporting": {"sensitivity": []}}, "reporting.sensitivity", ""),
        ({"reporting": {"resamples": 99}}, "reporting.resamples", ""),
        ({"reporting": {"resamples": -1}}, "reporting.resamples", ""),
        ({"reporting": {"level": "eyes"}}, "reporting.level", ""),
        ({"finetune": {"seed": 3}}, "finetune.seed", ""),
        ({"fractions": [0, 1]}, "fractions.0", ""),
        ({"fractions": []}, "fractions", ""),
        ({"seeds": [1, 1]}, "seeds", ""),
        ({"seeds": ["one"]}, "seeds.0", ""),
        ({"seeds": [True]}, "seeds.0", ""),
        ({"seeds": []}, "seeds", ""),
        ({"keep_models": "yes"}, "keep_models", ""),
    ],
)
def test_a_wrong_value_is_refused_with_its_place_and_the_nearest_name(study_file, parts, field, near):
    with pytest.raises(BadArgumentError) as error:
        read_settings(study_file(**parts))
    assert error.value.field == field
    said = str(error.value)
    assert " ".join(field.split()) in said and "\n" not in said and (f"did you mean {near}?" in said if near else True)


def test_a_single_value_stands_for_a_list_and_subgroups_may_be_none(study_file):
    study = read_settings(study_file(seeds=3, metrics="auprc", reporting={"resamples": 0, "subgroups": []}))
    assert (study.seeds, study.metrics, study.reporting.subgroups) == ((3,), ("auprc",), ())
    assert (study.reporting.resamples, study.reporting.reference) == (0, "First")


@pytest.mark.parametrize(
    "content",
    [
        "name: Müller\n".encode("latin-1"),
        "name: Trial\n".encode("utf-16"),
        b"name: 2020-13-45\n",
        b"models: [retfound\n",
        b"image,label\na.jpg,normal\n",  # a table: no names with values
        b"models: {A: x}\nmethods: [linear]\ndata: {D: x}\nmodels: {B: y}\n",  # a key twice
    ],
)
def test_a_file_that_is_not_yaml_is_refused_in_one_line(tmp_path, content):
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(BadDataError) as error:
        read_settings(tmp_path / "odd.yaml")
    assert error.value.source == str(tmp_path / "odd.yaml") and "\n" not in str(error.value)


def test_a_study_is_read_back_from_its_own_text(study_file, desk, tmp_path):
    study = read_settings(
        study_file(
            models={
                "First": {"model_name_or_path": "first", "image_size": 64},
                "Random": {"config_name": "retfound-tiny"},
            },
            methods={"LoRA": {"method": "lora", "lora_rank": 4}, "linear": None},
            data={"A": {"data": "inside", "external": ["B"], "label_columns": None}, "B": "outside"},
            reporting={"subgroups": ["camera"], "reference": "Random"},
            keep_models=True,
        )
    )
    assert study.models["First"].start("oct") == str(desk / "first") and study.models["First"].options == {
        "image_size": 64
    }
    assert study.data["A"].external["B"].data == str(desk / "outside")
    assert study.data["A"].external["B"].split == "test" and study.data["A"].options == {"label_columns": None}
    path = tmp_path / "elsewhere.yaml"
    path.write_text(study_text(study))
    assert read_settings(path) == study


def test_retfound_means_the_weights_of_each_modality(study_file, desk):
    model = read_settings(study_file(models={"RETFound": "retfound"})).models["RETFound"]
    assert (model.start("cfp"), model.start("oct"), model.start(None)) == ("retfound-cfp", "retfound-oct", None)


def test_shared_paths_are_cut_as_far_as_they_stay_different(tmp_path):
    path = tmp_path / "study.yaml"
    content = {
        "models": {"A": "/runs/a/model/final", "B": "/runs/b/model/final", "C": "facebook/dinov2-base"},
        "methods": ["linear"],
        "data": {"D": {"data": "/home/alice/images", "external": {"E": "/mnt/clinic/2/table.csv"}}},
        "finetune": {"cache_dir": "/home/alice", "report_to": "none"},
    }
    path.write_text(yaml.safe_dump(content))
    study = read_settings(path)
    shared = yaml.safe_load(shared_text(study))
    starts = [model["model_name_or_path"]["any"] for model in shared["models"].values()]
    assert starts == ["…/a/model/final", "…/b/model/final", "facebook/dinov2-base"]
    assert (shared["data"]["D"]["data"], shared["data"]["D"]["external"]["E"]["data"]) == ("…/images", "…/2/table.csv")
    assert shared["finetune"] == {"cache_dir": "…", "report_to": "none"}
    whole = yaml.safe_load(study_text(study))
    assert all(shared[name] == whole[name] for name in ("methods", "fractions", "seeds", "metrics", "reporting"))


@pytest.mark.parametrize(
    ("sentence", "shared"),
    [
        ("models > A: /srv/x/broken: bad (/usr/lib/torch/x.py)", "models > A: …/x/broken: bad (…/torch/x.py)"),
        ("'/home/alice/a/b.safetensors', half of it", "'…/a/b.safetensors', half of it"),
        ("1/2 of org/name, see https://huggingface.co/a/b", "1/2 of org/name, see https://huggingface.co/a/b"),
    ],
)
def test_sentences_without_paths(sentence, shared):
    assert without_paths(sentence) == shared
