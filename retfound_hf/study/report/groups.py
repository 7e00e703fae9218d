"""Does the model serve all alike: the main metric by groups of patients and images."""

from pathlib import Path

from ...evaluation.bands import column_groups
from ...evaluation.bootstrap import RESAMPLES
from ...evaluation.subgroups import subgroup_metrics
from ..folder import StudyResults
from .measured import result_row
from .numbers import interval, metric_name, number, p_value
from .parts import Block, Section, Table
from .systems import drawn, outcomes_of, systems_of


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
                    difference = gap.comparison.difference
                    rows.append(
                        result_row(
                            system, "test", f"{metric}[{column}: {gap.first} - {gap.second}]", difference, len(images)
                        )
                    )
                    cells.append(
                        [system.label, f"{gap.first} less {gap.second}", "", number(difference.value),
                         interval(difference.low, difference.high), p_value(gap.comparison.p_value)]
                    )  # fmt: skip
            if cells:
                heading = ["model", column, "cases", metric_name(metric), "95% CI", "p of the gap"]
                tables.append(Table(heading, cells, text=2))
        if tables:
            blocks.append(Block(data.name, tables=tables))
    lead = (
        "Whether the model serves all alike. The last line of each model is the gap between the two groups "
        "that differ "
        "most; its p value allows for their having been picked out."
    )
    return Section("subgroups", "Subgroups", lead, blocks, rows) if blocks else None
