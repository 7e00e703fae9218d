"""The figures of performance that a card states, whatever way they are written, and whether results hold them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .card_prose import Passage, passages_of
from .figure_words import (
    BEFORE_VALUE,
    BODY,
    CLAIM,
    COUNTED,
    INTERVAL,
    MACHINE,
    METRIC,
    MONTH,
    NAME,
    PERSON,
    PLACE,
    SETTING,
    SETTINGS,
    VERSION,
)

RESULT_SECTIONS = ("Evaluation", "Calibration")
NUMBER = re.compile(
    r"(?P<chain>\d+(?:\.\d+){2,})"  # a date or a version
    r"|(?P<sign>(?<![\w.)%\]])[-−])?"
    r"(?P<digits>0,\d+|\d{1,3}(?:,\d{3})+(?:[.·]\d+)?|\d+[.·]\d+|\d+,\d{1,2}(?=\s?%)|(?<![\w)\]])[.·]\d+|\d+)"
    r"(?P<power>[eE][-+−]?\d{1,2}(?!\w))?(?P<percent>\s?%|\sper ?cent\b)?"
)
NUMERIC_CELL = re.compile(r"[-−~<>≥≤±\d.,·%()\[\];–\s]*(?:\bto\b[-−\d.,·%()\s]*)?")


@dataclass(frozen=True)
class Figure:
    """A stated number.

    Attributes:
        text: as it is written.
        value: a percentage as its share of 1.
        tolerance: half a unit of its last digit.
        passage: the sentence or row that states it.
    """

    text: str
    value: float
    tolerance: float
    passage: Passage

    @property
    def is_whole(self) -> bool:
        return self.tolerance >= 0.5

    def is_known(self, figures: set[float], counts: set[float] | frozenset[float] = frozenset()) -> bool:
        """Whether it is a result as it is rounded here; a whole number has to be one exactly, or a count."""
        if self.is_whole:
            return self.value in figures or self.value in counts
        return any(abs(value - self.value) <= self.tolerance * (1 + 1e-9) + 1e-12 for value in figures)


def figures_of(
    text: str,
    labels: Sequence[str] = (),
    groups: Sequence[tuple[str, str]] = (),
    settings: Mapping[str, set[float]] | None = None,
) -> Iterator[Figure]:
    """Decimals and percentages of the prose; whole numbers that are the value of a metric or fill a cell of results.

    Versions, numbers of sections, months, ages, times, sizes and settings are none.

    Args:
        labels, groups: as `card_prose.passages_of`.
        settings: known values by the key in `config.json` or `run.json`; another value of theirs is a figure.
    """
    for passage in passages_of(text, labels, groups):
        speaks = METRIC.search(passage.text) is not None
        if passage.section == "Citation" and not speaks:
            continue  # volumes and pages
        claims = speaks or CLAIM.search(passage.text) is not None
        measured = speaks or "error" in passage.text.lower()
        rest = _without_excused(passage.text, measured, settings or {})
        for found in NUMBER.finditer(rest):
            if found["chain"]:
                continue
            figure = _figure(found, passage)
            if figure.is_whole:
                stated = _is_value(rest, found) or (
                    passage.section in RESULT_SECTIONS and _fills_cell(passage, rest, found)
                )
            else:
                stated = found["percent"] or claims or not PERSON.search(passage.text)
            if stated:
                yield figure


def read_figure(text: str) -> Figure | None:
    """A number on its own, or None."""
    found = NUMBER.fullmatch(text.strip())
    return None if found is None or found["chain"] else _figure(found, Passage("", ""))


def _without_excused(text: str, measured: bool, settings: Mapping[str, set[float]]) -> str:
    def setting(found: re.Match[str]) -> str:
        key = SETTINGS[found["name"].lower()]
        number, values = read_figure(found["value"]), settings.get(key or "")
        if key is None or (values is None and key != "calibration_temperature"):
            return " "
        known = number is not None and number.is_known(values or set())
        return " " if known else found[0]

    for pattern in (INTERVAL, VERSION, PLACE, MACHINE, *(() if measured else (BODY, MONTH))):
        text = pattern.sub(" ", text)
    text = NAME.sub(lambda found: found[0] if METRIC.search(found[0]) else " ", text)
    return SETTING.sub(setting, text)


def _figure(found: re.Match[str], passage: Passage) -> Figure:
    digits = found["digits"].replace("·", ".")
    comma = re.fullmatch(r"0,\d+|\d+,\d{1,2}", digits)
    digits = digits.replace(",", "." if comma else "")
    power = int((found["power"] or "e0")[1:].replace("−", "-")) - (2 if found["percent"] else 0)
    decimals = len(digits.partition(".")[2])
    value = float(f"{digits}e{power}") * (-1 if found["sign"] else 1)
    return Figure(found[0].strip(), value, 0.5 * 10.0 ** (power - decimals), passage)


def _is_value(text: str, found: re.Match[str]) -> bool:
    """Whether a whole number is the value of the metric before it."""
    start, end = found.span()
    inside = text[start - 1 : start].isalpha() or re.match(r"[\w/]|-[A-Za-z]", text[end:])
    return not inside and bool(BEFORE_VALUE.search(text[:start])) and not COUNTED.match(text[end:])


def _fills_cell(passage: Passage, text: str, found: re.Match[str]) -> bool:
    if not passage.is_row:
        return False
    cell = text[text.rfind("|", 0, found.start()) + 1 : (text + "|").find("|", found.end())]
    return NUMERIC_CELL.fullmatch(cell) is not None
