"""The flow of a cohort as boxes, as the CONSORT and STROBE statements ask for."""

import re
import textwrap
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from ...evaluation.figure_style import GREY, PALE, figure
from .flow import Flow, said

LINE = 0.16  # inches
MAIN, SIDE = 2.7, 3.5  # widths in inches
GAP, PADDING, MARGIN = 0.22, 0.08, 0.05


def plot_flow(flow: Flow, path: Path) -> Path:
    """Write the flow chart; the file's suffix decides on PNG or SVG.

    The stages run down the left, the exclusions stand on the right between them, classes and splits below.
    """
    stages = [stage for stage in flow.stages if stage.name == "read" or stage.excluded]
    boxes = [[*_wrapped(stage.text, 40), said(stage.counts)] for stage in stages]
    asides = [
        [line for part in stage.excluded if part.counts["images"] for line in _aside(part.text, part.counts)]
        for stage in stages
    ]
    ends = _ends(flow.as_dict())
    heights = [LINE * len(lines) + 2 * PADDING for lines in boxes]
    rooms = [max(GAP, LINE * len(lines) + 2 * PADDING + GAP if lines else 0) for lines in asides[1:]]
    end_height = LINE * max(len(lines) for lines in ends) + 2 * PADDING
    width, height = MAIN + GAP + SIDE + 2 * MARGIN, sum(heights) + sum(rooms) + GAP + end_height + 2 * MARGIN
    with figure(path, width, height) as drawn:
        drawn.set_layout_engine("none")
        axes = drawn.add_axes((0, 0, 1, 1))
        axes.set(xlim=(0, width), ylim=(0, height))
        axes.axis("off")
        top = height - MARGIN
        for index, lines in enumerate(boxes):
            _box(axes, MARGIN, top, MAIN, heights[index], lines, first_bold=True)
            top -= heights[index]
            if index == len(boxes) - 1:
                break
            _line(axes, (MARGIN + MAIN / 2, top), (MARGIN + MAIN / 2, top - rooms[index]))
            aside = asides[index + 1]
            if aside:
                tall = LINE * len(aside) + 2 * PADDING
                middle = top - rooms[index] / 2
                _line(axes, (MARGIN + MAIN / 2, middle), (MARGIN + MAIN + GAP, middle))
                _box(axes, MARGIN + MAIN + GAP, middle + tall / 2, SIDE, tall, aside)
            top -= rooms[index]
        _draw_ends(axes, ends, top, width, end_height)
    return path


def _draw_ends(axes: Axes, ends: list[list[str]], top: float, width: float, height: float) -> None:
    """The classes and splits side by side under a bar."""
    each = (width - 2 * MARGIN - GAP * (len(ends) - 1)) / len(ends)
    centres = [MARGIN + each / 2 + index * (each + GAP) for index in range(len(ends))]
    bar = top - GAP / 2
    axes.plot([MARGIN + MAIN / 2] * 2, [top, bar], color=GREY, linewidth=0.8)
    axes.plot([centres[0], centres[-1]], [bar, bar], color=GREY, linewidth=0.8)
    for centre, lines in zip(centres, ends, strict=True):
        _line(axes, (centre, bar), (centre, top - GAP))
        _box(axes, centre - each / 2, top - GAP, each, height, lines, first_bold=True)


def _ends(flow: dict[str, Any]) -> list[list[str]]:
    found = []
    for split, counts in flow["splits"].items():
        names = {"train": "Training", "val": "Validation", "test": "Test"}
        lines = [names[split], *_wrapped_counts(counts, 35)]
        for label, part in sorted(counts["labels"].items(), reverse=True):
            lines.append("with the event:" if label == "1" else "without the event:")
            lines += [f"    {line}" for line in _wrapped_counts(part | {"eyes": None}, 31)]
        found.append(lines)
    return found


def _aside(text: str, counts: dict[str, int | None]) -> list[str]:
    return [*_wrapped(f"Excluded: {text}", 54), f"    {said(counts)}"]


def _wrapped_counts(counts: dict[str, Any], width: int) -> list[str]:
    """Lines that never part a number from its unit."""
    tied = re.sub(r"(\d) ", "\\1\N{NO-BREAK SPACE}", said(counts))
    return _wrapped(tied, width)


def _wrapped(text: str, width: int) -> list[str]:
    return textwrap.wrap(text, width) or [""]


def _box(
    axes: Axes, left: float, top: float, width: float, height: float, lines: list[str], first_bold: bool = False
) -> None:
    from matplotlib.patches import Rectangle

    face = "#eef3f7" if first_bold else "white"
    axes.add_patch(Rectangle((left, top - height), width, height, facecolor=face, edgecolor=PALE, linewidth=0.8))
    for index, line in enumerate(lines):
        weight = "bold" if first_bold and index == 0 else "normal"
        axes.text(left + PADDING, top - PADDING - LINE * (index + 0.5), line, va="center", fontsize=7.5, weight=weight)


def _line(axes: Axes, start: tuple[float, float], end: tuple[float, float]) -> None:
    axes.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": GREY, "linewidth": 0.8, "shrinkA": 0,
                                              "shrinkB": 0, "mutation_scale": 7})  # fmt: skip
