"""Check of a model card before publishing: complete, valid for the Hub, its numbers those of the results."""

import csv
import html
import json
import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..errors import RetFoundError
from ..evaluation.subgroups import FEWEST
from ..models.cards import INTERVAL as CI_SUFFIX
from ..models.cards import title
from .contents import CITED, SUBGROUPS, Contents, check_no_small_groups, read_groups, read_json

METRIC = re.compile(
    r"(?<![A-Za-z])(?:AU-?(?:RO)?C|AU-?PRC?|ROC(?:[- ]AUC)?|accurac(?:y|ie)|sensitivit(?:y|ie)|specificit(?:y|ie)|"
    r"precision|recall|F1|PPV|NPV|Brier|ECE|calibration error|kappa|MCC|Dice|Jaccard|IoU|MAE|RMSE|MSE|absolute error|"
    r"squared error|R2|correlation|C-index|concordance|hazard ratio|odds ratio|log loss|likelihood ratio)s?(?![a-z])",
    re.I,
)
CLAIM = re.compile(
    r"\b(?:reach|achiev|attain|scor|perform|outperform|discriminat|predict|detect|classif|identif|error)", re.I
)
# A whole number right behind a metric is its value: "AUROC of 91", not "AUROC over 5 seeds" or "recall 3 years later".
BEFORE_VALUE = re.compile(
    rf"{METRIC.pattern}(?:[- ]?score)?"
    r"(?:[\s:=|(~≈<>≥≤.-]|\b(?:of|is|was|are|were|reached|reaches|above|about|around)\b)*$",
    re.I,
)
COUNTED = re.compile(
    r"[ -]?(?:years?|months?|weeks?|days?|images?|eyes?|patients?|photographs?|scans?|seeds?|folds?|runs?|classes|"
    r"resamples?|bits?|epochs?|steps?|grades?|graders?|sites?|centres?|centers?|hospitals?)\b"
)
INTERVAL = re.compile(r"\b95 ?%[- ](?:[a-z]+ )?(?:intervals?|CIs?|confidence)\b|\b95%CI\b", re.I)

_SOFTWARE = (
    r"transformers|retfound[_-]hf|py ?torch|torch|torchvision|timm|peft|python|cuda|cudnn|rocm|triton|numpy|scipy|"
    r"pandas|scikit-learn|sklearn|opencv|pillow|datasets(?=\s+[1-9])|accelerate|safetensors|huggingface[_-]hub|onnx(?:runtime)?|tensorflow|"
    r"keras|jax|ubuntu|debian|linux|macos|versions?|releases?|apache|gpl|lgpl|agpl|mit|cc0|licen[cs]e|"
    r"CC[- ]BY(?:-(?:NC|SA|ND))*|BY(?:-(?:NC|SA|ND))+"
)
_VERSION = r"(?:[<>=~!^]=?\s*)?v?\d+(?:\.\d+)*"
VERSION = re.compile(
    rf"(?<!\w)(?:{_SOFTWARE})(?:-|\s*\(?\s*(?:such as )?){_VERSION}"
    r"(?:(?:,| and| or| to|,? ?-|–|/)\s*(?:[<>=~!^]=?\s*)?[1-9]\d*(?:\.\d+)+(?![\d.]*\s?%|\d))*"
    r"|\bv\d+(?:\.\d+)+(?!\d)",
    re.I,
)
PLACE = re.compile(
    r"(?:^#+\s*|§+ ?|\b(?:sections?|tables?|figures?|figs?\.?|chapters?|appendix|appendices|equations?|eqs?\.?|no\.|"
    r"steps?)\s*)[1-9]\d*(?:\.\d+)+(?![\w%])",
    re.I,
)
MONTH = re.compile(r"(?<![\d.])(?:0?[1-9]|1[0-2])\.(?:19|20)\d\d(?!\d)")
NAME = re.compile(r"(?<!\w)[A-Za-z]\w*-[1-9]\d*\.\d+(?!\d|\s?%)")  # such as GPT-3.5

_RANGE = r"\d+(?:\.\d+)?(?:\s*(?:to|±|\+/-|-|–)\s*\d+(?:\.\d+)?)*"
# Performance is measured in none of these, ...
MACHINE = re.compile(
    rf"(?<![\w.]){_RANGE}[ -]?(?:(?:[A-Z]PU[ -])?hours?|h|min(?:utes)?|minute|seconds?|s|ms|[kKMGT]i?B|[kMG]Hz|k?Wh?|"
    r"kg|g|tonnes?|million|billion|[MB](?= param| weight)|[GT]FLOPs?|USD|EUR)(?!\w)"
)
# ... and in these only where a sentence speaks of performance, such as the error of a predicted age.
BODY = re.compile(
    rf"(?<![\w.]){_RANGE}[ -]?(?:years?|yrs?|months?|weeks?|days?|[mcµμn]m|um|microns?|degrees?|°|diopt(?:re|er)s?|D|"
    r"mmHg|letters|pixels?|px|mm2|mmol/L|mg/dL)(?!\w)"
)
PERSON = re.compile(r"\b(?:ages?|aged|sex)\b", re.I)
CHOSEN = re.compile(r"\b(?:target|threshold|operating point)", re.I)
# Names of settings, with the key of `config.json` or `run.json` that holds the value where one does.
SETTINGS: dict[str, str | None] = {
    "mask ratio": "mask_ratio", "temperature": "calibration_temperature", "weight decay": "weight_decay",
    "learning rate": None, "dropout": None, "drop path": None, "layer decay": None, "label smoothing": None,
    "momentum": None, "clip limit": None, "gamma": None,
}  # fmt: skip
SETTING = re.compile(
    rf"\b(?P<name>{'|'.join(SETTINGS)})(?: rate)?(?: of| is| was|:| =)? "
    r"(?P<value>\d[\d.,]*\d(?:e[-+]?\d+)?|\d+e[-+]?\d+)(?![\d%])",
    re.I,
)


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
    for heading, body in zip(["", *parts[1::2]], parts[::2], strict=True):
        yield Passage(heading, f"# {heading}")
        for block in re.split(r"\n\s*\n|\n(?=\s*(?:[|#>]|[-+*] |\d+[.)] ))|(?<=\|)\n", body):
            block = " ".join(block.split())
            for sentence in [block] if block.startswith("|") else re.split(r"(?<=[.!?;])\s+", block):
                yield Passage(heading, sentence)


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


METRICS = "metrics.json"
TABLES = ("intervals.csv", SUBGROUPS, "calibration.csv", "operating_points.csv")
RESULT_FILES = (METRICS, *TABLES, CITED)
# Names, and the share of resamples without a value, are no results.
PASSED_OVER = {"column", "group", "metric", "class", "criterion", "method", "undefined"}
COUNTS = {"n", "rows", "positives", "negatives"}


@dataclass(frozen=True)
class Results:
    """What the files of a folder tell.

    Attributes:
        figures: values of metrics, their intervals and the like.
        counts: of images, patients and cases.
        targets: what thresholds were chosen for.
        groups: (column, group) of subgroups.
    """

    figures: set[float]
    counts: set[float]
    targets: set[float]
    groups: tuple[tuple[str, str], ...]


def read_results(folder: Path) -> Results:
    """What is known of a folder: its metrics and tables, those of its validation split, and what it cites.

    Raises:
        RetFoundError: a file that cannot be read, or a cited value without a source.
    """
    results = Results(set(_cited(folder / CITED)), set(), set(), ())
    groups: list[tuple[str, str]] = []
    for place in (folder, folder / "validation"):
        if (place / METRICS).is_file():
            for number in numbers_in(read_json(place / METRICS)):
                (results.counts if isinstance(number, int) else results.figures).add(float(number))
        for row in (row for name in TABLES for row in _rows(place / name)):
            for column, cell in row.items():
                if column not in PASSED_OVER and is_number(cell):
                    kind = results.counts if column in COUNTS else results.figures
                    (results.targets if column == "target" else kind).add(float(cell))
            if "group" in row:
                groups.append((row["column"], row["group"]))
    return Results(results.figures, results.counts, results.targets, tuple(dict.fromkeys(groups)))


def settings_of(folder: Path, keys: set[str]) -> dict[str, set[float]]:
    """The values of single settings, by key, in `config.json` and in the arguments of `run.json`, where they tell."""
    found: dict[str, set[float]] = {}
    for name in ("config.json", "run.json"):
        path = folder / name
        told = read_json(path) if path.is_file() else {}
        for key, value in _entries(told.get("arguments", {}) if name == "run.json" else told):
            if key in keys and isinstance(value, (int, float)) and not isinstance(value, bool):
                found.setdefault(key, set()).add(float(value))
    return found


def numbers_in(value: Any) -> Iterator[float]:
    """All numbers of a JSON value; whole ones come as `int`."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from numbers_in(item)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value


def is_number(cell: str | None) -> bool:
    """Whether a cell of a CSV table is a number."""
    return re.fullmatch(r"-?\d+(\.\d+)?(e[-+]?\d+)?", cell or "") is not None


def _entries(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _entries(item)


def _rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        return []
    if path.name == SUBGROUPS:  # what is not published proves nothing
        return [row for row in read_groups(path) if float(row["n"]) >= FEWEST]
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _cited(path: Path) -> Iterator[float]:
    for number, row in enumerate(_rows(path), 1):
        value = (row.get("value") or "").strip()
        share = value.endswith("%")
        if not is_number(value.rstrip("% ")) or not (row.get("source") or "").strip():
            raise RetFoundError(
                f"row {number} of {path} is {json.dumps(row)}; it needs the columns value (a number) and source "
                "(where it is from)"
            )
        yield float(value.rstrip("% ")) / (100 if share else 1)


PLACEHOLDERS = ("{{", "}}", "{%", "TODO", "TBD", "FIXME", "[More Information Needed]", "[optional]", "lorem ipsum")
SECTIONS = ("Use", "Intended use", "Training data", "Preprocessing", "Limits", "Citation")
METADATA = ("license", "library_name", "pipeline_tag", "tags")


def read_card(folder: Path) -> tuple[dict[str, Any], str]:
    """Metadata and text of a card, as the Hub's own library reads them.

    Raises:
        RetFoundError: metadata that are no valid YAML or no valid results.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8"))
    except (ValueError, TypeError, KeyError, yaml.YAMLError) as error:
        raise RetFoundError(f"the metadata of {path} are not valid for the Hub: {_first(error)}") from error
    return card.data.to_dict(), card.text


def check_card(contents: Contents, metadata: dict[str, Any], text: str) -> None:
    """Raise RetFoundError for the first thing that keeps a card from being published, naming it."""
    path = contents.folder / "README.md"
    for word in PLACEHOLDERS:
        if word.lower() in text.lower() or word in str(metadata):
            raise RetFoundError(f"{path} has a placeholder left: {_line_with(word, text, metadata)!r}; fill it in")
    for name in METADATA:
        if not metadata.get(name):
            raise RetFoundError(f"the metadata of {path} have no {name}; add it")
    sections = sections_of(text)
    for name in SECTIONS + (RESULT_SECTIONS if contents.is_classifier else ()):
        if not sections.get(name, "").strip():
            raise RetFoundError(f"{path} has no section `## {name}`, or an empty one; write it")
    check_no_small_groups(contents.folder, text)
    _check_figures(contents, text)
    _check_index(contents.folder, metadata)


def _check_figures(contents: Contents, text: str) -> None:
    path, results = contents.folder / "README.md", read_results(contents.folder)
    labels = [str(label) for label in (contents.config.get("id2label") or {}).values()]
    settings = settings_of(contents.folder, {key for key in SETTINGS.values() if key})
    for figure in figures_of(text, labels, results.groups, settings):
        known, passage = results.figures, figure.passage
        if CHOSEN.search(passage.text):
            known = known | results.targets
        if passage.section == "Preprocessing" and not METRIC.search(passage.text):
            known = known | _constants(contents.folder)
        if not figure.is_known(known, results.counts):
            where = f"the section `## {passage.section}`" if passage.section else "the top"
            raise RetFoundError(
                f"{where} of {path} says {figure.text}, which is in none of the results ({', '.join(RESULT_FILES)}): "
                f"{passage.text[:120]!r}; correct it, evaluate again, or leave it out; a figure from elsewhere goes "
                f"into {CITED} beside the card, with the columns value and source"
            )


def _constants(folder: Path) -> set[float]:
    path = folder / "preprocessor_config.json"
    own = numbers_in(read_json(path)) if path.is_file() else ()
    return {float(number) for number in (*IMAGENET_DEFAULT_MEAN, *IMAGENET_DEFAULT_STD, *own)}


def _check_index(folder: Path, metadata: dict[str, Any]) -> None:
    """Raise unless each value of the model-index is that of the metric of its own name, as it is rounded there."""
    for model in metadata.get("model-index") or []:
        for result in model["results"]:
            split = str((result.get("dataset") or {}).get("split") or "test")
            path = folder / ("validation" if split in ("val", "validation") else "") / METRICS
            metrics = read_json(path) if path.is_file() else {}
            for metric in result["metrics"]:
                kind, value = str(metric["type"]), str(metric["value"])
                named = f"the model-index of {folder / 'README.md'} says {kind} {value}"
                own, figure = metrics.get(kind), read_figure(value)
                if not isinstance(own, (int, float)) or figure is None:
                    known = ", ".join(name for name in metrics if "/" not in name and not name.endswith(CI_SUFFIX))
                    raise RetFoundError(
                        f"{named}, and {path} has no such number; accepted: numbers of {known or 'none'}"
                    )
                # A digit or two would fit many values.
                if float(own) != figure.value and (figure.tolerance > 0.001 or not figure.is_known({float(own)})):
                    raise RetFoundError(f"{named}, which is {own} in {path}; correct it, or leave it out")
                shown = str(metric.get("name") or kind).casefold()
                others = {name for name in metrics if name != kind and shown in (name, title(name).casefold())}
                if others and shown != title(kind).casefold():
                    raise RetFoundError(
                        f"{named} under the name of {others.pop()}; name it {title(kind)}, or not at all"
                    )


def _line_with(word: str, text: str, metadata: dict[str, Any]) -> str:
    for line in [*text.splitlines(), *(f"{name}: {value}" for name, value in metadata.items())]:
        if word.lower() in line.lower():
            return line.strip()
    return word


def _first(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
