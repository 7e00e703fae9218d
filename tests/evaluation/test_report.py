"""Reports: table for the terminal, intervals, levels, subgroups, stored thresholds, columns that identify people."""

import dataclasses
import json
import re

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score, precision_score, recall_score

from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError
from retfound_hf.evaluation.document import About, Section, characteristics, metric_rows, tripod_section
from retfound_hf.evaluation.predictions import Predictions
from retfound_hf.evaluation.report import (
    ReportArguments,
    compute_metrics,
    format_table,
    read_points,
    ungradable_rows,
    write_points,
    write_report,
)
from retfound_hf.evaluation.thresholds import OperatingPoint, measure_threshold
from retfound_hf.vocabulary import MULTI_LABEL, REGRESSION, SINGLE_LABEL

CLASSES = ("mild", "none", "severe")


def test_overall_first_then_classes_aligned():
    metrics = {
        "auroc": 0.91234, "kappa": None, "auroc/mild/moderate": 0.9, "auroc/no": None,
        "recall/mild/moderate": 0.5, "recall/no": 1.0,
    }  # fmt: skip
    assert format_table(metrics, MULTI_LABEL, ["no", "mild/moderate"]).splitlines() == [
        "auroc, mean of classes      0.912",
        "kappa                   undefined",
        "",
        "class              AUROC  Sensitivity (recall)",
        "no             undefined                 1.000",
        "mild/moderate      0.900                 0.500",
    ]


def test_intervals_stand_beside_their_value():
    metrics = {"auroc": 0.9, "auroc_ci95": [0.85, 0.95], "mae": -1.0, "mae_ci95": [None, 2.0]}
    assert format_table(metrics, REGRESSION, ["age"]).splitlines() == [
        "auroc       0.900 [0.850, 0.950]",
        "mae    -1.000 [undefined, 2.000]",
    ]


def test_what_compute_metrics_returns(single_label):
    labels, scores = single_label(40, 3)
    metrics = compute_metrics(SINGLE_LABEL, labels, scores, list("abc"))
    lines = format_table(metrics, SINGLE_LABEL, ["a", "b", "c"]).splitlines()
    assert len(lines) == 15 + 2 + 3 and lines[0].split()[-1] == f"{metrics['auroc']:.3f}"
    regression = compute_metrics(REGRESSION, labels, labels + 1.0, ["age"])
    assert "class" not in format_table(regression, REGRESSION, ["age"])


@pytest.mark.parametrize("names", [("glaucoma", "normal"), ("no_dr", "dr")])
def test_of_two_classes_the_rare_finding_comes_first(names):
    """Random scores at 5%: its AUPRC is near its share, and the mean over both classes is near a half."""
    rng = np.random.default_rng(0)
    place = names.index("glaucoma" if "glaucoma" in names else "dr")
    ill, score = rng.random(4000) < 0.05, rng.random(4000)
    scores = np.c_[score, 1 - score] if place == 0 else np.c_[1 - score, score]
    metrics = compute_metrics(SINGLE_LABEL, np.where(ill, place, 1 - place), scores, names)
    rows = dict(metric_rows(metrics, SINGLE_LABEL, names))
    own = [f"{name}/{names[place]}" for name in ("auprc", "f1", "precision", "recall")]
    assert list(rows)[:5] == ["auroc", *own] and rows["auroc"] == "AUROC"
    assert metrics[f"auprc/{names[place]}"] == pytest.approx(0.05, abs=0.01) and metrics["auprc"] > 0.49
    called = score >= 0.5
    expected = [precision_score(ill, called), recall_score(ill, called), f1_score(ill, called)]
    assert [metrics[f"{name}/{names[place]}"] for name in ("precision", "recall", "f1")] == pytest.approx(expected)
    assert all("mean of classes" in rows[name] for name in ("auprc", "f1_macro", "precision_macro", "recall_macro"))
    assert not any("mean" in title for name, title in rows.items() if "/" in name)
    lines = format_table(metrics, SINGLE_LABEL, names).splitlines()
    assert lines[1].split()[-1] == f"{metrics[f'auprc/{names[place]}']:.3f}"


@pytest.fixture(scope="module")
def predicted():
    """Rows, targets and scores of 60 patients with two eyes, each with two images of one label."""
    rng = np.random.default_rng(0)
    patient = np.repeat(np.arange(60), 4)
    eye = np.tile(list("LLRR"), 60)
    targets = np.repeat(rng.integers(3, size=120), 2)
    logits = rng.normal(size=(240, 3)) + 1.5 * np.eye(3)[targets]
    scores = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    rows = pd.DataFrame({
        "id": [f"{number}.png" for number in range(240)], "image": "x", "patient_id": [f"p{n}" for n in patient],
        "eye": eye, "age": rng.integers(40, 80, size=60)[patient], "camera": rng.choice(["A", "B"], size=240),
    })  # fmt: skip
    return rows, targets, scores


def written(folder, predicted, **options):
    points, about = options.pop("points", ()), options.pop("about", None)
    rows, targets, scores = predicted
    predictions = Predictions.of_table(rows, targets, scores, CLASSES, SINGLE_LABEL, CLASSES)
    metrics = write_report(folder, predictions, ReportArguments(**options), points, False, about)
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    return metrics


def test_by_default_nothing_is_added(tmp_path, predicted):
    metrics = written(tmp_path, predicted)
    assert metrics == compute_metrics(SINGLE_LABEL, *predicted[1:], CLASSES, CLASSES)
    files = ["counts.csv", "metrics.json", "net_benefit.csv", "predictions.csv"]
    assert sorted(path.name for path in tmp_path.iterdir()) == files
    counts = pd.read_csv(tmp_path / "counts.csv").set_index("class")
    assert counts["rows"].eq(240).all() and counts["patients"].eq(60).all()
    assert counts["positives"].tolist() == np.bincount(predicted[1]).tolist()
    columns = list(pd.read_csv(tmp_path / "predictions.csv").columns)
    assert columns == ["id", "label", "prediction", *(f"prob/{name}" for name in CLASSES), "patient_id", "eye"]


def test_intervals_are_over_patients(tmp_path, predicted):
    rows, targets, scores = predicted
    metrics = written(tmp_path, predicted, confidence_intervals=True, resamples=200)
    expected = Predictions.of_table(rows, targets, scores, CLASSES, SINGLE_LABEL, CLASSES).intervals(200)
    for name, estimate in expected.items():
        assert metrics[name] == estimate.value
        if name == "ece":
            assert "ece_ci95" not in metrics
        else:
            assert metrics[f"{name}_ci95"] == [estimate.low, estimate.high]
    table = pd.read_csv(tmp_path / "intervals.csv").set_index("metric")
    assert table.loc["auroc", "n"] == 60 and table.loc["auroc", "low"] == pytest.approx(expected["auroc"].low)
    calibration = pd.read_csv(tmp_path / "calibration.csv")
    assert list(calibration["class"]) == [*CLASSES, "all"]
    assert calibration["ece"].iloc[-1] == pytest.approx(metrics["ece"])
    inside = calibration[:-1]
    assert (inside["slope_low"] < inside["slope"]).all() and (inside["slope"] < inside["slope_high"]).all()


def test_metrics_at_the_level_of_the_eye(tmp_path, predicted):
    _, targets, scores = predicted
    metrics = written(tmp_path, predicted, level="eye")
    assert metrics == compute_metrics(SINGLE_LABEL, targets[::2], (scores[::2] + scores[1::2]) / 2, CLASSES, CLASSES)
    assert len(pd.read_csv(tmp_path / "predictions.csv")) == 240
    eyes = pd.read_csv(tmp_path / "predictions_eye.csv")
    assert list(eyes["id"][:3]) == ["p0/L", "p0/R", "p1/L"] and len(eyes) == 120
    highest = written(tmp_path, predicted, level="eye", aggregate="max")
    raised = np.maximum(scores[::2], scores[1::2])
    raised /= raised.sum(axis=1, keepdims=True)
    assert highest["auroc"] == pytest.approx(
        compute_metrics(SINGLE_LABEL, targets[::2], raised, CLASSES, CLASSES)["auroc"]
    )


def test_patients_whose_eyes_differ(tmp_path, predicted):
    with pytest.raises(BadDataError):
        written(tmp_path, predicted, level="patient")
    written(tmp_path, predicted, level="patient", label_conflicts="max")
    labels = pd.read_csv(tmp_path / "predictions_patient.csv")["label"]
    expected = predicted[1].reshape(60, 4).max(axis=1)
    assert list(labels) == [CLASSES[label] for label in expected]


def test_subgroups(tmp_path, predicted):
    rows, targets, scores = predicted
    written(tmp_path, predicted, subgroup_columns=["age:50,65", "camera"], resamples=200)
    table = pd.read_csv(tmp_path / "subgroups.csv")
    compared = table["group"].str.contains(" - ") | (table["group"] == "gap")
    groups, gaps = table[~compared], table[compared]
    assert list(groups["group"].unique()) == ["<50", "50–<65", "≥65", "A", "B"]
    young = (rows["age"] < 50).to_numpy()
    row = groups[(groups["group"] == "<50") & (groups["metric"] == "auroc")].iloc[0]
    assert row["value"] == pytest.approx(
        compute_metrics(SINGLE_LABEL, targets[young], scores[young], CLASSES, CLASSES)["auroc"]
    )
    assert (row["rows"], row["n"]) == (young.sum(), rows["patient_id"][young].nunique())
    assert set(gaps["column"]) == {"age", "camera"} and gaps["p_value"].dropna().between(0, 1).all()
    for column in ("value", "p_value"):
        assert (gaps[column].isna() == (gaps["group"] == "gap")).all()
    assert (gaps["method"].str.startswith("no gap") == (gaps["group"] == "gap")).all()
    assert (groups["low"].isna() == groups["method"].str.startswith("no interval")).all()
    assert {"age", "camera"} <= set(pd.read_csv(tmp_path / "predictions.csv").columns)
    # At the level of eyes a camera that differs between an eye's images is unknown.
    written(tmp_path, predicted, subgroup_columns=["camera"], level="eye", resamples=200)
    assert "unknown" in set(pd.read_csv(tmp_path / "subgroups.csv")["group"])


def test_thresholds_are_stored_read_and_measured(tmp_path, predicted, caplog):
    rows, targets, scores = predicted
    report, point = ReportArguments(), OperatingPoint("none", "sensitivity", 0.9, 0.4)
    write_points(tmp_path, [point], report, images=50)
    assert read_points(tmp_path, CLASSES, report) == [point]
    assert read_points(tmp_path, CLASSES, ReportArguments(level="eye")) == []
    assert len(caplog.records) == 1
    (tmp_path / "without").mkdir()
    assert read_points(tmp_path / "without", CLASSES, report) == []
    written(tmp_path, predicted, points=[point])
    (row,) = pd.read_csv(tmp_path / "operating_points.csv").to_dict("records")
    expected = measure_threshold(targets == 1, scores[:, 1], 0.4, rows["patient_id"])
    assert row["sensitivity"] == pytest.approx(expected["sensitivity"].value)
    assert row["npv_low"] == pytest.approx(expected["npv"].low)
    assert row["positives"] + row["negatives"] == 240
    (tmp_path / "operating_points.json").write_text("{}")
    with pytest.raises(BadModelError):
        read_points(tmp_path, CLASSES, report)


@pytest.mark.parametrize(
    "content",
    ["[" * 100_000, "[]", "{}", b"\xff", {"points": 5}, {"points": [[1]]}, {"threshold": "high"}, {"threshold": None},
     {"threshold": float("nan")}, {"label": 5}, {"criterion": "best"}, {"level": ...}],
)  # fmt: skip
def test_damaged_thresholds_are_refused(content, tmp_path):
    if isinstance(content, dict):
        point = {"label": "none", "criterion": "sensitivity", "target": 0.9, "threshold": 0.4}
        given = {name: content.get(name, value) for name, value in point.items()}
        facts = {"points": [given], "level": "image", "aggregate": "mean"} | content
        content = json.dumps({name: value for name, value in facts.items() if value is not ...})
    (tmp_path / "operating_points.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(BadModelError) as error:
        read_points(tmp_path, CLASSES, ReportArguments())
    assert error.value.model == str(tmp_path) and "\n" not in str(error.value)


@pytest.mark.parametrize("known", [True, False])
def test_a_column_that_tells_who_somebody_is_makes_no_groups(predicted, known):
    rows, _, _ = predicted
    patients = rows["patient_id"]
    number = patients.str[1:].astype(int)
    table = rows.assign(
        name="N. " + number.astype(str), exam=[f"e{row}" for row in range(240)], weight=number + 0.5,
        pair="s" + (number // 2).astype(str), site=np.where(number < 30, "s" + number.astype(str), None),
        patient_id=patients if known else None,
    )  # fmt: skip
    patients = 60 if known else 240
    names = {"exam": patients} | ({"name": 60} if known else {})  # four images each: of one name, and four exams
    for name, alone in names.items():
        with pytest.raises(BadArgumentError, match=f"{alone} of the {patients} patients") as error:
            ReportArguments(subgroup_columns=[name]).check_columns(table, "set")
        assert (error.value.field, error.value.value) == ("subgroup_columns", name)
    # Numbers are cut into bands, half of the patients are unknown, and of a pair nobody is alone.
    for text in ("weight", "pair", "site", "camera", "age:50,65", "weight:10"):
        ReportArguments(subgroup_columns=[text]).check_columns(table, "set")
    if known:
        edges = ",".join(str(edge) for edge in range(1, 60))
        with pytest.raises(BadArgumentError, match="60 of the 60 patients"):
            ReportArguments(subgroup_columns=[f"weight:{edges}"]).check_columns(table, "set")


def test_every_option_has_help():
    assert all(field.metadata["help"] for field in dataclasses.fields(ReportArguments))


@pytest.mark.parametrize(
    ("field", "value"),
    [("resamples", 10), ("subgroup_columns", ["patient_id"]), ("subgroup_columns", ["image"]),
     ("subgroup_columns", ["split", "id:1,2"]), ("subgroup_columns", ["age:old"])],
)  # fmt: skip
def test_arguments_that_are_refused(field, value):
    with pytest.raises(BadArgumentError) as error:
        ReportArguments(**{field: value})
    assert error.value.field == field


def test_a_column_that_is_missing_is_named_with_the_nearest(predicted):
    with pytest.raises(BadArgumentError) as error:
        ReportArguments(subgroup_columns=["camra"]).check_columns(predicted[0], "set")
    assert error.value.value == "camra" and "camera" in error.value.accepted


def test_the_page_says_who_was_studied_and_what_figures_rest_on(tmp_path, predicted):
    rows, targets, scores = predicted
    rows = rows.assign(sex=np.repeat(["F", "M", None], 80), ungradable=(np.arange(240) % 10 == 0).astype(int))
    parts = {"train": (rows[:120], targets[:120]), "test": (rows, targets)}
    about = About("A <study>", {"model": "mine"}, parts, "Nothing was fitted.", unread=np.array([2, 2, 0]))
    points = [OperatingPoint("severe", "sensitivity", 0.9, 0.3)]
    options = {"prevalence": ["severe=0.03"], "ungradable_column": "ungradable"}
    written(tmp_path, (rows, targets, scores), points=points, about=about, **options)
    table = pd.read_csv(tmp_path / "characteristics.csv", index_col=0)
    assert list(table.columns) == ["train", "test"] and table.loc["Images", "test"] == "240"
    assert table.loc["Patients", "train"] == "30" and table.loc["Sex, patients: F", "test"] == "20 (33.3%)"
    assert table.loc["Sex, patients: missing", "test"] == "20 (33.3%)"
    assert table.loc["severe, images", "test"].startswith(f"{(targets == 2).sum()} (")
    few = characteristics({"test": (rows[:36], targets[:36])}, SINGLE_LABEL, ("a", "b", "c"), fewest=10)["test"]
    assert few["Sex, patients: F"] == "<10" and few["Images"] == "36"
    ages = rows.drop_duplicates("patient_id")["age"]
    assert table.loc["Age, patients: mean (SD)", "test"] == f"{ages.mean():.1f} ({ages.std():.1f})"
    assert table.loc["Camera, images: A", "test"].startswith(f"{(rows['camera'] == 'A').sum()} (")
    point = pd.read_csv(tmp_path / "operating_points.csv").iloc[0]
    called, ill = scores[:, 2] >= 0.3, targets == 2
    assert [point[name] for name in ("tp", "fp", "fn", "tn")] == [
        (called & ill).sum(), (called & ~ill).sum(), (~called & ill).sum(), (~called & ~ill).sum()
    ]  # fmt: skip
    assert point["prevalence"] == 0.03 and point["ppv_there"] < point["ppv"]
    lost = pd.read_csv(tmp_path / "ungradable.csv").iloc[0]
    marked = rows["ungradable"] == 1
    assert (lost["ungradable_positives"], lost["ungradable_negatives"]) == (
        (marked & ill).sum() + 2,
        (marked & ~ill).sum() + 1,
    )
    assert lost["sensitivity_referred"] == pytest.approx(((called | marked) & ill).sum() / ill.sum(), abs=0.02)
    assert lost["specificity_gradable"] == pytest.approx((~called & ~ill)[~marked].sum() / (~ill)[~marked].sum())
    page = (tmp_path / "report.html").read_text()
    assert "A &lt;study&gt;" in page and "<study>" not in page and "Nothing was fitted." in page
    assert "3 images could not be read" in page and "240 images of 60 patients" in page
    sections = re.findall(r'<section id="(.*?)">', page)
    assert sections == ["participants", "performance", "thresholds", "utility", "calibration", "settings", "tripod"]


def test_the_checklist_has_every_item_once_and_says_what_is_left_to_the_authors():
    sections = [Section(name, name.title(), "", []) for name in ("participants", "performance", "settings")]
    rows = tripod_section(sections).blocks[0].tables[0].rows
    items = [row[0] for row in rows]
    assert len(items) == len(set(items)) == 52 and {re.match(r"\d+", item)[0] for item in items} == set(
        map(str, range(1, 28))
    )
    answered = {row[0]: (row[4], row[5]) for row in rows}
    assert answered["17"] == answered["25"] == ("no", "to be written by the authors")
    assert answered["21"] == ("yes", "Participants") and answered["10"][0] == "in part"
    assert answered["15"][0] == "no"  # no thresholds in this report
    development, evaluation = ({row[0] for row in rows if row[2] == part} for part in "DE")
    assert development == {"9a", "12a", "12b", "12c", "15", "22", "27a", "27b"}
    assert evaluation == {"12f", "12g", "20c", "24"} and {row[2] for row in rows} == {"D", "E", "D;E"}


@pytest.mark.parametrize(
    ("prevalence", "names"),
    [
        ("2", ["a", "b"]),
        ("amd=0", ["amd", "b"]),
        ("amd=x", ["amd", "b"]),
        ("0.1", list("abc")),
        ("d=0.1", list("abc")),
    ],
)
def test_a_prevalence_is_a_share_of_a_class(prevalence, names):
    with pytest.raises(BadArgumentError) as error:
        ReportArguments(prevalence=[prevalence]).prevalences(SINGLE_LABEL, names)
    assert error.value.field == "prevalence"


def test_prevalences():
    assert ReportArguments(prevalence=0.02).prevalences(SINGLE_LABEL, ["amd", "healthy"]) == {"amd": 0.02}
    several = ReportArguments(prevalence=["a=0.1", "b=c=0.2"]).prevalences(MULTI_LABEL, ["a", "b=c"])
    assert several == {"a": 0.1, "b=c": 0.2}


def test_columns_of_ungradable_images():
    marks = pd.Series(["Yes", "0", None, "ungradable", False, 1.0, True], name="ungradable")
    assert ungradable_rows(marks).tolist() == [True, False, False, True, False, True, True]
    assert ungradable_rows(pd.Series(["good", "reject"], name="quality")).tolist() == [False, True]
    for wrong in (pd.Series([2, 0], name="ungradable"), pd.Series([1, 0], name="gradable")):
        with pytest.raises(BadDataError):
            ungradable_rows(wrong)
    with pytest.raises(BadArgumentError) as error:
        ReportArguments(ungradable_column="gradeable").check_columns(
            pd.DataFrame({"id": ["a"], "ungradeable": [0]}), "x"
        )
    assert error.value.field == "ungradable_column"
