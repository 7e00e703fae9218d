"""May a probability be believed, and what does a threshold do: calibration and operating points."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from ...evaluation.calibration import reliability_curve
from ...evaluation.decision_curve import decision_curve
from ...evaluation.estimate import Estimate
from ...evaluation.figure_style import GREY, PAGE, short, unit_square
from ...evaluation.operating_points import choose_threshold, measure_threshold
from ...evaluation.recalibration import calibration_line
from ...runs.errors import RetFoundError
from ..folder import StudyResults
from .classes import class_titles
from .events import believed, event_of, is_either_or, positive, positive_classes, truth
from .measured import result_row, said
from .numbers import number, share
from .parts import Block, Chart, Section, Table, chart, file_name
from .systems import System, colours_of, drawn, outcomes_of, systems_of

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
