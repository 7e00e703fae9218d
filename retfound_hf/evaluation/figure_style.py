"""One look for all figures: the width of a journal's column, 7 pt and more, colours that the colour-blind can tell."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..runs.files import whole_file

COLUMN, PAGE = 3.5, 7.2  # inches: one and two columns of Nature's pages
# Okabe and Ito, "Color Universal Design" (2008), without yellow, which is too pale for lines on white.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GREY, PALE = "#6e6e6e", "#b8c4cf"
STYLE = {
    "font.family": "sans-serif",
    "font.sans-serif": ["Arial", "Helvetica", "DejaVu Sans"],
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.titlesize": 8,
    "legend.fontsize": 7,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "lines.linewidth": 1.2,
    "legend.frameon": False,
    "legend.handlelength": 1.6,
    "legend.borderaxespad": 0.2,
    "figure.constrained_layout.use": True,
    "savefig.dpi": 300,
    "svg.hashsalt": "retfound",
    "text.parse_math": False,  # a dollar sign in a class name is a dollar sign
}


@contextmanager
def figure(path: Path, width: float, height: float) -> Iterator[Figure]:
    """A figure in the common style, `width` x `height` inches, written to `path` when the block ends well.

    Neither pyplot nor the process's backend and settings are touched.
    """
    with rc_context(STYLE):
        drawn = Figure(figsize=(width, height))
        FigureCanvasAgg(drawn)
        yield drawn
        with whole_file(path) as partial:
            # The same figure is the same file.
            drawn.savefig(partial, metadata={"Date": None} if path.suffix == ".svg" else None)


def short(name: str, length: int = 30) -> str:
    """A name that fits its place: the middle of a long one gives way to an ellipsis."""
    if len(name) <= length:
        return name
    head = (length - 1) * 2 // 3
    return f"{name[:head].rstrip()}…{name[len(name) - (length - 1 - head) :].lstrip()}"


def unit_square(axes: Axes, xlabel: str, ylabel: str) -> None:
    """Both axes from 0 to 1, one as long as the other, with room for lines on the border."""
    axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), xlabel=xlabel, ylabel=ylabel, box_aspect=1)
    ticks = (0, 0.2, 0.4, 0.6, 0.8, 1)
    axes.set_xticks(ticks)
    axes.set_yticks(ticks)


def note(axes: Axes, text: str) -> None:
    """Say in the middle of the axes why nothing is drawn there."""
    box = {"facecolor": "white", "edgecolor": "none"}
    axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=GREY, bbox=box)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Names joined by commas, the many as a number."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(short(name, 20) for name in names[:most]) + more
