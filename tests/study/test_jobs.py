"""Ids of jobs: one for each cell, and the same ones whatever else is in the study."""

from itertools import product

import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.study.config import read_settings
from retfound_hf.study.jobs import check_study, plan_jobs
from retfound_hf.study.results import read_study
from retfound_hf.study.runner import StudyArguments, run_study

LONG = "diabetic retinopathy of the clinic in "  # 24 characters of a name are in the id


def planned(path):
    study = read_settings(path)
    return plan_jobs(study, check_study(study))


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


def test_ids_without_a_clash_name_no_label_in_their_digest(study_file):
    """So that the jobs of studies that have ended keep their ids."""
    one, other = (planned(study_file(data={name: "inside"})) for name in ("Set A", "set-a"))
    assert [job.id for job in one] == [job.id for job in other]


def test_the_same_model_twice_is_refused_on_data_whose_names_clash_too(study_file):
    data = {"Set A": "inside", "set-a": "inside"}
    with pytest.raises(RetFoundError, match="first with linear and First with linear are the same on Set A"):
        planned(study_file(data=data, models={"First": "first", "first": "first"}))


def test_each_of_two_names_has_its_rows(study_file, tmp_path):
    names = ("Set A", "set-a")
    path = study_file(
        data={name: {"data": "inside"} for name in names}, models={"First": "first"}, fractions=[1.0], seeds=[0],
        metrics=["auroc"], reporting={"resamples": 0, "examples": 0},
    )  # fmt: skip
    run_study(StudyArguments(str(path), str(tmp_path / "out")))
    results = read_study(tmp_path / "out").results.query("metric == 'auroc'")
    assert sorted(zip(results["data"], results["set"], strict=True)) == sorted(product(names, ("test", "val")))
    assert results["job"].nunique() == 2


def test_a_finished_job_is_found_under_labels_that_are_spelled_anew(study_file, tmp_path, capsys):
    shared = {"fractions": [1.0], "seeds": [0], "metrics": ["auroc"], "reporting": {"resamples": 0, "examples": 0}}
    run_study(StudyArguments(str(study_file(data={"Set A": "inside"}, **shared)), str(tmp_path / "out")))
    path = study_file(data={"set-a": "inside"}, models={"FIRST": "first", "Second": "second"}, **shared)
    capsys.readouterr()
    run_study(StudyArguments(str(path), str(tmp_path / "out")))
    assert "2 finished already" in capsys.readouterr().out
    found = read_study(tmp_path / "out")
    assert [(job.data, job.model) for job in found.jobs] == [("set-a", "FIRST"), ("set-a", "Second")]
    assert set(found.summary["model"]) == {"FIRST", "Second"} and set(found.results["data"]) == {"set-a"}
