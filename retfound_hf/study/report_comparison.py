"""Report sections on the comparison of models and on learning curves."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ..evaluation.metrics import lower_is_better, metric_title
from ..evaluation.plots import COLOURS, GREY, PAGE, short
from .report_parts import (
    Block,
    Chart,
    Section,
    Table,
    chart,
    drawn,
    duration,
    file_name,
    interval,
    is_missing,
    label_of,
    number,
    p_value,
    share,
    span,
    systems_of,
)
from .results import StudyResults

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
    meanings = " ".join(f"{metric_title(metric)} is {_meaning(metric, level)}." for metric in dict.fromkeys(main))
    lead = LEAD.format(meanings=meanings, trainings=trainings(cells))
    return Section("summary", "Models side by side", lead, blocks)


def trainings(summary: pd.DataFrame) -> str:
    """How many trainings the means of a summary are over: a model on some data may have fewer than the study seeds."""
    count = span(summary["seeds"])
    return f"{count} training" + ("" if count == "1" else "s")


def _meaning(metric: str, case: str) -> str:
    meaning = MEANINGS.get(metric, "better when lower" if lower_is_better(metric) else "better when higher")
    return meaning.format(case=case, a_case=f"a {case}" if case == "patient" else f"an {case}")


def _of_largest_fraction(found: StudyResults) -> pd.DataFrame:
    summary = found.summary
    return summary[(summary["fraction"] == max(found.study.fractions)) & (summary["set"] != "val")]


def _main_table(found: StudyResults, test: pd.DataFrame, metric: str) -> Table:
    rows = test[test["metric"] == metric].sort_values("mean", ascending=lower_is_better(metric))
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
        "model", metric_title(metric), *(["trainings"] if counted else []), "95% CI, patients", "95% CI, trainings",
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
    return Table(
        ["model", *map(metric_title, metrics)], rows, "Further metrics on the test set, means over trainings."
    )


def _forest(rows: pd.DataFrame, found: StudyResults, data: str, metric: str, figures: Path) -> Chart:
    """Points with their intervals over patients, a panel for each evaluated set."""
    sets = list(dict.fromkeys(rows["set"]))
    test = rows[rows["set"] == "test"].sort_values("mean", ascending=lower_is_better(metric))
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
            axes.set(title="Test set" if evaluated == "test" else short(evaluated), xlabel=metric_title(metric))
            axes.set_yticks([-place for place in range(len(keys))], [short(label_of(found, *key)) for key in keys])
            axes.margins(y=0.5 / max(1, len(keys)))
    said = [f"{label_of(found, *key)} {number(value)}" for key, value in zip(keys, test["mean"], strict=True)]
    caption = (
        f"{metric_title(metric)} with 95% intervals over patients; the reference is a diamond"
        + (", and colours tell the methods" if len(methods) > 1 else "")
        + "."
    )
    alt = f"{data}, {metric_title(metric)} on the test set: {_listed(said)}"
    return Chart(figures / f"{name}.svg", caption, alt, wide=True)


def _listed(words: Sequence[str]) -> str:
    return "; ".join(words)


def label_efficiency(found: StudyResults, figures: Path) -> Section | None:
    """The main metric against the share of the training labels."""
    study = found.study
    if len(study.fractions) < 2:
        return None
    summary = found.summary
    blocks = []
    for data in study.data:
        metric = found.metrics(data.name)[0]
        rows = summary[(summary["data"] == data.name) & (summary["set"] == "test") & (summary["metric"] == metric)]
        if rows.empty:
            continue
        name = file_name("labels", data.name)
        panels = [method.label for method in study.methods if method.label in set(rows["method"])]
        with chart(figures, name, min(PAGE, 2.6 * len(panels) + 1.4), 2.7) as figure:
            for axes, method in zip(
                figure.subplots(1, len(panels), sharey=True, squeeze=False)[0], panels, strict=True
            ):
                of_method = rows[rows["method"] == method]
                for place, model in enumerate(study.models[: len(COLOURS)]):
                    line = of_method[of_method["model"] == model.label].sort_values("fraction")
                    if line.empty:
                        continue
                    x = 100 * line["fraction"].to_numpy()
                    axes.plot(x, line["mean"], "o-", color=COLOURS[place], markersize=3, label=short(model.label))
                    axes.fill_between(
                        x, line["seeds_low"].astype(float), line["seeds_high"].astype(float), color=COLOURS[place],
                        alpha=0.15, linewidth=0,
                    )  # fmt: skip
                axes.set(title=method, xlabel="Training labels (%)")
            figure.axes[0].set_ylabel(metric_title(metric))
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        means = rows.pivot_table(index=["model", "method"], columns="fraction", values="mean", sort=False)
        columns = ["model", *(share(fraction) for fraction in means.columns)]
        table = Table(
            columns, [[label_of(found, *key), *map(number, row)] for key, row in means.iterrows()],
            f"{metric_title(metric)} on the test set by share of the training labels, means over trainings.",
        )  # fmt: skip
        heading = metric_title(metric)
        alt = f"{data.name}: {heading} against the share of training labels; the table below has the numbers"
        caption = "Mean over trainings; the band is the 95% interval over them. Smaller shares lie within larger ones."
        blocks.append(Block(data.name, [Chart(figures / f"{name}.svg", caption, alt)], [table]))
    lead = (
        "How many labelled images a model needs. A curve that is high on the left learns from few patients, "
        "which is what "
        "counts where labels are dear."
    )
    return Section("labels", "Label efficiency", lead, blocks) if blocks else None


def adaptation(found: StudyResults, figures: Path) -> Section | None:
    """Validation against epochs and time."""
    curves = found.curves[found.curves["fraction"] == max(found.study.fractions)]
    blocks = []
    for data in found.study.data:
        here = curves[curves["data"] == data.name]
        if here.empty:
            continue
        keys = list(dict.fromkeys(zip(here["model"], here["method"], strict=True)))[: len(COLOURS)]
        name = file_name("adaptation", data.name)
        with chart(figures, name, PAGE, 2.7) as figure:
            for axes, column, title in zip(
                figure.subplots(1, 2, sharey=True),
                ("epoch", "seconds"),
                ("Epoch", "Time of training (s)"),
                strict=True,
            ):
                for place, key in enumerate(keys):
                    runs = here[(here["model"] == key[0]) & (here["method"] == key[1])]
                    for number_of_run, (_, run) in enumerate(runs.groupby("job", sort=False)):
                        label = short(label_of(found, *key)) if not number_of_run else "_"
                        axes.plot(run[column], run["value"], color=COLOURS[place], linewidth=0.9, label=label)
                axes.set_xlabel(title)
                axes.xaxis.get_major_locator().set_params(integer=True)
            figure.axes[0].set_ylabel("Validation AUROC")
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        alt = f"{data.name}: validation AUROC against epochs and time of every training"
        charts = [Chart(figures / f"{name}.svg", "Every training is a line.", alt, wide=True)]
        blocks.append(Block(data.name, charts, [_time_table(found, data.name)]))
    lead = "How soon a model is trained: epochs and time until validation first reaches 95% of its best value."
    return Section("adaptation", "Adaptation efficiency", lead, blocks) if blocks else None


def _time_table(found: StudyResults, data: str) -> Table:
    jobs = [job for job in found.finished if job.data == data and job.efficiency]
    table = pd.DataFrame(
        [{"key": (job.model, job.method, job.fraction), **job.efficiency} for job in jobs]
    ).groupby("key", sort=False)  # fmt: skip
    rows = [
        [label_of(found, *key[:2]), share(key[2]), number(group["epochs_to_95"].mean(), 1),
         duration(group["seconds_to_95"].astype(float).mean()), number(group["final"].mean())]
        for key, group in table
    ]  # fmt: skip
    columns = ["model", "labels", "epochs to 95%", "time to 95%", "best validation AUROC"]
    return Table(columns, rows, "Means over trainings.", text=2)


def external(found: StudyResults, figures: Path) -> Section | None:
    """Internal and external sets beside each other, as a matrix of colours."""
    study = found.study
    summary = found.summary
    blocks = []
    for data in study.data:
        metric = found.metrics(data.name)[0]
        sets = ["test", *(one.name for one in data.external)]
        systems = systems_of(found, data.name)
        if len(sets) < 2 or not systems:
            continue
        rows = summary[
            (summary["data"] == data.name) & (summary["metric"] == metric)
            & (summary["fraction"] == max(study.fractions))
        ].set_index(["model", "method", "set"])["mean"]  # fmt: skip
        shown = drawn(found, systems)
        values = np.array([[rows.get((one.model, one.method, name), np.nan) for name in sets] for one in shown])
        name = file_name("external", data.name)
        with chart(figures, name, min(PAGE, 2.4 + 1.1 * len(sets)), 0.9 + 0.3 * len(shown)) as figure:
            axes = figure.add_subplot()
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
        said = "; ".join(
            f"{one.label} {', '.join(map(number, line))}" for one, line in zip(shown, values, strict=True)
        )
        caption = f"{metric_title(metric)}: the data set's own test patients, then sets from elsewhere."
        alt = f"{data.name}, {', '.join(sets)}: {said}"
        blocks.append(Block(data.name, [Chart(figures / f"{name}.svg", caption, alt)]))
    lead = (
        "Whether a model holds up on other clinics' patients and cameras: it was trained and tuned on one set, and is "
        "tested here, unchanged, on others."
    )
    return Section("external", "External evaluation", lead, blocks) if blocks else None
