"""The report of a study: every number from its tables, one file that needs no other, whatever the names hold."""

import dataclasses
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from sklearn.metrics import roc_auc_score

from retfound_hf.evaluation import subgroups
from retfound_hf.evaluation.metrics import METRICS
from retfound_hf.evaluation.thresholds import reliability_curve
from retfound_hf.study import report_sections
from retfound_hf.study.report import build_sections, render, write_report
from retfound_hf.study.report_parts import Drawing, systems_of
from retfound_hf.study.results import JobResult, read_csv
from retfound_hf.study.runner import run_study

TABLES = ("results", "summary", "comparisons", "efficiency")


class Page(HTMLParser):
    """The cells of numbers, headings, addresses and pictures of a page."""

    def __init__(self, text: str):
        super().__init__()
        self.numbers: list[str] = []
        self.addresses: list[str] = []
        self.titles: list[str] = []
        self.images: list[dict] = []
        self.tags: set[str] = set()
        self._into: list[str] | None = None
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.addresses += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.images.append(found)
        self._into = None
        if tag == "td" and found.get("class") == "number":
            self._into = self.numbers
            self.numbers.append("")
        if tag == "h2":
            self._into = self.titles
            self.titles.append("")

    def handle_endtag(self, tag):
        self._into = None

    def handle_data(self, data):
        if self._into is not None:
            self._into[-1] += data


@pytest.fixture(scope="module")
def folder(whole) -> Path:
    return whole[1]


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def changed(found, **parts):
    """A study that has been read, with other settings."""
    return dataclasses.replace(found, study=found.study.model_copy(update=parts))


@contextmanager
def undrawn(found, kind: str, data: str, width: float, height: float) -> Iterator[Drawing]:
    yield Drawing(Figure((width, height)), Path(os.devnull))


def sections_of(found):
    """By name; the figures are laid out and not rendered, which would take most of the time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report_sections, "drawing", undrawn)
        return {section.name: section for section in build_sections(found)}


def test_a_study_ends_with_its_report(page):
    assert page.titles == [
        "Models side by side", "Participants", "Label efficiency", "External evaluation", "Calibration",
        "Operating points", "Subgroups", "Adaptation efficiency", "Right and wrong with the highest confidence",
        "Settings and versions", "TRIPOD+AI checklist",
    ]  # fmt: skip


def test_every_number_is_in_a_table_of_the_folder(folder, page, found):
    known = pd.concat([read_csv(folder / f"{name}.csv").select_dtypes("number").stack() for name in TABLES]).to_numpy()
    means = read_csv(folder / "efficiency.csv").groupby(["job"])["value"].max().to_numpy()
    said = [word for cell in page.numbers for word in re.findall(r"[−]?\d+\.\d{3}", cell)]
    assert len(said) > 100
    jobs = [job.efficiency["final"] for job in found.finished if job.efficiency]
    averages = [np.mean(jobs[start : start + 3]) for start in range(0, len(jobs), 3)]
    known = np.concatenate([known[np.isfinite(known)], means, averages])
    for word in said:
        value = float(word.replace("−", "-"))
        assert np.abs(known - value).min() <= 0.0005001, word


def test_the_page_needs_no_other_file(folder, page):
    assert len(page.images) >= 8
    assert all(address.startswith(("data:image/", "#")) for address in page.addresses)
    assert all(image["alt"] for image in page.images)
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert not page.tags & {"script", "link", "iframe", "object"}
    assert "url(" not in text and "@import" not in text


def test_figures_come_as_svg_and_png(folder):
    names = {path.stem for path in (folder / "figures").glob("*.svg")}
    assert names == {path.stem for path in (folder / "figures").glob("*.png")}
    assert names == {
        f"{part}-inside" for part in ("models", "labels", "external", "calibration", "net-benefit", "adaptation")
    }


def test_the_same_folder_gives_the_same_report(folder):
    paths = [folder / "report.html", folder / "results.csv", *sorted((folder / "figures").iterdir())]
    before = [path.read_bytes() for path in paths]
    write_report(folder)
    assert [path.read_bytes() for path in paths] == before


def test_the_job_that_stands_for_its_seeds_is_the_median(found):
    systems = systems_of(found, "Inside")
    assert len(systems) == 4 and [one.mean for one in systems] == sorted((one.mean for one in systems), reverse=True)
    for one in systems:
        rows = found.results.query(
            "set == 'test' and metric == 'auroc' and fraction == 1 and model == @one.model and method == @one.method"
        )
        assert rows.set_index("job").loc[one.job.id, "value"] == np.median(rows["value"])


def test_numbers_of_subgroups_and_thresholds_are_those_of_the_predictions(found):
    one = systems_of(found, "Inside")[0]
    own = found.results[found.results["job"] == one.job.id].set_index(["set", "metric"])["value"]
    predictions = found.predictions(one.job, "test")
    test = predictions.table().assign(eye=predictions.columns["eye"])
    for eye, rows in test.groupby("eye"):
        expected = roc_auc_score(rows["label"] == "healthy", rows["prob/healthy"])
        assert own["test", f"auroc[eye={eye}]"] == pytest.approx(expected)
    val = found.predictions(one.job, "val").table()
    threshold = own["val", "threshold@sensitivity=0.9/amd"]
    assert (val.loc[val["label"] == "amd", "prob/amd"] >= threshold).mean() >= 0.9
    hits = (test["prob/amd"] >= threshold)[test["label"] == "amd"]
    assert own["test", "sensitivity@sensitivity=0.9/amd"] == pytest.approx(hits.mean())
    confidence = test[["prob/amd", "prob/healthy"]].max(axis=1)
    error = reliability_curve(confidence, test["prediction"] == test["label"]).error
    assert own["test", "ece"] == pytest.approx(error, abs=1e-7)


def test_groups_of_few_patients_are_not_in_the_report(found, monkeypatch):
    """Ten patients have a left and a right eye in the test split."""
    shown = report_sections.subgroups(found).blocks[0]
    assert {row[1] for row in shown.tables[0].rows} > {"L", "R"} and not shown.notes
    monkeypatch.setattr("retfound_hf.study.report_sections.FEWEST", 11)
    hidden = report_sections.subgroups(found).blocks[0]
    assert not [row for table in hidden.tables for row in table.rows if row[1] in ("L", "R")]
    assert not [row for row in hidden.numbers if "[eye=" in row["metric"]] and hidden.notes


def test_classes_of_a_cohort_are_called_by_what_they_stand_for(found, tmp_path):
    flow = {"stages": [], "classes": {"amd": "stroke within 3 years", "healthy": "no stroke within 3 years"}}
    (tmp_path / "flow.json").write_text(json.dumps(flow), encoding="utf-8")
    (tmp_path / "flow.svg").write_text("<svg/>", encoding="utf-8")
    data = {name: one.model_copy(update={"cohort": str(tmp_path)}) for name, one in found.study.data.items()}
    sections = sections_of(changed(found, data=data))
    assert "cohorts" in sections
    table = sections["thresholds"].blocks[0].tables[0]
    assert "stroke within 3 years" in table.caption and "class" not in table.columns
    title, pictures = sections["examples"].blocks[0].galleries[0]
    assert title.startswith("stroke within 3 years")
    assert all("stroke within 3 years" in picture.caption for picture in pictures)


@pytest.mark.parametrize(("level", "one"), [("image", "an image"), ("eye", "an eye"), ("patient", "a patient")])
def test_words_name_what_counts_as_a_case(found, level, one):
    reporting = found.study.reporting.model_copy(update={"level": level, "label_conflicts": "max"})
    sections = sections_of(changed(found, reporting=reporting))
    assert one in sections["summary"].lead and f"a hundred {level}s" in sections["calibration"].lead
    assert f"{level}s" in sections["calibration"].blocks[0].charts[0].caption


def test_the_report_has_no_path_of_the_machine(found, folder, desk):
    """Not in the study file, nor in the reason of a job that failed; the study's own file has them whole."""
    reason = f"models > First: {desk / 'first'} has no weights ({desk / 'first' / 'config.json'})"
    failed = JobResult("one", "Inside", "First", "linear", 1.0, 0, "failed", reason=reason)
    text = render(found, [*sections_of(dataclasses.replace(found, jobs=(*found.jobs, failed))).values()])
    assert all(f"…/{part}" in text for part in (f"{desk.name}/inside", f"{desk.name}/first", "first/config.json"))
    assert str(desk) not in text and str(folder) not in text
    assert str(desk / "inside") in (folder / "study.yaml").read_text(encoding="utf-8")


def test_names_are_text_whatever_they_hold(found):
    evil = '<script>alert("x")</script>'
    failed = JobResult("one", "Inside", evil, "linear", 1.0, 0, "failed", reason=evil)
    found = dataclasses.replace(changed(found, name=evil), jobs=(*found.jobs, failed), planned=found.planned + 2)
    text = render(found, [*sections_of(found).values()])
    assert "<script" not in text and "&lt;script&gt;" in text
    assert f"1 of {found.planned} jobs" in text


def test_a_study_without_results_says_what_is_missing(found):
    failed = JobResult("one", "Inside", "First", "linear", 1.0, 0, "failed", reason="out of memory")
    none = dataclasses.replace(found, jobs=(failed,), planned=1)
    assert list(sections_of(none)) == ["failures", "settings"]
    assert "out of memory" in render(none, [*sections_of(none).values()])


def test_the_report_tells_how_many_seeds_and_labels_its_means_are_of(found):
    """A linear head on all labels is trained once, whatever the number of seeds."""
    summary = sections_of(found)["summary"]
    table = summary.blocks[0].tables[0]
    assert "1 to 3 seeds" in summary.lead and "all training labels" in table.caption
    assert {row[0].split(", ")[1]: row[2] for row in table.rows} == {"linear": "1", "full": "3"}
    names = ["seeds", "95% CI over patients", "95% CI over seeds", "± 1.96 SE over seeds"]
    assert table.columns[2:6] == names
    half = sections_of(changed(found, fractions=(0.5,)))["summary"]
    assert "over 3 seeds" in half.lead and "50% of the training labels" in half.blocks[0].tables[0].caption


def test_the_p_value_of_a_gap_is_in_the_results(found, monkeypatch):
    """Groups of few patients are not compared, and the table says why."""
    assert not found.results["metric"].str.startswith("p_value[auroc, eye: ").any()
    tables = [table for block in sections_of(found)["subgroups"].blocks for table in block.tables]
    assert any(cell.startswith("no gap") for table in tables for row in table.rows for cell in row)
    monkeypatch.setattr(subgroups, "FEWEST", 2)
    blocks = sections_of(found)["subgroups"].blocks
    results = {row["metric"]: row["value"] for block in blocks for row in block.numbers}
    own = [value for name, value in results.items() if name.startswith("p_value[auroc, eye: ")]
    gaps = [value for name, value in results.items() if name.startswith("auroc[eye: ")]
    assert len(own) == len(gaps) > 0 and all(0 <= value <= 1 for value in own)
    shown = [cell for block in blocks for table in block.tables for row in table.rows for cell in row]
    assert all(f"{value:.3f}" in shown for value in own if value >= 0.001)


def test_rows_of_classes_with_signs_in_their_names_stay(copied):
    """The report replaces its own rows alone."""
    results = read_csv(copied / "results.csv")
    odd = results[results["metric"] == "auroc/amd"]
    names = ("auroc/DR [mild]", "auroc/seen@home")
    pd.concat([results, *(odd.assign(metric=name) for name in names)]).to_csv(copied / "results.csv", index=False)
    write_report(copied)
    after = read_csv(copied / "results.csv")["metric"].value_counts()
    assert [after[name] for name in names] == [len(odd)] * 2
    assert after.drop(list(names)).to_dict() == results["metric"].value_counts().to_dict()


def test_classes_and_numbers_in_one_study(study_file, desk, table_of, tmp_path):
    """Data sets that share no metric, and an external set in which the main one, the finding's own, is undefined."""
    rows = table_of("inside")
    rows["age"] = 50 + rows["patient_id"].str[1:].astype(int) % 7 * 5.5
    rows.to_csv(tmp_path / "ages.csv", index=False)
    cases = pd.DataFrame({"image": [str(path) for path in sorted((desk / "outside" / "test" / "amd").iterdir())]})
    cases.assign(label="amd").to_csv(tmp_path / "cases.csv", index=False)
    data = {
        "Ages": {"data": str(tmp_path / "ages.csv"), "label_columns": ["age"], "problem_type": "regression"},
        "Inside": {"data": "inside", "external": {"Cases": str(tmp_path / "cases.csv")}},
    }
    path = study_file(
        data=data, fractions=[1.0], seeds=[0], metrics=["auprc", "auroc", "mae"], reporting={"resamples": 100}
    )
    found = run_study(path, tmp_path / "out")
    assert (found.metrics("Ages"), found.metrics("Inside")) == (("mae",), ("auprc/amd", "auroc"))
    assert set(found.comparisons["metric"]) == {"auprc", "auprc/amd", "auroc", "mae"}
    sections = sections_of(found)
    summary = sections["summary"]
    titles = [METRICS["mae"].title, "AUPRC, amd"]
    assert [block.tables[0].columns[1] for block in summary.blocks] == titles
    assert all(title in summary.lead for title in titles)
    ages = found.summary.query("data == 'Ages' and set == 'test'")["mean"].sort_values()
    assert [row[1] for row in summary.blocks[0].tables[0].rows] == [f"{value:.3f}" for value in ages]
    undefined = found.comparisons.query("set == 'Cases' and metric == 'auprc/amd'")
    assert len(undefined) == 1 and undefined[["difference", "p_value", "p_holm"]].isna().all(axis=None)
    assert [block.title for block in sections["external"].blocks] == ["Inside"]
