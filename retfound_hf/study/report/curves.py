"""What labels and time buy: label efficiency, adaptation, and what is left of it elsewhere."""

from pathlib import Path

import numpy as np
import pandas as pd

from ...evaluation.figure_style import COLOURS, GREY, PAGE, short
from ..folder import StudyResults
from .numbers import duration, metric_name, number, share
from .parts import Block, Chart, Section, Table, chart, file_name
from .systems import drawn, label_of, systems_of


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
            figure.axes[0].set_ylabel(metric_name(metric))
            handles, labels = figure.axes[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside lower center", ncols=2)
        means = rows.pivot_table(index=["model", "method"], columns="fraction", values="mean", sort=False)
        columns = ["model", *(share(fraction) for fraction in means.columns)]
        table = Table(
            columns, [[label_of(found, *key), *map(number, row)] for key, row in means.iterrows()],
            f"{metric_name(metric)} on the test set by share of the training labels, means over trainings.",
        )  # fmt: skip
        alt = (
            f"{data.name}: {metric_name(metric)} against the share of training labels; the table below has the numbers"
        )
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
        caption = f"{metric_name(metric)}: the data set's own test patients, then sets from elsewhere."
        alt = f"{data.name}, {', '.join(sets)}: {said}"
        blocks.append(Block(data.name, [Chart(figures / f"{name}.svg", caption, alt)]))
    lead = (
        "Whether a model holds up on other clinics' patients and cameras: it was trained and tuned on one set, and is "
        "tested here, unchanged, on others."
    )
    return Section("external", "External evaluation", lead, blocks) if blocks else None
