"""Does the model serve all alike: the main metric by groups of patients and images."""

from pathlib import Path
from typing import Any

from ...evaluation.bands import column_groups
from ...evaluation.bootstrap import RESAMPLES
from ...evaluation.estimate import Estimate
from ...evaluation.subgroups import Gap, subgroup_metrics
from ..folder import StudyResults
from .measured import result_row
from .numbers import interval, metric_name, number, p_value
from .parts import Block, Section, Table
from .systems import System, drawn, outcomes_of, systems_of


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
