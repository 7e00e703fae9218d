"""Checks before a study runs, and ids of jobs: one for each cell, whatever else is in the study."""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
from filelock import FileLock

from retfound_hf.cluster import Share
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError, OutputError, RetFoundError
from retfound_hf.study.config import read_settings
from retfound_hf.study.jobs import check_study, model_identity, part_of, plan_jobs
from retfound_hf.study.results import read_study
from retfound_hf.study.runner import run_study
from retfound_hf.study.tables import write_plan

LONG = "diabetic retinopathy of the clinic in "  # 24 characters of a name are in the id
SMALL = {"fractions": [1.0], "seeds": [0], "metrics": ["auroc"], "reporting": {"resamples": 0, "examples": 0}}


def checked(path):
    return check_study(read_settings(path))


def planned(path):
    study = read_settings(path)
    return plan_jobs(study, check_study(study))


@pytest.mark.parametrize(
    ("parts", "field"),
    [
        ({"data": {"D": {"data": "inside", "cohort": "inside"}}}, "data.D.cohort"),
        ({"models": {"A": {"config_name": "retfound-small"}}}, "config_name"),
        ({"models": {"A": {"model_name_or_path": {"oct": "first"}}}}, "models.A"),
        ({"models": {"A": {"config_name": "retfound-tiny"}}, "methods": ["lora"]}, "methods.lora"),
        ({"fractions": [0.05]}, "fractions"),
        ({"metrics": ["rmse"]}, "metrics"),
        ({"reporting": {"subgroups": ["kamera"]}}, "reporting.subgroups"),
    ],
)
def test_nothing_runs_before_the_disk_is_checked(study_file, parts, field):
    with pytest.raises(BadArgumentError) as error:
        checked(study_file(**parts))
    assert error.value.field == field


def test_models_data_and_options_that_are_wrong_are_refused(study_file):
    with pytest.raises(BadModelError) as error:
        checked(study_file(models={"A": "nowhere"}))
    assert error.value.model == "nowhere"
    for parts in ({"data": {"D": "nowhere"}}, {"finetune": {"weight_decay": "much"}}):
        with pytest.raises(RetFoundError):
            checked(study_file(**parts))


def test_classes_of_an_external_set_must_be_known(study_file, desk, tmp_path):
    (tmp_path / "odd" / "other").mkdir(parents=True)
    source = next((desk / "outside" / "test" / "amd").iterdir())
    (tmp_path / "odd" / "other" / "x.png").write_bytes(source.read_bytes())
    with pytest.raises(RetFoundError):
        checked(study_file(data={"D": {"data": "inside", "external": {"Odd": str(tmp_path / "odd")}}}))


def test_a_patient_with_one_healthy_eye_is_refused_before_anything_runs(study_file, table_of, tmp_path):
    """At the level of patients; by eye, or with the rule for conflicts, the same table is accepted."""
    rows = table_of("inside")
    rows.loc[(rows["patient_id"] == "p028") & (rows["eye"] == "L"), "label"] = "healthy"
    rows.to_csv(tmp_path / "eyes.csv", index=False)
    data = {"Eyes": str(tmp_path / "eyes.csv")}
    with pytest.raises(BadArgumentError) as error:
        checked(study_file(data=data, reporting={"level": "patient"}))
    assert error.value.field == "reporting.level" and "1 of 10" in str(error.value)
    checked(study_file(data=data, reporting={"level": "patient", "label_conflicts": "max"}))
    checked(study_file(data=data, reporting={"level": "eye"}))


def test_an_image_is_known_by_whatever_path_leads_to_it_and_by_its_content(study_file, desk, table_of, tmp_path):
    """Tables in two folders spell a file differently; a link is the file that it leads to."""
    (tmp_path / "linked").symlink_to(desk / "inside")
    rows = table_of("inside")
    names = [Path(image).relative_to(desk / "inside") for image in rows["image"]]
    for folder, way in (("A", Path(os.path.relpath(desk / "inside", tmp_path / "A"))), ("B", Path("../linked"))):
        (tmp_path / folder).mkdir()
        rows.assign(image=[(way / name).as_posix() for name in names]).to_csv(
            tmp_path / folder / "cohort.csv", index=False
        )
    data = {"D": {"data": str(tmp_path / "A/cohort.csv"), "external": {"E": str(tmp_path / "B/cohort.csv")}}}
    with pytest.raises(BadDataError) as error:
        checked(study_file(data=data))
    assert (error.value.source, len(error.value.rows)) == ("data.D.external.E", 2 * 28)
    shutil.copytree(desk / "inside", tmp_path / "C", ignore=shutil.ignore_patterns("*.csv"))
    copies = rows.assign(image=[name.as_posix() for name in names]).drop(columns="split")
    copies.to_csv(tmp_path / "C/other.csv", index=False)
    copied = {
        "D": {"data": data["D"]["data"], "external": {"E": {"data": str(tmp_path / "C/other.csv"), "split": "all"}}}
    }
    with pytest.raises(BadDataError) as error:
        checked(study_file(data=copied))
    assert len(error.value.rows) > 0
    data["D"]["external"]["E"] = {"data": str(tmp_path / "B/cohort.csv"), "split": "test"}
    checked(study_file(data=data))


@pytest.mark.parametrize(("first", "seen"), [(20, "p024, p025, p026, p027"), (28, None)])
def test_patients_of_an_external_set_that_may_have_been_seen_are_named(
    study_file, table_of, tmp_path, caplog, first, seen
):
    rows = table_of("outside").drop(columns="split")
    renamed = rows["patient_id"].map({f"p{number:03d}": f"p{number + first + 4:03d}" for number in range(24)})
    rows.assign(patient_id=renamed).to_csv(tmp_path / "other.csv", index=False)
    checked(study_file(data={"D": {"data": "inside", "external": {"E": str(tmp_path / "other.csv")}}}))
    warnings = [record for record in caplog.records if record.name == "retfound_hf.study.jobs"]
    assert len(warnings) == (seen is not None) and all(seen in record.getMessage() for record in warnings)


def test_only_the_columns_that_the_report_needs_are_copied(study_file, table_of, tmp_path):
    rows = table_of("inside").assign(name="J. Doe", born="1950-01-01", Sex="F", ward=["a", "b"] * 38)
    rows.to_csv(tmp_path / "set.csv", index=False)
    study = read_settings(study_file(data={"D": str(tmp_path / "set.csv")}, reporting={"subgroups": ["ward"]}))
    tasks = check_study(study)
    write_plan(tmp_path / "out", study, tasks, plan_jobs(study, tasks))
    columns = {"id", "image", "patient_id", "eye", "split", "label", "ward", "Sex", "camera"}
    assert set(pd.read_csv(tmp_path / "out" / "tasks" / "D" / "test.csv")) == columns


def test_a_second_run_of_a_study_ends_before_its_jobs(study_file, tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.files.PATIENCE", 0.1)
    path = study_file(**SMALL)
    with FileLock(tmp_path / ".out.lock"), pytest.raises(OutputError):
        run_study(path, tmp_path / "out")
    with FileLock(tmp_path / ".out1-2.lock"), pytest.raises(OutputError):
        run_study(path, tmp_path / "out", part="1/2")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["患" * 60, "a/b", ".hidden"])
def test_a_name_that_is_no_folders_is_refused(study_file, name):
    with pytest.raises(BadArgumentError):
        checked(study_file(data={name: "inside"}))


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


@pytest.mark.parametrize("names", [("Set A", "set-a"), (LONG + "Bern", LONG + "Basel")])
def test_the_same_images_under_names_that_begin_alike_are_different_jobs(study_file, names):
    first, second = names
    jobs = planned(study_file(data={first: "inside", second: "inside", "Other": "outside"}))
    assert len({job.id for job in jobs}) == len(jobs) == 3 * 2 * 2 + 3 * 2 * 1  # all labels: with the first seed alone
    # The order of the names decides nothing, and the ids of the others are those of a study of their own.
    again = planned(study_file(data={second: "inside", first: "inside", "Other": "outside"}))
    assert {(job.id, job.data) for job in again} == {(job.id, job.data) for job in jobs}
    alone = planned(study_file(data={"Other": "outside"}))
    assert [job.id for job in alone] == [job.id for job in jobs if job.data == "Other"]


def test_ids_without_a_clash_do_not_depend_on_the_labels_spelling(study_file):
    """So that the jobs of studies that have ended keep their ids."""
    one, other = (planned(study_file(data={name: "inside"})) for name in ("Set A", "set-a"))
    assert [job.id for job in one] == [job.id for job in other]


def test_the_same_model_twice_is_refused_on_data_whose_names_clash_too(study_file):
    data = {"Set A": "inside", "set-a": "inside"}
    with pytest.raises(BadArgumentError) as error:
        planned(study_file(data=data, models={"First": "first", "first": "first"}))
    assert set(error.value.value) == {"First", "first"}


def test_parts_are_all_jobs(study_file):
    jobs = planned(study_file())
    parts = [part_of(jobs, Share(number, 4)) for number in range(1, 5)]
    assert sorted(job.id for part in parts for job in part) == sorted(job.id for job in jobs)
    with pytest.raises(BadArgumentError) as error:
        run_study(study_file(), part="5/4")
    assert error.value.field == "part"


def test_a_finished_job_is_found_under_labels_that_are_spelled_anew(study_file, tmp_path):
    run_study(study_file(data={"Set A": "inside"}, **SMALL), tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out/jobs").rglob("*")}
    path = study_file(data={"set-a": "inside"}, models={"FIRST": "first", "Second": "second"}, **SMALL)
    found = run_study(path, tmp_path / "out")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out/jobs").rglob("*")} == before
    assert [(job.data, job.model) for job in found.jobs] == [("set-a", "FIRST"), ("set-a", "Second")]
    assert set(found.summary["model"]) == {"FIRST", "Second"} and set(found.results["data"]) == {"set-a"}


def test_each_of_two_names_has_its_rows(study_file, tmp_path):
    data = {name: {"data": "inside"} for name in ("Set A", "set-a")}
    run_study(study_file(data=data, models={"First": "first"}, **SMALL), tmp_path / "out")
    results = read_study(tmp_path / "out").results.query("metric == 'auroc'")
    assert results.groupby("data")["set"].agg(sorted).to_dict() == {name: ["test", "val"] for name in data}
    assert pd.Series(results["job"]).nunique() == 2
