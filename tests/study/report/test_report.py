"""The report of a study: every number from its tables, one file that needs no other, whatever the names hold."""

import dataclasses
import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_auc_score

from retfound_hf.evaluation.calibration import expected_calibration_error
from retfound_hf.study.report import build_sections, render, write_report
from retfound_hf.study.report_parts import systems_of
from retfound_hf.study.results import JobResult, read_csv, read_study
from retfound_hf.study.runner import StudyArguments, run_study

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
def folder(desk, tmp_path_factory) -> Path:
    """A study of two models by two methods, with an external set and a subgroup column."""
    import yaml

    path = desk / "reported.yaml"
    content = {
        "name": "Reported",
        "models": {"First": "first", "Second": "second"},
        "methods": {"linear": None, "full": {"num_train_epochs": 2, "per_device_train_batch_size": 8}},
        "data": {"Inside": {"data": "inside", "modality": "cfp", "external": {"Outside": "outside"}}},
        "fractions": [0.5, 1.0],
        "seeds": [0, 1, 2],
        "metrics": ["auroc", "ece"],
        "finetune": {"dataloader_num_workers": 0, "cache_dir": "./cache"},
        "reporting": {"subgroups": ["eye"], "resamples": 200, "examples": 2},
    }
    path.write_text(yaml.safe_dump(content, sort_keys=False))
    out = tmp_path_factory.mktemp("reports") / "study"
    run_study(StudyArguments(study=str(path), output_dir=str(out)))
    path.unlink()
    return out


@pytest.fixture(scope="module")
def page(folder) -> Page:
    return Page((folder / "report.html").read_text(encoding="utf-8"))


def test_a_study_ends_with_its_report(page):
    assert page.titles == [
        "Models side by side", "Label efficiency", "External evaluation", "Calibration", "Operating points",
        "Subgroups", "Adaptation efficiency", "Right and wrong with the highest confidence", "Settings and versions",
    ]  # fmt: skip


def test_every_number_is_in_a_table_of_the_folder(folder, page):
    known = pd.concat([read_csv(folder / f"{name}.csv").select_dtypes("number").stack() for name in TABLES]).to_numpy()
    means = read_csv(folder / "efficiency.csv").groupby(["job"])["value"].max().to_numpy()
    said = [word for cell in page.numbers for word in re.findall(r"[−]?\d+\.\d{3}", cell)]
    assert len(said) > 100
    jobs = [job.efficiency["final"] for job in read_study(folder).finished if job.efficiency]
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


def test_the_job_that_stands_for_its_seeds_is_the_median(folder):
    found = read_study(folder)
    systems = systems_of(found, "Inside")
    assert len(systems) == 4 and [one.mean for one in systems] == sorted((one.mean for one in systems), reverse=True)
    for one in systems:
        rows = found.results.query(
            "set == 'test' and metric == 'auroc' and fraction == 1 and model == @one.model and method == @one.method"
        )
        assert rows.set_index("job").loc[one.job.id, "value"] == np.median(rows["value"])


def test_numbers_of_subgroups_and_thresholds_are_those_of_the_predictions(folder):
    found = read_study(folder)
    one = systems_of(found, "Inside")[0]
    own = found.results[found.results["job"] == one.job.id].set_index(["set", "metric"])["value"]
    test = found.predictions(one.job.id, "test").merge(found.images("Inside", "test"), on="id")
    for eye, rows in test.groupby("eye_y"):
        expected = roc_auc_score(rows["label_x"] == "healthy", rows["prob/healthy"])
        assert own["test", f"auroc[eye={eye}]"] == pytest.approx(expected)
    val = found.predictions(one.job.id, "val")
    threshold = own["val", "threshold@sensitivity=0.9/amd"]
    ill = (val["label"] == "amd").to_numpy()
    called = (val["prob/amd"] >= threshold).to_numpy()
    assert called[ill].mean() >= 0.9
    hits = (test["prob/amd"] >= threshold)[test["label_x"] == "amd"]
    assert own["test", "sensitivity@sensitivity=0.9/amd"] == pytest.approx(hits.mean())
    confidence = test[["prob/amd", "prob/healthy"]].max(axis=1)
    error = expected_calibration_error(confidence, test["prediction"] == test["label_x"])
    assert own["test", "ece"] == pytest.approx(error, abs=1e-7)


def test_classes_of_a_cohort_are_called_by_what_they_stand_for(folder, tmp_path):
    flow = {"stages": [], "classes": {"amd": "stroke within 3 years", "healthy": "no stroke within 3 years"}}
    (tmp_path / "flow.json").write_text(json.dumps(flow), encoding="utf-8")
    (tmp_path / "flow.svg").write_text("<svg/>", encoding="utf-8")
    found = read_study(folder)
    data = tuple(dataclasses.replace(one, cohort=str(tmp_path)) for one in found.study.data)
    found = dataclasses.replace(found, study=dataclasses.replace(found.study, data=data))
    sections = {section.name: section for section in build_sections(found)}
    table = sections["thresholds"].blocks[0].tables[0]
    assert table.caption.startswith("Positive is stroke within 3 years.") and table.columns[1] == "chosen for"
    assert {row[1] for row in table.rows} == {"sensitivity 90%", "specificity 90%"}
    galleries = sections["examples"].blocks[0].galleries
    assert galleries[0].title == "stroke within 3 years, right"
    assert {picture.lines[0] for picture in galleries[0].pictures} == {"said stroke within 3 years"}


@pytest.mark.parametrize(("level", "one"), [("image", "an image"), ("eye", "an eye"), ("patient", "a patient")])
def test_words_name_what_counts_as_a_case(folder, level, one):
    found = read_study(folder)
    reporting = dataclasses.replace(found.study.reporting, level=level, label_conflicts="max")
    found = dataclasses.replace(found, study=dataclasses.replace(found.study, reporting=reporting))
    sections = {section.name: section for section in build_sections(found)}
    assert f"AUROC is the chance that {one} with the condition is ranked above one without" in sections["summary"].lead
    assert f"of a hundred {level}s called 80% certain" in sections["calibration"].lead
    assert f"points hold as many {level}s each" in sections["calibration"].blocks[0].charts[0].caption
    apart = f"Each image stands for itself here, with its own answer, and not for its {level} as elsewhere."
    assert (apart in sections["examples"].lead) == (level != "image")


def test_the_report_has_no_path_of_the_machine(folder, desk):
    """Not in the study file, nor in the reason of a job that failed; the study's own file has them whole."""
    found = read_study(folder)
    reason = f"models > First: {desk / 'first'} has no weights ({desk / 'first' / 'config.json'})"
    failed = JobResult("one", "Inside", "First", "linear", 1.0, 0, "failed", reason=reason)
    text = render(found, build_sections(dataclasses.replace(found, jobs=(*found.jobs, failed))))
    inside = f"…/{desk.name}/inside"
    assert inside in text and f"…/{desk.name}/first" in text and "…/first/config.json" in text
    assert str(desk) not in text and str(folder) not in text and "cut to their last parts" in text
    assert str(desk / "inside") in (folder / "study.yaml").read_text(encoding="utf-8")


def test_names_are_text_whatever_they_hold(folder):
    found = read_study(folder)
    evil = '<script>alert("x")</script>'
    study = dataclasses.replace(found.study, name=evil)
    failed = JobResult("one", "Inside", evil, "linear", 1.0, 0, "failed", reason=evil)
    found = dataclasses.replace(found, study=study, jobs=(*found.jobs, failed), planned=found.planned + 2)
    text = render(found, build_sections(found))
    assert "<script" not in text and "&lt;script&gt;" in text
    assert f"1 of {found.planned} jobs have not ended yet" in text


def test_a_study_without_results_says_what_is_missing(folder):
    found = read_study(folder)
    failed = JobResult("one", "Inside", "First", "linear", 1.0, 0, "failed", reason="out of memory")
    none = dataclasses.replace(found, jobs=(failed,), planned=1)
    assert [section.name for section in build_sections(none)] == ["failures", "settings"]
    assert "out of memory" in render(none, build_sections(none))


def test_the_report_tells_how_many_trainings_and_labels_its_means_are_of(folder):
    """A linear head on all labels is trained once, whatever the number of seeds."""
    found = read_study(folder)
    summary = build_sections(found)[0]
    assert "means over 1 to 3 trainings;" in summary.lead
    table = summary.blocks[0].tables[0]
    assert {row[0].split(", ")[1]: row[2] for row in table.rows} == {"linear": "1", "full": "3"}
    assert table.caption.startswith("Test set, all training labels.")
    assert "1 data set, 1 to 3 trainings each," in render(found, [])
    half = dataclasses.replace(found, study=dataclasses.replace(found.study, fractions=(0.5,)))
    summary = build_sections(half)[0]
    assert "means over 3 trainings;" in summary.lead
    assert summary.blocks[0].tables[0].caption.startswith("Test set, 50% of the training labels.")


def test_hardware_and_versions_are_those_of_the_jobs(folder):
    found = read_study(folder)
    first, *others = found.jobs
    facts = {**first.facts, "device": "NVIDIA H100", "versions": {**first.facts["versions"], "torch": "9.9"}}
    mixed = dataclasses.replace(found, jobs=(dataclasses.replace(first, facts=facts), *others))
    run, versions = build_sections(mixed)[-1].blocks[:2]
    rows, count = dict(run.tables[0].rows), len(others)
    assert "NVIDIA H100, " in rows["hardware"] and "(1 job), cpu, " in rows["hardware"]
    own = first.facts["versions"]
    assert f"torch 9.9 (1 job), {own['torch']} ({count} jobs), " in versions.notes[0]
    assert f"numpy {own['numpy']}" in versions.notes[0]


def test_the_p_value_of_a_gap_is_in_the_results(folder, page):
    results = read_study(folder).results
    own = results[results["metric"].str.startswith("p_value[auroc, eye: ")]
    gaps = results[results["metric"].str.startswith("auroc[eye: ")]
    assert len(own) == len(gaps) > 0 and own["value"].between(0, 1).all()
    said = [word for word in page.numbers if re.fullmatch(r"\d\.\d{3}", word)]
    assert all(f"{value:.3f}" in said for value in own["value"] if value >= 0.001)


def test_rows_of_classes_with_signs_in_their_names_stay(folder, tmp_path):
    """The report replaces its own rows alone."""
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    results = read_csv(copy / "results.csv")
    odd = results[results["metric"] == "auroc/amd"]
    names = ("auroc/DR [mild]", "auroc/seen@home")
    pd.concat([results, *(odd.assign(metric=name) for name in names)]).to_csv(copy / "results.csv", index=False)
    write_report(copy)
    after = read_csv(copy / "results.csv")["metric"].value_counts()
    assert [after[name] for name in names] == [len(odd)] * 2
    assert after.drop(list(names)).to_dict() == results["metric"].value_counts().to_dict()
