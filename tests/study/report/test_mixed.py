"""A report of data sets that share no metric, and of an external set in which the main one is undefined."""

import pandas as pd

from retfound_hf.study.report import build_sections
from retfound_hf.study.results import read_study
from retfound_hf.study.runner import StudyArguments, run_study


def test_classes_and_numbers_in_one_study(study_file, desk, tmp_path):
    rows = pd.read_csv(desk / "inside" / "metadata.csv")
    rows["split"], rows["label"] = rows["image"].str.split("/").str[0], rows["image"].str.split("/").str[1]
    rows["image"] = [str(desk / "inside" / name) for name in rows["image"]]
    rows["age"] = 50 + rows["patient_id"].str[1:].astype(int) % 7 * 5.5
    rows.to_csv(tmp_path / "ages.csv", index=False)
    cases = pd.DataFrame({"image": [str(path) for path in sorted((desk / "outside" / "test" / "amd").iterdir())]})
    cases.assign(label="amd").to_csv(tmp_path / "cases.csv", index=False)
    data = {
        "Ages": {"data": str(tmp_path / "ages.csv"), "label_columns": ["age"], "problem_type": "regression"},
        "Inside": {"data": "inside", "external": {"Cases": str(tmp_path / "cases.csv")}},
    }
    path = study_file(data=data, fractions=[1.0], seeds=[0], metrics=["auroc", "mae"], reporting={"resamples": 100})
    run_study(StudyArguments(str(path), str(tmp_path / "out")))
    found = read_study(tmp_path / "out")
    assert (found.metrics("Ages"), found.metrics("Inside")) == (("mae",), ("auroc",))
    sections = {section.name: section for section in build_sections(found)}
    summary = sections["summary"]
    assert [block.tables[0].columns[1] for block in summary.blocks] == ["MAE", "AUROC"]
    assert "MAE is the average error" in summary.lead and "AUROC is the chance" in summary.lead
    ages = found.summary.query("data == 'Ages' and set == 'test'")["mean"].sort_values()
    assert [row[1] for row in summary.blocks[0].tables[0].rows] == [f"{value:.3f}" for value in ages]
    undefined = found.comparisons[found.comparisons["set"] == "Cases"]
    assert len(undefined) == 1 and undefined[["difference", "p_value", "p_holm"]].isna().all(axis=None)
    assert [block.title for block in sections["external"].blocks] == ["Inside"]
