"""Sections of the report that are about models: comparison, learning curves, calibration, thresholds, groups."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..evaluation import document
from ..evaluation.bootstrap import RESAMPLES, Estimate
from ..evaluation.calibration import calibration_line
from ..evaluation.document import Block, Picture, Section, Table, estimated, interval, is_missing, number, p_value
from ..evaluation.metrics import lower_is_better, metric_title
from ..evaluation.plots import COLOURS, GREY, PAGE, short, unit_square
from ..evaluation.predictions import Predictions
from ..evaluation.subgroups import FEWEST, column_groups, subgroup_metrics
from ..evaluation.thresholds import (
    Criterion,
    choose_points,
    confidence_and_correctness,
    decision_curve,
    measure_threshold,
    outcome_counts,
    reliability_curve,
)  # fmt: skip
from ..vocabulary import REGRESSION, SINGLE_LABEL
from .report_parts import (
    System,
    class_titles,
    colours_of,
    drawing,
    drawn_systems,
    duration,
    label_of,
    result_row,
    section,
    seeds_of,
    title_of,
    where,
)  # fmt: skip
from .results import StudyResults

LEAD = (
    "How well each model does on patients whom it has never seen. {meanings} The numbers are means over {seeds}; the "
    "first interval says how much they would vary with other patients, the second how much with other seeds."
)
MEANINGS = {  # `case` is an image, an eye or a patient
    "auroc": "the chance that {a_case} with the condition is ranked above one without: 0.5 is guessing, 1 is perfect",
    "auprc": "the average share of true alarms among alarms: guessing gives the share of the condition, 1 is perfect",
    "accuracy": "the share of {case}s that are classified rightly",
    "mae": "the average error, in the unit of the target: less is better",
}


def comparison(found: StudyResults) -> Section | None:
    """The main result."""
    cells = where(found.summary, fraction=max(found.study.fractions)).query("set != 'val'")
    blocks, main = [], []
    for data in dict.fromkeys(cells["data"]):
        task, (metric, *others) = found.task(data), found.metrics(data)
        main.append(metric)
        test = where(cells, data=data, set="test")
        tables = [_main_table(found, where(test, metric=metric), metric)]
        if others:
            names = ["model", *(title_of(found, data, name) for name in others)]
            tables.append(_means(found, test, "metric", others, names, "Further metrics on the test set"))
        patients = {name: f" of {count:,} patients" for name, count in task["patients"].items() if count}
        sizes = [f"{name} {count:,} images{patients.get(name, '')}" for name, count in task["images"].items()]
        chart = _forest(where(cells, data=data, metric=metric), found, data, metric)
        blocks.append(Block(data, [chart], tables, notes=[f"Sizes: {', '.join(sizes)}."]))
    if not blocks:
        return None
    level = found.study.reporting.level
    meanings = " ".join(f"{metric_title(metric)} is {_meaning(metric, level)}." for metric in dict.fromkeys(main))
    lead = LEAD.format(meanings=meanings, seeds=seeds_of(cells["seeds"]))
    return Section("summary", "Models side by side", lead, blocks)


def _meaning(metric: str, case: str) -> str:
    meaning = MEANINGS.get(
        metric.split("/")[0], "better when lower" if lower_is_better(metric) else "better when higher"
    )
    return meaning.format(case=case, a_case=f"a {case}" if case == "patient" else f"an {case}")


def _main_table(found: StudyResults, rows: pd.DataFrame, metric: str) -> Table:
    rows = rows.sort_values("mean", ascending=lower_is_better(metric))
    reference, fraction = found.study.reporting.reference, max(found.study.fractions)
    some = rows["seeds"].nunique() > 1  # else the lead has their number
    cells = []
    for row in rows.itertuples():
        difference = number(row.difference)
        if not is_missing(row.difference_low):
            difference += f" ({interval(row.difference_low, row.difference_high)})"
        cells.append(
            [
                label_of(found, row.model, row.method), number(row.mean), *([f"{row.seeds}"] if some else []),
                interval(row.low, row.high), interval(row.seeds_low, row.seeds_high),
                interval(row.paper_low, row.paper_high),
                "–" if is_missing(row.competitor) or not row.competitor else row.competitor, difference,
                p_value(row.p_value), p_value(row.p_holm),
            ]
        )  # fmt: skip
    columns = [
        "model", title_of(found, rows["data"].iloc[0], metric), *(["seeds"] if some else []), "95% CI over patients",
        "95% CI over seeds", "± 1.96 SE over seeds", "against", "difference (95% CI)", "p", "p, Holm",
    ]  # fmt: skip
    labels = "all training labels" if fraction == 1 else f"{document.percent(fraction)} of the training labels"
    caption = (
        f"Test set, {labels}. {reference}, in bold, is tested against the best of the other models trained by the "
        "same method: two-sided, over patients and seeds; Holm's correction is for all comparisons of the study. "
        "± 1.96 SE over seeds is the paper's interval, narrower than the 95% of Student's t beside it."
    )
    return Table(columns, cells, caption, emphasis=frozenset(np.flatnonzero(rows["model"] == reference).tolist()))


def _means(
    found: StudyResults, rows: pd.DataFrame, column: str, keys: Sequence, names: Sequence[str], what: str
) -> Table:
    """Means of the test set by system and by `column`, whose values `keys` are called `names[1:]`."""
    means = rows.pivot_table(index=["model", "method"], columns=column, values="mean", sort=False)
    cells = [[label_of(found, *key), *(number(row.get(one)) for one in keys)] for key, row in means.iterrows()]
    return Table(names, cells, f"{what}, means over seeds.")


def _forest(rows: pd.DataFrame, found: StudyResults, data: str, metric: str) -> Picture:
    """Points with their intervals over patients, a panel for each evaluated set."""
    title, sets = title_of(found, data, metric), list(dict.fromkeys(rows["set"]))
    test = where(rows, set="test").sort_values("mean", ascending=lower_is_better(metric))
    keys = [(row.model, row.method) for row in test.itertuples()]
    methods = list(found.study.methods)
    with drawing(found, "models", data, PAGE, 0.75 + 0.24 * len(keys)) as drawn:
        panels = drawn.figure.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
        for axes, evaluated in zip(panels, sets, strict=True):
            here = where(rows, set=evaluated).set_index(["model", "method"])
            for place, key in enumerate(keys):
                if key not in here.index or is_missing(here.loc[key, "mean"]):
                    continue
                row = here.loc[key]
                bold = key[0] == found.study.reporting.reference
                colour = COLOURS[methods.index(key[1]) % len(COLOURS)]
                ends = [row["mean"] if is_missing(row[end]) else row[end] for end in ("low", "high")]
                axes.plot(ends, [-place, -place], color=colour, linewidth=1.6 if bold else 1)
                axes.plot(row["mean"], -place, "D" if bold else "o", color=colour, markersize=5 if bold else 4)
            if metric == "auroc":
                axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.set(title="Test set" if evaluated == "test" else short(evaluated), xlabel=title)
            axes.set_yticks([-place for place in range(len(keys))], [short(label_of(found, *key)) for key in keys])
            axes.margins(y=0.5 / max(1, len(keys)))
    values = "; ".join(f"{label_of(found, *key)} {number(mean)}" for key, mean in zip(keys, test["mean"], strict=True))
    colours = ", and colours tell the methods" if len(methods) > 1 else ""
    caption = f"{title} with 95% intervals over patients; the reference is a diamond{colours}."
    return drawn.picture(caption, f"{data}, {title} on the test set: {values}", wide=True)


@section(
    "labels", "Label efficiency",
    "How many labelled images a model needs. A curve that is high on the left learns from few patients, which is what "
    "counts where labels are dear.",
)  # fmt: skip
def label_efficiency(found: StudyResults, data: str) -> Block | None:
    """The main metric against the share of the training labels."""
    study, metric = found.study, found.metrics(data)[0]
    rows = where(found.summary, data=data, set="test", metric=metric)
    if len(study.fractions) < 2 or rows.empty:
        return None
    title, kept = title_of(found, data, metric), set(rows["method"])
    panels = [method for method in study.methods if method in kept]
    with drawing(found, "labels", data, min(PAGE, 2.6 * len(panels) + 1.4), 2.7) as drawn:
        columns = drawn.figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, method in zip(columns, panels, strict=True):
            for colour, model in zip(COLOURS, study.models, strict=False):
                line = where(rows, method=method, model=model).sort_values("fraction")
                if line.empty:
                    continue
                x = 100 * line["fraction"].to_numpy()
                axes.plot(x, line["mean"], "o-", color=colour, markersize=3, label=short(model))
                ends = (line[end].astype(float) for end in ("seeds_low", "seeds_high"))
                axes.fill_between(x, *ends, color=colour, alpha=0.15, linewidth=0)
            axes.set(title=method, xlabel="Training labels (%)")
        columns[0].set_ylabel(title)
        drawn.legend()
    shares = sorted(set(rows["fraction"]))
    what = f"{title} on the test set by share of the training labels"
    table = _means(found, rows, "fraction", shares, ["model", *map(document.percent, shares)], what)
    alt = f"{data}: {title} against the share of training labels; the table below has the numbers"
    caption = (
        "Mean over seeds; the band is the 95% interval over them (Student's t). Smaller shares lie within larger ones."
    )
    return Block(charts=[drawn.picture(caption, alt)], tables=[table])


@section(
    "adaptation", "Adaptation efficiency",
    "How soon a model is trained: epochs and time until validation first reaches 95% of its best value.",
)  # fmt: skip
def adaptation(found: StudyResults, data: str) -> Block | None:
    """Validation against epochs and time."""
    here = where(found.curves, fraction=max(found.study.fractions), data=data)
    if here.empty:
        return None
    titles = {"epoch": "Epoch", "seconds": "Time of training (s)"}
    with drawing(found, "adaptation", data, PAGE, 2.7) as drawn:
        panels = drawn.figure.subplots(1, 2, sharey=True)
        for axes, (column, title) in zip(panels, titles.items(), strict=True):
            for colour, (key, of_key) in zip(COLOURS, here.groupby(["model", "method"], sort=False), strict=False):
                for place, (_, run) in enumerate(of_key.groupby("job", sort=False)):
                    label = "_" if place else short(label_of(found, *key))
                    axes.plot(run[column], run["value"], color=colour, linewidth=0.9, label=label)
            axes.set_xlabel(title)
            axes.xaxis.get_major_locator().set_params(integer=True)
        panels[0].set_ylabel("Validation AUROC")
        drawn.legend()
    alt = f"{data}: validation AUROC against epochs and time of every seed"
    return Block(charts=[drawn.picture("Every seed is a line.", alt, wide=True)], tables=[_time_table(found, data)])


def _time_table(found: StudyResults, data: str) -> Table:
    jobs = [job for job in found.finished if job.data == data and job.efficiency]
    keys = ["model", "method", "fraction"]
    table = pd.DataFrame([{**job.columns, **job.efficiency} for job in jobs]).groupby(keys, sort=False)
    rows = [
        [label_of(found, model, method), document.percent(fraction), number(group["epochs_to_95"].mean(), 1),
         duration(group["seconds_to_95"].astype(float).mean()), number(group["final"].mean())]
        for (model, method, fraction), group in table
    ]  # fmt: skip
    columns = ["model", "labels", "epochs to 95%", "time to 95%", "best validation AUROC"]
    return Table(columns, rows, "Means over seeds.", text=2)


@section(
    "external", "External evaluation",
    "Whether a model holds up on other clinics' patients and cameras: it was trained and tuned on one set, and is "
    "tested here, unchanged, on others.",
)  # fmt: skip
def external(found: StudyResults, data: str) -> Block | None:
    """Internal and external sets beside each other, as a matrix of colours."""
    metric, shown = found.metrics(data)[0], drawn_systems(found, data)
    sets = ["test", *found.study.data[data].external]
    if len(sets) < 2 or not shown:
        return None
    rows = where(found.summary, data=data, metric=metric, fraction=max(found.study.fractions))
    rows = rows.set_index(["model", "method", "set"])["mean"]
    values = np.array([[rows.get((one.model, one.method, name), np.nan) for name in sets] for one in shown])
    with drawing(found, "external", data, min(PAGE, 2.4 + 1.1 * len(sets)), 0.9 + 0.3 * len(shown)) as drawn:
        axes = drawn.figure.add_subplot()
        low, high = np.nanmin(values) - 0.05, np.nanmax(values) + 0.1
        axes.imshow(values, cmap="Blues", aspect="auto", vmin=low, vmax=high)
        for (row, column), value in np.ndenumerate(values):
            colour = "white" if (value - low) / (high - low) > 0.55 else "black"  # of Blues, the darker half
            axes.text(column, row, number(value), ha="center", va="center", color=colour)
        axes.set_xticks(range(len(sets)), ["test set", *(short(one, 18) for one in sets[1:])])
        axes.set_yticks(range(len(shown)), [short(one.label) for one in shown])
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.axvline(0.5, color=GREY, linewidth=0.8)
    lines = (f"{one.label} {', '.join(map(number, line))}" for one, line in zip(shown, values, strict=True))
    caption = f"{title_of(found, data, metric)}: the data set's own test patients, then sets from elsewhere."
    return Block(charts=[drawn.picture(caption, f"{data}, {', '.join(sets)}: {'; '.join(lines)}")])


MOST_CLASSES = 6
THRESHOLDS = np.arange(1, 91) / 100


def shown_classes(cases: Predictions) -> list[int]:
    """Of two exclusive classes the positive one; of many the most frequent ones."""
    if cases.finding:
        return [cases.class_names.index(cases.finding)]
    return sorted(np.argsort(-cases.truth.sum(axis=0), kind="stable")[:MOST_CLASSES].tolist())


def probabilities(cases: Predictions) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities, whether they came true, and patients.

    Of the positive one of two exclusive classes, of the predicted class among many, or of every label.
    """
    if cases.finding:
        index = cases.class_names.index(cases.finding)
        return cases.scores[:, index], cases.truth[:, index], cases.patients
    found = confidence_and_correctness(cases.truth, cases.scores, cases.problem_type == SINGLE_LABEL)
    patients = cases.patients
    return *found, None if patients is None else np.repeat(patients, len(found[0]) // len(patients))


def event_of(found: StudyResults, data: str) -> str:
    """Of two exclusive classes the positive one, as a reader calls it; empty for other tasks."""
    return class_titles(found, data).get(found.finding(data), "")


def _classifiers(found: StudyResults, data: str) -> list[System]:
    return [] if found.task(data)["problem_type"] == REGRESSION else drawn_systems(found, data)


@section(
    "calibration", "Calibration",
    "Whether a probability means what it says: of a hundred {case}s called 80% certain, eighty should be right. A "
    "model can rank patients well and still be overconfident.",
)  # fmt: skip
def calibration(found: StudyResults, data: str) -> Block | None:
    """Reliability curves, ECE, Brier score, slope and intercept."""
    if not (shown := _classifiers(found, data)):
        return None
    cells, numbers, event, case = [], [], event_of(found, data), found.study.reporting.level
    of_event = (f"Predicted probability of {short(event, 36)}", "Share that has it")
    with drawing(found, "calibration", data, PAGE / 2, 3.8) as drawn:
        axes = drawn.figure.add_subplot()
        unit_square(axes, *(of_event if event else ("Confidence", "Share that is right")))
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=(0, (3, 2)), label="perfect")
        for colour, system in zip(colours_of(found, shown), shown, strict=True):
            cases = found.cases(system.job, "test")
            predicted, true, patients = probabilities(cases)
            curve = reliability_curve(predicted, true, min(10, max(3, len(true) // 40)), equal_mass=True)
            axes.plot(curve.confidence, curve.accuracy, "o-", color=colour, markersize=3, label=short(system.label))
            line = calibration_line(true, predicted, patients)
            measures = {"calibration_slope": line.slope, "calibration_intercept": line.intercept}
            numbers += [result_row(system, "test", name, value, len(cases)) for name, value in measures.items()]
            cell = {"model": system.model, "method": system.method, "fraction": max(found.study.fractions)}
            means = where(found.summary, data=data, set="test", **cell).set_index("metric")["mean"]
            both = (number(means.get(metric)) for metric in ("ece", "brier"))
            cells.append([system.label, *both, *map(estimated, measures.values())])
        drawn.legend()
    caption = (
        f"The share with {event} among {case}s of like predicted probability; below the line: too many warnings."
        if event
        else "Right answers among those of similar confidence; below the line: overconfident."
    )
    table = Table(
        ["model", *map(metric_title, ("ece", "brier")), "slope (95% CI)", "intercept (95% CI)"], cells,
        "ECE and Brier score are means over seeds (– where the study does not ask for them); slope (1 is right) and "
        "intercept (0 is right) are of the seed whose result is the median (– where the fit has no finite or stable "
        "answer).",
    )  # fmt: skip
    alt = f"Reliability curves of {', '.join(system.label for system in shown)} on {data}"
    chart = drawn.picture(f"{caption} A model's points hold as many {case}s each.", alt)
    return Block(charts=[chart], tables=[table], numbers=numbers)


@section(
    "thresholds", "Operating points",
    "What happens to patients at a fixed threshold: the share of the ill who are found (sensitivity) and of the "
    "healthy who are left in peace (specificity).",
)  # fmt: skip
def operating_points(found: StudyResults, data: str) -> Block | None:
    """Thresholds chosen on validation, measured on the test set; net benefit of acting on the model."""
    cells, numbers, titles, reporting = [], [], class_titles(found, data), found.study.reporting
    wanted: list[tuple[Criterion, float]] = [("sensitivity", one) for one in reporting.sensitivity]
    wanted += [("specificity", one) for one in reporting.specificity]
    shown = _classifiers(found, data)
    loaded = {system: found.cases(system.job, "test") for system in shown}
    for system, test in loaded.items():
        val, classes = found.cases(system.job, "val"), shown_classes(test)
        for point in choose_points(val, wanted):
            if (index := test.class_names.index(point.label)) not in classes:
                continue
            true, scores, threshold = test.truth[:, index], test.scores[:, index], point.threshold
            measured = measure_threshold(true, scores, threshold, test.patients)
            place = f"{point.criterion}={point.target:g}/{point.label}"
            chosen = Estimate(threshold, None, None, 0, "chosen on validation")
            numbers.append(result_row(system, "val", f"threshold@{place}", chosen, len(val)))
            numbers += [
                result_row(system, "test", f"{name}@{place}", value, len(test)) for name, value in measured.items()
            ]
            aim = f"{point.criterion} {document.percent(point.target)}"
            counts = " / ".join(f"{count:,}" for count in outcome_counts(true, scores >= threshold).values())
            cells.append([system.label, titles[point.label], aim, number(threshold),
                          *map(estimated, measured.values()), counts])  # fmt: skip
    if not cells:
        return None
    columns = ["model", "class", "chosen for", "threshold", "sensitivity", "specificity", "PPV", "NPV",
               "TP / FP / FN / TN"]  # fmt: skip
    caption = (
        "Thresholds were chosen on the validation set alone and measured on the test set (95% CI over patients); "
        "predictive values are those at its prevalence. The seed whose result is the median."
    )
    if event := event_of(found, data):  # one class to speak of
        columns, cells = ["model", *columns[2:]], [[row[0], *row[2:]] for row in cells]
        caption = f"Positive is {event}. {caption}"
    table = Table(columns, cells, caption, text=2 if event else 3)
    charts = [_net_benefit(found, data, loaded)] if event else []
    return Block(charts=charts, tables=[table], numbers=numbers)


def _net_benefit(found: StudyResults, data: str, loaded: dict[System, Predictions]) -> Picture:
    """Decision curves of a task of two classes."""
    with drawing(found, "net-benefit", data, PAGE * 0.6, 2.8) as drawn:
        axes = drawn.figure.add_subplot()
        for colour, (system, cases) in zip(colours_of(found, list(loaded)), loaded.items(), strict=True):
            predicted, true, _ = probabilities(cases)
            curve = decision_curve(true, predicted, THRESHOLDS)
            axes.plot(curve.thresholds, curve.model, color=colour, label=short(system.label))
        axes.plot(curve.thresholds, curve.treat_all, color=GREY, linewidth=0.9, label="treat all")
        axes.axhline(0, color=GREY, linewidth=0.9, linestyle=(0, (3, 2)), label="treat none")
        top = max(line.get_ydata().max() for line in axes.lines[:-2])
        axes.set(xlabel="Threshold probability", ylabel="Net benefit", ylim=(-0.1 * top - 0.01, 1.1 * top + 0.01))
        drawn.legend()
    caption = "Decision curve: true positives per patient, less the false ones at the exchange rate of the threshold."
    return drawn.picture(caption, f"Net benefit by threshold probability on {data}")


@section(
    "subgroups", "Subgroups",
    "Whether the model serves all alike. The last line of each model is the gap between the two groups that differ "
    "most; its p value allows for their having been picked out.",
)  # fmt: skip
def subgroups(found: StudyResults, data: str) -> Block | None:
    """The main metric by groups of patients and images."""
    tables, numbers, notes, metric, reporting = [], [], [], found.metrics(data)[0], found.study.reporting
    loaded = {system: found.cases(system.job, "test") for system in drawn_systems(found, data)}
    for column in reporting.subgroups:
        cells: list[list[str]] = []
        for system, cases in loaded.items():
            if column not in cases.columns or cases.columns[column].isna().all():
                continue
            names = column_groups(cases.columns[column])
            groups, gaps = subgroup_metrics(cases, names, [metric], reporting.resamples or RESAMPLES)
            for group in groups:
                estimate = group.metrics[metric]
                if estimate.n < FEWEST:
                    notes = [f"Groups of fewer than {FEWEST} patients are left out."]
                    continue
                name = f"{metric}[{column}={group.name}]"
                numbers.append(result_row(system, "test", name, estimate, group.rows))
                cells.append([system.label, group.name, f"{group.rows:,}", number(estimate.value),
                              interval(estimate.low, estimate.high), ""])  # fmt: skip
            for gap in gaps:
                difference, tested = gap.comparison.difference, gap.comparison
                what = difference.method
                if difference.value is not None:
                    what, place = f"{gap.first} less {gap.second}", f"{column}: {gap.first} - {gap.second}"
                    p = Estimate(tested.p_value, None, None, difference.n, tested.test)
                    names = {f"{metric}[{place}]": difference, f"p_value[{metric}, {place}]": p}
                    numbers += [result_row(system, "test", name, value, len(cases)) for name, value in names.items()]
                    what += f" (without {', '.join(gap.left_out)}: too few patients)" if gap.left_out else ""
                cells.append([system.label, what, "", number(difference.value),
                              interval(difference.low, difference.high), p_value(tested.p_value)])  # fmt: skip
        if cells:
            heading = ["model", column, "cases", title_of(found, data, metric), "95% CI", "p of the gap"]
            tables.append(Table(heading, cells, text=2))
    return Block(tables=tables, numbers=numbers, notes=notes) if tables else None
