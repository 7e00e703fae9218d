"""What a reader of a card sees as prose: sections, sentences and rows, without code, addresses and marks."""

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from .figure_words import CLAIM, METRIC

FENCED = re.compile(r"^ {0,3}(`{3,}|~{3,})[^\n`]*\n.*?(?:^ {0,3}\1[`~]*[ \t]*$|\Z)|<!--.*?-->", re.S | re.M)
SPAN = re.compile(r"(`+)(.+?)\1", re.S)
HIDDEN = re.compile("[\u00ad\u200b-\u200f\u2060\ufeff\\\\]")  # what does not show, and the backslash of Markdown
# The target of a link, an address, a DOI, a paper on arXiv.
ADDRESS = re.compile(
    r"(?<=\])\([^)\s]*\)|(?:https?://|www\.|doi:\s?)[^\s)>\]]+|\b10\.\d{4,9}/[^\s)>\]]+|\barXiv:\S+", re.I
)
MARKS = re.compile(r"</?[a-zA-Z][^<>]*>|\*+|~~|(?<!\w)_+|_+(?!\w)")
NUMBER_FIRST = re.compile(r"[-+~<>=≈±]*\s*[.·]?\d")
NUMBER_ALONE = re.compile(r"-?[\d.,]+")
TITLE = re.compile(r"^# (?:[^\s:]+|[^\n:]+(?=: RETFound))(?=:)", re.M)


@dataclass(frozen=True)
class Passage:
    """A sentence or a row of a table, as plain text.

    Attributes:
        section: the title of the second level that it stands under; empty above the first.
    """

    section: str
    text: str

    @property
    def is_row(self) -> bool:
        return self.text.startswith("|")


def sections_of(text: str) -> dict[str, str]:
    """Titles of the second level and the text below each."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def passages_of(text: str, labels: Sequence[str] = (), groups: Sequence[tuple[str, str]] = ()) -> Iterator[Passage]:
    """The passages of a card, without names that may hold numbers: those of its classes and groups, and in code.

    Args:
        labels: names of classes. One that is a number itself, such as a grade, is left out only where it can be no
            figure: in the list of all, in marks of code, and where it opens a row of a table.
        groups: (column, group) of subgroups, which open rows together.
    """
    # The name of a folder may hold a version; one that holds a metric is read as what it claims.
    text = TITLE.sub(
        lambda found: found[0] if CLAIM.search(found[0]) or METRIC.search(found[0]) else "#", FENCED.sub("\n\n", text)
    )
    text = SPAN.sub(lambda found: " " if found[2].strip() in labels else _span(found[2]), text)
    text = HIDDEN.sub("", _plain(html.unescape(text)))
    text = _without_names(
        ADDRESS.sub(" ", text), [_plain(label) for label in labels], [(_plain(a), _plain(b)) for a, b in groups]
    )
    parts = re.split(r"^## +(.+?) *$", MARKS.sub("", text), flags=re.M)
    for title, body in zip(["", *parts[1::2]], parts[::2], strict=True):
        yield Passage(title, f"# {title}")
        for block in re.split(r"\n\s*\n|\n(?=\s*(?:[|#>]|[-+*] |\d+[.)] ))|(?<=\|)\n", body):
            block = " ".join(block.split())
            for sentence in [block] if block.startswith("|") else re.split(r"(?<=[.!?;])\s+", block):
                yield Passage(title, sentence)


def _plain(text: str) -> str:
    """Digits and signs of other scripts and widths as plain ones."""
    return unicodedata.normalize("NFKC", text)


def _span(code: str) -> str:
    """Code in a line is a name or a command, unless it is a number or speaks of a metric."""
    code = code.strip()
    return code if METRIC.search(code) or NUMBER_FIRST.match(code) else " "


def _without_names(text: str, labels: Sequence[str], groups: Sequence[tuple[str, str]]) -> str:
    for column, group in groups:
        opening = re.escape(f"| {column.replace('|', '/')} | {group.replace('|', '/')} ")
        text = re.sub(rf"^{opening}(?=\|)", "| ", text, flags=re.M)
    for joined in (", ".join(labels), " | ".join(label.replace("|", "/") for label in labels)):
        if len(labels) > 1:
            text = re.sub(rf"(?<=[:|] ){re.escape(joined)}(?=\.$| \|$)", " ", text, flags=re.M)
    names = [*labels, *(group for _, group in groups if not NUMBER_ALONE.fullmatch(group))]
    for label in sorted({name for name in names if re.search(r"\d", name)}, key=len, reverse=True):
        name = re.escape(label)
        alone = rf"^\| {name} (?=\|)" if NUMBER_ALONE.fullmatch(label) else rf"(?<![\w.]){name}(?!\w|\.\d)"
        text = re.sub(alone, lambda found: "| " if found[0].startswith("|") else " ", text, flags=re.M)
    return text
