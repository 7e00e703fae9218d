"""Report sections on calibration, operating points, subgroups, examples and events."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..errors import RetFoundError
from ..evaluation.bootstrap import RESAMPLES
from ..evaluation.calibration import calibration_line, confidence_and_correctness, decision_curve, reliability_curve
from ..evaluation.estimates import Estimate
from ..evaluation.metrics import metric_title
from ..evaluation.plots import GREY, PAGE, short, unit_square
from ..evaluation.subgroups import Gap, column_groups, subgroup_metrics
from ..evaluation.thresholds import choose_threshold, measure_threshold, positive_class
from ..images.reading import UnreadableImageError, read_image
from .report_parts import (
    Block,
    Chart,
    Gallery,
    Section,
    System,
    Table,
    Thumbnail,
    chart,
    class_titles,
    colours_of,
    drawn,
    file_name,
    interval,
    number,
    outcomes_of,
    p_value,
    result_row,
    said,
    share,
    systems_of,
)
from .results import Outcomes, StudyResults

MOST_CLASSES = 6


def truth(outcomes: Outcomes) -> np.ndarray:
    """(cases, classes) bool."""
    if outcomes.labels.ndim == 2:
        return outcomes.labels.astype(bool)
    return outcomes.labels[:, None] == np.arange(len(outcomes.class_names))


def event_of(found: StudyResults, data: str) -> str:
    """Of two exclusive classes the positive one, as a reader calls it; empty for other tasks."""
    titles = class_titles(found, data)
    if len(titles) != 2 or found.task(data)["problem_type"] != "single_label_classification":
        return ""
    return list(titles.values())[positive_class(list(titles))]


def is_either_or(outcomes: Outcomes) -> bool:
    return outcomes.labels.ndim == 1 and len(outcomes.class_names) == 2


def positive(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Of two exclusive classes, the positive one's probabilities, and where it is true."""
    index = positive_class(outcomes.class_names)
    return outcomes.scores[:, index], outcomes.labels == index


def believed(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities, whether what they speak of is true, and patients.

    Of the positive one of two exclusive classes, of the class that is said among many, or of every label.
    """
    if is_either_or(outcomes):
        return *positive(outcomes), outcomes.patients
    predicted, true = confidence_and_correctness(truth(outcomes), outcomes.scores, outcomes.labels.ndim == 1)
    patients = outcomes.patients
    return predicted, true, None if patients is None else np.repeat(patients, len(true) // len(patients))


def positive_classes(outcomes: Outcomes) -> list[tuple[int, str]]:
    """Of two exclusive classes the positive one; of many the most frequent ones."""
    if is_either_or(outcomes):
        index = positive_class(outcomes.class_names)
        return [(index, outcomes.class_names[index])]
    frequent = np.argsort(-truth(outcomes).sum(axis=0), kind="stable")[:MOST_CLASSES]
    return [(int(index), outcomes.class_names[index]) for index in sorted(frequent)]


THRESHOLDS = np.arange(1, 91) / 100


def calibration(found: StudyResults, figures: Path) -> Section | None:
    """Reliability curves, ECE, Brier score, slope and intercept."""
    blocks, rows, case = [], [], found.study.reporting.level  # image, eye or patient
    for data, systems in _classifiers(found):
        shown, cells, name = drawn(found, systems), [], file_name("calibration", data)
        event = event_of(found, data)
        with chart(figures, name, PAGE / 2, 3.8) as figure:
            axes = figure.add_subplot()
            if event:
                unit_square(axes, f"Predicted probability of {short(event, 36)}", "Share that has it")
            else:
                unit_square(axes, "Confidence", "Share that is right")
            axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), label="perfect")
            for colour, system in zip(colours_of(found, shown), shown, strict=True):
                outcomes, _ = outcomes_of(found, system, "test")
                predicted, true, patients = believed(outcomes)
                bins = min(10, max(3, len(true) // 40))
                curve = reliability_curve(predicted, true, bins, equal_mass=True)
                axes.plot(
                    curve.confidence, curve.accuracy, "o-", color=colour, markersize=3, label=short(system.label)
                )
                line = calibration_line(true, predicted, patients)
                measures = {"calibration_slope": line.slope, "calibration_intercept": line.intercept}
                cases = len(outcomes.labels)
                rows += [result_row(system, "test", measure, value, cases) for measure, value in measures.items()]
                cells.append(
                    [system.label, *_summaries(found, system, ("ece", "brier")), *map(said, measures.values())]
                )
            figure.legend(loc="outside lower center", ncols=2)
        caption = (
            f"The share with {event} among {case}s of like predicted probability; below the line: too many warnings."
            if event
            else "Right answers among those of similar confidence; below the line: overconfident."
        ) + f" A model's points hold as many {case}s each."
        table = Table(
            ["model", "ECE", "Brier score", "slope (95% CI)", "intercept (95% CI)"], cells,
            "ECE and Brier score are means over trainings (– where the study does not ask for them); slope (1 is "
            "right) and intercept (0 is right) are of the training whose result is the median (– where the "
            "fit has no finite or stable answer).",
        )  # fmt: skip
        alt = f"Reliability curves of {', '.join(system.label for system in shown)} on {data}"
        blocks.append(Block(data, [Chart(figures / f"{name}.svg", caption, alt)], [table]))
    lead = (
        f"Whether a probability means what it says: of a hundred {case}s called 80% certain, eighty should be right. "
        "A model can rank patients well and still be overconfident."
    )
    return Section("calibration", "Calibration", lead, blocks, rows) if blocks else None


def operating_points(found: StudyResults, figures: Path) -> Section | None:
    """Thresholds chosen on validation, measured on the test set; net benefit of acting on the model."""
    blocks, rows = [], []
    reporting = found.study.reporting
    wanted = [("sensitivity", one) for one in reporting.sensitivity]
    wanted += [("specificity", one) for one in reporting.specificity]
    for data, systems in _classifiers(found):
        shown, cells, titles = drawn(found, systems), [], class_titles(found, data)
        for system in shown:
            (val, _), (test, _) = outcomes_of(found, system, "val"), outcomes_of(found, system, "test")
            for index, label in positive_classes(test):
                for criterion, target in wanted:
                    try:
                        threshold = choose_threshold(truth(val)[:, index], val.scores[:, index], criterion, target)
                    except RetFoundError:  # validation has one outcome only
                        continue
                    measured = measure_threshold(
                        truth(test)[:, index], test.scores[:, index], threshold, test.patients
                    )
                    place = f"{criterion}={target:g}/{label}"
                    chosen = Estimate(threshold, None, None, 0, "chosen on validation")
                    rows.append(result_row(system, "val", f"threshold@{place}", chosen, len(val.labels)))
                    rows += [
                        result_row(system, "test", f"{one}@{place}", value, len(test.labels))
                        for one, value in measured.items()
                    ]
                    cells.append([system.label, titles[label], f"{criterion} {share(target)}", number(threshold),
                                  *(said(value) for value in measured.values())])  # fmt: skip
        if not cells:
            continue
        columns = ["model", "class", "chosen for", "threshold", "sensitivity", "specificity", "PPV", "NPV"]
        caption = (
            "Thresholds were chosen on the validation set alone and measured on the test set (95% CI over patients); "
            "predictive values are those at its prevalence. The training whose result is the median."
        )
        if event := event_of(found, data):  # one class to speak of
            columns, cells = (["model", *columns[2:]], [[row[0], *row[2:]] for row in cells])
            caption = f"Positive is {event}. {caption}"
        tables = [Table(columns, cells, caption, text=2 if event else 3)]
        blocks.append(Block(data, _net_benefit(found, data, shown, figures), tables))
    lead = (
        "What happens to patients at a fixed threshold: the share of the ill who are found (sensitivity) and "
        "of the healthy "
        "who are left in peace (specificity)."
    )
    return Section("thresholds", "Operating points", lead, blocks, rows) if blocks else None


def _classifiers(found: StudyResults) -> Iterator[tuple[str, list[System]]]:
    for data in found.study.data:
        systems = systems_of(found, data.name)
        if systems and found.task(data.name)["problem_type"] != "regression":
            yield data.name, systems


def _net_benefit(found: StudyResults, data: str, systems: Sequence[System], figures: Path) -> list[Chart]:
    """Decision curves of a task of two classes."""
    loaded = [(system, outcomes_of(found, system, "test")[0]) for system in systems]
    if not is_either_or(loaded[0][1]):
        return []
    name = file_name("net-benefit", data)
    with chart(figures, name, PAGE * 0.6, 2.8) as figure:
        axes = figure.add_subplot()
        for colour, (system, outcomes) in zip(colours_of(found, systems), loaded, strict=True):
            scores, true = positive(outcomes)
            curve = decision_curve(true, scores, THRESHOLDS)
            axes.plot(curve.thresholds, curve.model, color=colour, label=short(system.label))
        axes.plot(curve.thresholds, curve.treat_all, color=GREY, linewidth=0.9, label="treat all")
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="treat none")
        top = max(line.get_ydata().max() for line in axes.lines[:-2])
        axes.set(xlabel="Threshold probability", ylabel="Net benefit", ylim=(-0.1 * top - 0.01, 1.1 * top + 0.01))
        figure.legend(loc="outside lower center", ncols=2)
    caption = "Decision curve: true positives per patient, less the false ones at the exchange rate of the threshold."
    return [Chart(figures / f"{name}.svg", caption, f"Net benefit by threshold probability on {data}")]


def _summaries(found: StudyResults, system: System, metrics: Sequence[str]) -> list[str]:
    summary = found.summary
    rows = summary[
        (summary["data"] == system.data) & (summary["set"] == "test") & (summary["model"] == system.model)
        & (summary["method"] == system.method) & (summary["fraction"] == max(found.study.fractions))
    ].set_index("metric")["mean"]  # fmt: skip
    return [number(rows.get(metric)) for metric in metrics]


def subgroups(found: StudyResults, figures: Path) -> Section | None:
    """The main metric by groups of patients and images."""
    columns = found.study.reporting.subgroups
    blocks, rows = [], []
    for data in found.study.data:
        tables, metric = [], found.metrics(data.name)[0]
        for column in columns:
            cells = []
            for system in drawn(found, systems_of(found, data.name)):
                outcomes, images = outcomes_of(found, system, "test")
                if column not in images or images[column].isna().all():
                    continue
                groups, gaps = subgroup_metrics(
                    outcomes.problem_type, outcomes.labels, outcomes.scores, outcomes.class_names,
                    column_groups(images[column]), outcomes.patients, [metric],
                    found.study.reporting.resamples or RESAMPLES,
                )  # fmt: skip
                for group in groups:
                    estimate = group.metrics[metric]
                    rows.append(result_row(system, "test", f"{metric}[{column}={group.name}]", estimate, group.rows))
                    cells.append([system.label, group.name, f"{group.rows:,}", number(estimate.value),
                                  interval(estimate.low, estimate.high), ""])  # fmt: skip
                for gap in gaps:
                    rows += _gap_rows(system, column, gap, len(images))
                    cells.append(_gap_cells(system, gap))
            if cells:
                heading = ["model", column, "cases", metric_title(metric), "95% CI", "p of the gap"]
                tables.append(Table(heading, cells, text=2))
        if tables:
            blocks.append(Block(data.name, tables=tables))
    lead = (
        "Whether the model serves all alike. The last line of each model is the gap between the two groups "
        "that differ "
        "most; its p value allows for their having been picked out."
    )
    return Section("subgroups", "Subgroups", lead, blocks, rows) if blocks else None


def _gap_rows(system: System, column: str, gap: Gap, cases: int) -> list[dict[str, Any]]:
    """The difference, and its p value under a name of its own; none where there is no gap."""
    difference, p = gap.comparison.difference, gap.comparison.p_value
    if difference.value is None:
        return []
    place = f"{column}: {gap.first} - {gap.second}"
    tested = Estimate(p, None, None, difference.n, gap.comparison.test)
    return [
        result_row(system, "test", f"{gap.metric}[{place}]", difference, cases),
        result_row(system, "test", f"p_value[{gap.metric}, {place}]", tested, cases),
    ]


def _gap_cells(system: System, gap: Gap) -> list[str]:
    difference = gap.comparison.difference
    without = f" (without {', '.join(gap.left_out)}: too often undefined)" if gap.left_out else ""
    what = difference.method if difference.value is None else f"{gap.first} less {gap.second}{without}"
    return [system.label, what, "", number(difference.value), interval(difference.low, difference.high),
            p_value(gap.comparison.p_value)]  # fmt: skip


SIDE = 160  # pixels


def examples(found: StudyResults, figures: Path) -> Section | None:
    """Thumbnails of test images by class; single-label tasks alone, where an answer is right or wrong."""
    count, blocks = found.study.reporting.examples, []
    for data in found.study.data:
        systems = [one for one in systems_of(found, data.name) if one.model == found.study.reporting.reference]
        single = found.task(data.name)["problem_type"] == "single_label_classification"
        if not count or not systems or not single:
            continue
        galleries = list(_galleries(found, systems[0], count))
        if galleries:
            note = f"{systems[0].label}, the training whose result is the median, on test images."
            blocks.append(Block(data.name, galleries=galleries, notes=[note]))
    lead = (
        "What the model is surest of. Look at the wrong ones first: a wrong label, a poor image, or a sign that the "
        "model takes for another all show here."
    )
    if (level := found.study.reporting.level) != "image":
        lead += f" Each image stands for itself here, with its own answer, and not for its {level} as elsewhere."
    return Section("examples", "Right and wrong with the highest confidence", lead, blocks) if blocks else None


def _galleries(found: StudyResults, system: System, count: int):
    predictions = found.predictions(system.job.id, "test")
    paths = found.images(system.data, "test").set_index("id")["image"]
    titles = class_titles(found, system.data)
    predictions["said"] = predictions["prediction"].map(titles)
    confidence = predictions[[f"prob/{name}" for name in titles]].to_numpy(float).max(axis=1)
    right = (predictions["label"] == predictions["prediction"]).to_numpy()
    for name, title in list(titles.items())[:MOST_CLASSES]:
        of_class = (predictions["label"] == name).to_numpy()
        both = []
        for kind, chosen in (("right", of_class & right), ("wrong", of_class & ~right)):
            rows = np.flatnonzero(chosen)
            rows = rows[np.argsort(-confidence[rows], kind="stable")][:count]
            pictures = [_picture(predictions.iloc[row], confidence[row], paths) for row in rows]
            both.append(Gallery(f"{title}, {kind}", [picture for picture in pictures if picture is not None]))
        if any(gallery.pictures for gallery in both):  # side by side, so that one without pictures keeps its place
            yield from both


def _picture(row: pd.Series, confidence: float, paths: pd.Series) -> Thumbnail | None:
    """None where the image is not a file, or not here any more."""
    try:
        image = read_image(paths[row["id"]])
    except (UnreadableImageError, KeyError, OSError):
        return None
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=82)
    return Thumbnail(file.getvalue(), [f"said {row['said']}", f"confidence {number(confidence, 2)}"])
