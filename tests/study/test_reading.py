"""The study file: unknown keys are refused at every level, values checked, paths absolute."""

import os
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.study.config import read_settings
from retfound_hf.study.jobs import check_study, model_identity
from retfound_hf.study.tables import study_text


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"fractoins": [0.1]}, r"unknown key 'fractoins'; did you mean fractions\?"),
        (
            {"models": {"A": {"model_name": "first"}}},
            r"models > A: unknown key 'model_name'; did you mean model_name_or",
        ),
        (
            {"models": {"A": {"model_name_or_path": {"cpf": "first"}}}},
            r"A > model_name_or_path: .*'cpf'; did you mean cfp",
        ),
        ({"methods": {"linaer": {}}}, r"methods > linaer > method: 'linaer' is unknown; did you mean linear\?"),
        (
            {"methods": {"full": {"num_epochs": 3}}},
            r"methods > full: unknown key 'num_epochs'; did you mean num_train_ep",
        ),
        (
            {"data": {"D": {"data": "inside", "extrenal": ["x"]}}},
            r"data > D: unknown key 'extrenal'; did you mean external",
        ),
        (
            {"data": {"D": {"data": "inside", "external": {"E": {"data": "outside", "splti": "all"}}}}},
            r"did you mean split",
        ),
        ({"data": {"D": {"data": "inside", "external": {"test": "outside"}}}}, "the name test stands for"),
        ({"data": {"D": {"data": "inside", "external": ["Dd"]}}}, r"external > Dd: 'Dd' is unknown; did you mean D\?"),
        ({"metrics": ["auc"]}, r"metrics: 'auc' is unknown; did you mean auroc\?|metrics: 'auc' is unknown"),
        ({"reporting": {"reference": "first"}}, r"reporting > reference: 'first' is unknown; did you mean First\?"),
        ({"reporting": {"sub_groups": ["camera"]}}, r"reporting: unknown key 'sub_groups'; did you mean subgroups\?"),
        ({"finetune": {"seed": 3}}, "finetune: unknown key 'seed'"),
        ({"fractions": [0, 1]}, r"fractions: \[0.0\] is not accepted"),
        ({"seeds": [1, 1]}, "seeds: 1 is listed twice"),
        ({"seeds": ["one"]}, "seeds: 'one' is not accepted"),
        ({"seeds": []}, "seeds: the list is empty; name at least one, or leave seeds out"),
        ({"metrics": []}, "metrics: the list is empty; name at least one"),
        ({"fractions": []}, "fractions: the list is empty; name at least one"),
        ({"reporting": {"sensitivity": []}}, "reporting > sensitivity: the list is empty; name at least one"),
        ({"models": []}, r"models must map names to settings, found \[\]"),
        ({"methods": []}, r"methods must map names to settings, found \[\]"),
        ({"methods": [["linear"]]}, r"methods: \['linear'\] is no name"),
        ({"methods": ["linear", "linear"]}, "methods: 'linear' is listed twice"),
        ({"methods": "linear"}, "methods must map names to settings, found 'linear'"),
        ({"data": {"D": {"data": "inside", "external": [["x"]]}}}, r"data > D > external: \['x'\] is no name"),
        (
            {"reporting": {"resamples": 99}},
            "reporting > resamples: 99 are too few for a 95% interval; give at least 100, or 0 for no intervals",
        ),
        ({"reporting": {"resamples": -1}}, "reporting > resamples: -1 must be at least 0"),
        ({"models": {"a/b": "first"}}, "'a/b' is no name"),
        ({"models": None}, "models is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_place(study_file, parts, message):
    with pytest.raises(RetFoundError, match=message) as caught:
        read_settings(study_file(**parts))
    assert "\n" not in str(caught.value)


def test_what_may_be_none_or_no_more_than_one(study_file):
    study = read_settings(study_file(seeds=3, metrics="auprc", reporting={"resamples": 0, "subgroups": []}))
    assert (study.seeds, study.metrics, study.reporting.subgroups) == ((3,), ("auprc",), ())
    assert study.reporting.resamples == 0
    assert read_settings(study_file(reporting={"resamples": 100})).reporting.resamples == 100


@pytest.mark.parametrize(
    "content, message",
    [
        ("name: Müller\n".encode("latin-1"), r"is not UTF-8 text \(byte 7: 0xfc\); save it as UTF-8"),
        ("name: Trial\n".encode("utf-16"), r"is not UTF-8 text \(byte 0: 0xff\); save it as UTF-8"),
        (b"name: 2020-13-45\n", "is not valid YAML: month must be in 1..12"),
    ],
)
def test_a_file_that_cannot_be_read_is_said_in_one_line(tmp_path, content, message):
    (tmp_path / "odd.yaml").write_bytes(content)
    with pytest.raises(RetFoundError, match=message) as caught:
        read_settings(tmp_path / "odd.yaml")
    assert "\n" not in str(caught.value)


def test_a_key_written_twice_is_refused(tmp_path):
    path = tmp_path / "twice.yaml"
    path.write_text("models: {A: x}\nmethods: [linear]\ndata: {D: x}\nmodels: {B: y}\n")
    with pytest.raises(RetFoundError, match="'models' is written twice"):
        read_settings(path)


def test_what_is_no_yaml_is_said_in_one_line(tmp_path):
    (tmp_path / "broken.yaml").write_text("models: [retfound\n")
    with pytest.raises(RetFoundError, match=r"broken\.yaml is not valid YAML: .*line 2, column 1") as caught:
        read_settings(tmp_path / "broken.yaml")
    assert "\n" not in str(caught.value)


def test_a_study_is_read_back_from_its_own_text(study_file, desk, tmp_path):
    study = read_settings(
        study_file(
            models={
                "First": {"model_name_or_path": "first", "image_size": 64},
                "Random": {"config_name": "retfound-tiny"},
            },
            methods={"LoRA": {"method": "lora", "lora_rank": 4}, "linear": None},
            reporting={"subgroups": ["camera"], "reference": "Random"},
            keep_models=True,
        )
    )
    assert study.models[0].starts == {"any": str(desk / "first")}
    assert study.data[0].external[0].data == str(desk / "outside")
    path = tmp_path / "elsewhere.yaml"
    path.write_text(study_text(study))
    assert read_settings(path) == study


def test_retfound_means_the_weights_of_each_modality(study_file):
    model = read_settings(study_file(models={"RETFound": "retfound"})).models[0]
    assert (model.start("cfp"), model.start("oct")) == ("retfound-cfp", "retfound-oct")


@pytest.mark.parametrize(
    "parts, message",
    [
        ({"data": {"D": "nowhere"}}, "data nowhere does not exist"),
        (
            {"data": {"D": {"data": "inside", "cohort": "inside"}}},
            "data > D > cohort: .*inside has no flow.json; give",
        ),
        ({"models": {"A": "nowhere"}}, "models > A: .*nowhere"),
        ({"models": {"A": {"config_name": "retfound-small"}}}, "retfound-small"),
        (
            {"models": {"A": {"model_name_or_path": {"oct": "first"}}}},
            "models > A has a start for none of the data sets",
        ),
        (
            {"fractions": [0.05]},
            "on Inside: a fraction of 0.05 of 20 training patients is 1, fewer than the 2 classes",
        ),
        ({"metrics": ["rmse"]}, "metrics: none of rmse exists for Inside"),
        ({"reporting": {"subgroups": ["kamera"]}}, r"no data set has a column 'kamera'; did you mean camera\?"),
        ({"finetune": {"weight_decay": "much"}}, "weight_decay"),
        (
            {"data": {"D": {"data": "inside", "external": {"E": {"data": "inside"}}}}},
            "56 of its images are in the train",
        ),
    ],
)
def test_nothing_runs_before_the_disk_is_checked(study_file, parts, message):
    with pytest.raises(RetFoundError, match=message):
        check_study(read_settings(study_file(**parts)))


def test_classes_of_an_external_set_must_be_known(study_file, desk, tmp_path):
    (tmp_path / "odd" / "other").mkdir(parents=True)
    source = next((desk / "outside" / "test" / "amd").iterdir())
    (tmp_path / "odd" / "other" / "x.png").write_bytes(source.read_bytes())
    parts = {"data": {"D": {"data": "inside", "external": {"Odd": str(tmp_path / "odd")}}}}
    with pytest.raises(RetFoundError, match="other"):
        check_study(read_settings(study_file(**parts)))


def test_a_patient_with_one_healthy_eye_is_refused_before_anything_runs(study_file, desk, tmp_path):
    """At the level of patients; by eye, or with the rule for conflicts, the same table is accepted."""
    rows = pd.read_csv(desk / "inside" / "metadata.csv")
    rows["split"], rows["label"] = rows["image"].str.split("/").str[0], rows["image"].str.split("/").str[1]
    rows.loc[(rows["patient_id"] == "p028") & (rows["eye"] == "L"), "label"] = "healthy"
    rows["image"] = [str(desk / "inside" / name) for name in rows["image"]]
    rows.to_csv(tmp_path / "eyes.csv", index=False)
    data = {"Eyes": str(tmp_path / "eyes.csv")}
    reason = r"1 of 10 patients in Eyes \(test\) have .*reporting > label_conflicts: max"
    with pytest.raises(RetFoundError, match=reason):
        check_study(read_settings(study_file(data=data, reporting={"level": "patient"})))
    check_study(read_settings(study_file(data=data, reporting={"level": "patient", "label_conflicts": "max"})))
    check_study(read_settings(study_file(data=data, reporting={"level": "eye"})))


def test_an_image_is_known_by_whatever_way_leads_to_it(study_file, desk, tmp_path):
    """Tables in two folders spell a file differently; a link is the file that it leads to."""
    rows = pd.read_csv(desk / "inside" / "metadata.csv")
    rows["split"], rows["label"] = rows["image"].str.split("/").str[0], rows["image"].str.split("/").str[1]
    (tmp_path / "linked").symlink_to(desk / "inside")
    for folder, way in (("A", Path(os.path.relpath(desk / "inside", tmp_path / "A"))), ("B", Path("../linked"))):
        (tmp_path / folder).mkdir()
        table = rows.assign(image=[(way / name).as_posix() for name in rows["image"]])
        table.to_csv(tmp_path / folder / "cohort.csv", index=False)
    data = {"D": {"data": str(tmp_path / "A/cohort.csv"), "external": {"E": str(tmp_path / "B/cohort.csv")}}}
    with pytest.raises(RetFoundError, match="external > E: 56 of its images are in the train or val split of D"):
        check_study(read_settings(study_file(data=data)))
    data["D"]["external"]["E"] = {"data": str(tmp_path / "B/cohort.csv"), "split": "test"}
    check_study(read_settings(study_file(data=data)))


def test_patients_of_an_external_set_who_may_have_been_seen_are_named_once(study_file, desk, tmp_path, caplog):
    rows = pd.read_csv(desk / "outside" / "metadata.csv")
    rows["label"] = rows["image"].str.split("/").str[1]
    rows["image"] = [str(desk / "outside" / name) for name in rows["image"]]
    for first, said in ((20, "4 of its patients bear ids of train or val patients of D (p024, p025, p026, p027)"),
                        (28, None)):  # fmt: skip
        caplog.clear()
        renamed = rows["patient_id"].map({f"p{number:03d}": f"p{number + first + 4:03d}" for number in range(24)})
        rows.assign(patient_id=renamed).to_csv(tmp_path / "other.csv", index=False)
        data = {"D": {"data": "inside", "external": {"E": str(tmp_path / "other.csv")}}}
        check_study(read_settings(study_file(data=data)))
        found = [record.getMessage() for record in caplog.records if "bear ids" in record.getMessage()]
        assert len(found) == (said is not None) and all(said in message for message in found)


def test_weights_of_either_format_tell_models_apart(tmp_path):
    """And what the Trainer leaves beside them does not."""
    (tmp_path / "config.json").write_text("{}")
    found = [model_identity("model_name_or_path", str(tmp_path))]
    for name in ("pytorch_model.bin", "adapter_model.bin", "model.safetensors"):
        for content in (b"one", b"other"):
            (tmp_path / name).write_bytes(content)
            found.append(model_identity("model_name_or_path", str(tmp_path)))
    assert len(set(found)) == 7
    (tmp_path / "training_args.bin").write_bytes(b"of this run")
    assert model_identity("model_name_or_path", str(tmp_path)) == found[-1]
