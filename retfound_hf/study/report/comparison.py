"""Models side by side: the summary table and a figure for every task."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from ...evaluation.figure_style import COLOURS, GREY, PAGE, short
from ..folder import StudyResults
from ..reading import LOWER_IS_BETTER
from .numbers import interval, is_missing, metric_name, number, p_value, share, span
from .parts import Block, Chart, Section, Table, chart, file_name
from .systems import label_of

LEAD = (
    "How well each model does on patients whom it has never seen. {meanings} The numbers are means over {trainings}; "
    "the first interval says how much they would vary with other patients, the second how much with another training."
)
MEANINGS = {  # `case` is an image, an eye or a patient
    "auroc": "the chance that {a_case} with the condition is ranked above one without: 0.5 is guessing, 1 is perfect",
    "auprc": "the average share of true alarms among alarms: guessing gives the share of the condition, 1 is perfect",
    "accuracy": "the share of {case}s that are classified rightly",
    "mae": "the average error, in the unit of the target: less is better",
}


def comparison(found: StudyResults, figures: Path) -> Section | None:
    """The main result."""
    study = found.study
    cells = _of_largest_fraction(found)
    blocks, main = [], []
    for data in study.data:
        rows = cells[cells["data"] == data.name]
        if rows.empty:
            continue
        task, (metric, *others) = found.task(data.name), found.metrics(data.name)
        main.append(metric)
        test = rows[rows["set"] == "test"]
        tables = [_main_table(found, test, metric)]
        if others:
            tables.append(_other_metrics(found, test, others))
        sizes = ", ".join(
            f"{name} {images:,} images" + (f" of {patients:,} patients" if patients else "")
            for name, images in task["images"].items()
            for patients in (task["patients"].get(name),)
        )
        own = rows[rows["metric"] == metric]
        charts = [_forest(own, found, data.name, metric, figures)]
        blocks.append(Block(data.name, charts, tables, notes=[f"Sizes: {sizes}."]))
    if not blocks:
        return None
    level = study.reporting.level
    meanings = " ".join(f"{metric_name(metric)} is {_meaning(metric, level)}." for metric in dict.fromkeys(main))
    lead = LEAD.format(meanings=meanings, trainings=trainings(cells))
    return Section("summary", "Models side by side", lead, blocks)


def trainings(summary: pd.DataFrame) -> str:
    """How many trainings the means of a summary are over: a model on some data may have fewer than the study seeds."""
    count = span(summary["seeds"])
    return f"{count} training" + ("" if count == "1" else "s")


def _meaning(metric: str, case: str) -> str:
    meaning = MEANINGS.get(metric, "better when lower" if metric in LOWER_IS_BETTER else "better when higher")
    return meaning.format(case=case, a_case=f"a {case}" if case == "patient" else f"an {case}")


def _of_largest_fraction(found: StudyResults) -> pd.DataFrame:
    summary = found.summary
    return summary[(summary["fraction"] == max(found.study.fractions)) & (summary["set"] != "val")]


def _main_table(found: StudyResults, test: pd.DataFrame, metric: str) -> Table:
    rows = test[test["metric"] == metric].sort_values("mean", ascending=metric in LOWER_IS_BETTER)
    reference = found.study.reporting.reference
    cells, emphasis = [], set()
    counted = rows["seeds"].nunique() > 1  # else the lead says it
    for place, row in enumerate(rows.itertuples()):
        if row.model == reference:
            emphasis.add(place)
        against = "–" if not isinstance(row.competitor, str) or not row.competitor else row.competitor
        difference = number(row.difference)
        if not is_missing(row.difference_low):
            difference += f" ({interval(row.difference_low, row.difference_high)})"
        cells.append(
            [
                label_of(found, row.model, row.method), number(row.mean), *([f"{row.seeds}"] if counted else []),
                interval(row.low, row.high), interval(row.seeds_low, row.seeds_high), against, difference,
                p_value(row.p_value), p_value(row.p_holm),
            ]
        )  # fmt: skip
    columns = [
        "model", metric_name(metric), *(["trainings"] if counted else []), "95% CI, patients", "95% CI, trainings",
        "against", "difference (95% CI)", "p", "p, Holm",
    ]  # fmt: skip
    fraction = max(found.study.fractions)
    labels = "all training labels" if fraction == 1 else f"{share(fraction)} of the training labels"
    caption = (
        f"Test set, {labels}. {reference}, in bold, is tested against the best of the other models trained by the "
        "same method: two-sided, over patients and trainings; Holm's correction is for all comparisons of the study."
    )
    return Table(columns, cells, caption, emphasis=frozenset(emphasis))


def _other_metrics(found: StudyResults, test: pd.DataFrame, metrics: Sequence[str]) -> Table:
    means = test.pivot_table(index=["model", "method"], columns="metric", values="mean", sort=False)
    rows = [
        [label_of(found, *key), *(number(row.get(metric)) for metric in metrics)]
        for key, row in means.iterrows()
    ]  # fmt: skip
    return Table(["model", *map(metric_name, metrics)], rows, "Further metrics on the test set, means over trainings.")


def _forest(rows: pd.DataFrame, found: StudyResults, data: str, metric: str, figures: Path) -> Chart:
    """Points with their intervals over patients, a panel for each evaluated set."""
    sets = list(dict.fromkeys(rows["set"]))
    test = rows[rows["set"] == "test"].sort_values("mean", ascending=metric in LOWER_IS_BETTER)
    keys = [(row.model, row.method) for row in test.itertuples()]
    methods = [method.label for method in found.study.methods]
    name = file_name("models", data)
    with chart(figures, name, PAGE, 0.75 + 0.24 * len(keys)) as drawn:
        panels = drawn.subplots(1, len(sets), sharex=True, sharey=True, squeeze=False)[0]
        for axes, evaluated in zip(panels, sets, strict=True):
            here = rows[rows["set"] == evaluated].set_index(["model", "method"])
            for place, key in enumerate(keys):
                if key not in here.index or is_missing(here.loc[key, "mean"]):
                    continue
                row = here.loc[key]
                bold = key[0] == found.study.reporting.reference
                colour = COLOURS[methods.index(key[1]) % len(COLOURS)]
                low, high = (row["mean"] if is_missing(row[end]) else row[end] for end in ("low", "high"))
                axes.plot([low, high], [-place, -place], color=colour, linewidth=1.6 if bold else 1)
                axes.plot(row["mean"], -place, "D" if bold else "o", color=colour, markersize=5 if bold else 4)
            if metric == "auroc":
                axes.axvline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (3, 2)))
            axes.set(title="Test set" if evaluated == "test" else short(evaluated), xlabel=metric_name(metric))
            axes.set_yticks([-place for place in range(len(keys))], [short(label_of(found, *key)) for key in keys])
            axes.margins(y=0.5 / max(1, len(keys)))
    said = [f"{label_of(found, *key)} {number(value)}" for key, value in zip(keys, test["mean"], strict=True)]
    caption = (
        f"{metric_name(metric)} with 95% intervals over patients; the reference is a diamond"
        + (", and colours tell the methods" if len(methods) > 1 else "")
        + "."
    )
    alt = f"{data}, {metric_name(metric)} on the test set: {_listed(said)}"
    return Chart(figures / f"{name}.svg", caption, alt, wide=True)


def _listed(words: Sequence[str]) -> str:
    return "; ".join(words)
