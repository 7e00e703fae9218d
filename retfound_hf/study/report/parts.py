"""What a report is made of: sections of tables, figures, pictures and text, without any markup."""

import base64
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ...evaluation.figure_style import figure
from ...runs.files import whole_file


@dataclass(frozen=True)
class Table:
    """Cells as text; the first `text` columns are words, all others numbers.

    Attributes:
        emphasis: rows to be set apart, such as the reference's.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    caption: str = ""
    text: int = 1
    emphasis: frozenset[int] = frozenset()


def _address(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


@dataclass(frozen=True)
class Chart:
    """A figure: `svg` is its path, `alt` says what it shows to those who cannot see it.

    Attributes:
        wide: too wide to be read when shrunk to a phone, which scrolls it instead.
    """

    svg: Path
    caption: str
    alt: str
    wide: bool = False

    @property
    def source(self) -> str:
        """As an address that needs no other file."""
        return _address("svg+xml", self.svg.read_bytes())


@dataclass(frozen=True)
class Thumbnail:
    """A small picture (JPEG) and what is said below it."""

    jpeg: bytes
    lines: Sequence[str]

    @property
    def source(self) -> str:
        return _address("jpeg", self.jpeg)


@dataclass(frozen=True)
class Gallery:
    """Pictures in a row under a title."""

    title: str
    pictures: Sequence[Thumbnail]


@dataclass(frozen=True)
class Block:
    """A part of a section, mostly of one data set."""

    title: str = ""
    charts: Sequence[Chart] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[Gallery] = ()
    notes: Sequence[str] = ()
    code: str = ""


@dataclass(frozen=True)
class Section:
    """A chapter of the report.

    Attributes:
        lead: what it tells, in words for readers who are no statisticians.
        rows: numbers that stand nowhere else, for results.csv (`layout.RESULT_COLUMNS`).
    """

    name: str
    title: str
    lead: str
    blocks: Sequence[Block]
    rows: Sequence[dict[str, Any]] = field(default=())


@contextmanager
def chart(folder: Path, name: str, width: float, height: float) -> Iterator[Figure]:
    """A figure, `width` x `height` inches, written as `name.svg` and `name.png` into `folder`."""
    with figure(folder / f"{name}.svg", width, height) as drawn:
        yield drawn
        with whole_file(folder / f"{name}.png") as partial:
            drawn.savefig(partial)


def file_name(*words: str) -> str:
    """Words as the name of a file, without what file systems and shells take ill."""
    text = "-".join(words)
    return "".join(letter if letter.isalnum() else "-" for letter in text.lower()).strip("-")
