"""Pages of reports: sections, tables, pictures, who was studied, the TRIPOD+AI checklist, as one HTML file."""

import base64
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..vocabulary import PROBLEM_TYPES, REGRESSION, SINGLE_LABEL
from .bootstrap import Estimate, patient_numbers
from .metrics import metric_title
from .predictions import Predictions
from .thresholds import class_counts, finding_of

TEMPLATES = Path(__file__).parent / "templates"


def is_missing(value: Any) -> bool:
    """Whether a cell of a table holds no number."""
    return value is None or (isinstance(value, float) and math.isnan(value))


def number(value: Any, digits: int = 3) -> str:
    """Such as `0.912`; an en dash where there is none."""
    return "–" if is_missing(value) else f"{value:.{digits}f}".replace("-", "−")


def interval(low: Any, high: Any) -> str:
    """Such as `0.884 to 0.935`."""
    return "–" if is_missing(low) and is_missing(high) else f"{number(low)} to {number(high)}"


def with_interval(value: Any, low: Any, high: Any) -> str:
    """Such as `0.912`, with its interval, where there is one, on the next line: four of them stand side by side."""
    return number(value) + ("" if is_missing(low) and is_missing(high) else f"\n({interval(low, high)})")


def estimated(estimate: Estimate) -> str:
    """An estimate as `with_interval` writes it."""
    return with_interval(estimate.value, estimate.low, estimate.high)


def p_value(value: Any) -> str:
    """Such as `0.031`, or `<0.001`."""
    return "<0.001" if not is_missing(value) and value < 0.001 else number(value)


def percent(value: float) -> str:
    """Such as `30%`."""
    return f"{100 * value:g}%"


def counted(count: int | str, noun: str) -> str:
    """Such as `1 seed` or `1 to 5 seeds`."""
    return f"{count} {noun}" + ("" if str(count) == "1" else "s")


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


@dataclass(frozen=True)
class Picture:
    """Figure or thumbnail as an address that needs no other file.

    Attributes:
        content: SVG, PNG or JPEG.
        caption: one line or several below it.
        alt: what it shows to those who cannot see it.
        wide: too wide to be read when shrunk to a phone, which scrolls it instead.
    """

    content: bytes
    caption: str
    alt: str = ""
    wide: bool = False

    @property
    def source(self) -> str:
        """Data URL."""
        kinds = {b"\xff\xd8": "jpeg", b"\x89PNG": "png"}
        kind = next((kind for start, kind in kinds.items() if self.content.startswith(start)), "svg+xml")
        return f"data:image/{kind};base64,{base64.b64encode(self.content).decode()}"


@dataclass(frozen=True)
class Block:
    """Part of a section, mostly of one data set.

    Attributes:
        galleries: rows of pictures by title.
        numbers: what stands in no other table, for results.csv (`results.RESULT_COLUMNS`).
    """

    title: str = ""
    charts: Sequence[Picture] = ()
    tables: Sequence[Table] = ()
    galleries: Sequence[tuple[str, Sequence[Picture]]] = ()
    notes: Sequence[str] = ()
    code: str = ""
    numbers: Sequence[dict[str, Any]] = ()


@dataclass(frozen=True)
class Section:
    """Chapter of the report; `lead` is for readers who are no statisticians."""

    name: str
    title: str
    lead: str
    blocks: Sequence[Block]


PERSONAL = {"Age": ("age", "patient_age", "age_years"), "Sex": ("sex", "gender", "patient_sex"),
            "Ethnicity": ("ethnicity", "ethnic_group", "race")}  # fmt: skip
OF_IMAGES = {"Eye": ("eye", "laterality"), "Camera": ("camera", "device", "scanner", "camera_model", "manufacturer"),
             "Site": ("site", "centre", "center", "hospital", "clinic"),
             "Quality": ("quality", "image_quality", "gradability")}  # fmt: skip
CHARACTERISTICS = (*PERSONAL, *OF_IMAGES)
MOST_VALUES = 8  # of a characteristic; the rarer ones are counted together
Parts = Mapping[str, tuple[pd.DataFrame, np.ndarray]]


def find_column(table: pd.DataFrame, title: str) -> str | None:
    """The column of a characteristic, such as `Age`, that has any value; None where the table has none."""
    wanted = (PERSONAL | OF_IMAGES)[title]
    known = {str(name).strip().casefold().replace(" ", "_"): name for name in table if table[name].notna().any()}
    return next((known[name] for name in wanted if name in known), None)


def characteristics(parts: Parts, problem_type: str, class_names: Sequence[str], fewest: int = 0) -> pd.DataFrame:
    """Table 1: who was studied, by split.

    Args:
        parts: by split the rows of the labelled table, and their targets.
        problem_type, class_names: of the targets.
        fewest: patients or images of a value of which the number is shown.

    Returns:
        A row per characteristic and value, a column per split, cells as text: numbers of images and patients, images
        of each class, then age, sex and ethnicity by patient (by image where patients are unknown), and eye, camera,
        site and quality by image, of the columns that the tables have.
    """
    found: dict[str, dict[str, str]] = {}
    for split, (table, targets) in parts.items():
        known = "patient_id" in table and table["patient_id"].notna().any()
        patients = patient_numbers(table["patient_id"] if known else None, len(table))
        once = table[~pd.Series(patients, table.index).duplicated()]
        cells = {"Images": f"{len(table):,}"} | ({"Patients": f"{len(once):,}"} if known else {})
        for index, name in enumerate(class_names):
            if problem_type == REGRESSION:
                cells[f"{name}, mean (SD)"] = _mean(pd.Series(targets.reshape(len(table), -1)[:, index]))
            else:
                holds = targets == index if problem_type == SINGLE_LABEL else targets[:, index] == 1
                cells[f"{name}, images"] = _part(int(holds.sum()), len(table))
        for title in CHARACTERISTICS:
            rows, unit = (once, "patients" if known else "images") if title in PERSONAL else (table, "images")
            column = next((name for part, _ in parts.values() if (name := find_column(part, title))), None)
            if column is not None and column in rows:
                values = {name: part[column] for name, (part, _) in parts.items() if column in part}
                cells |= _characteristic(f"{title}, {unit}", rows[column], pd.concat(values.values()), fewest)
        for name, cell in cells.items():
            found.setdefault(name, {})[split] = cell
    return pd.DataFrame.from_dict(found, orient="index", columns=list(parts)).fillna("–")


def _characteristic(title: str, values: pd.Series, everywhere: pd.Series, fewest: int) -> dict[str, str]:
    """Mean of a column of numbers, or how often each of its values comes, and what is missing."""
    numbers = pd.to_numeric(everywhere, errors="coerce")
    missing = int(values.isna().sum())
    if numbers.notna().sum() == everywhere.notna().sum() and numbers.nunique() > MOST_VALUES:
        cells = {f"{title}: mean (SD)": _mean(pd.to_numeric(values, errors="coerce"))}
    else:
        texts = values.dropna().astype(str)
        kept = everywhere.dropna().astype(str).value_counts().index[:MOST_VALUES]
        cells = {f"{title}: {name}": _part(int((texts == name).sum()), len(values), fewest) for name in sorted(kept)}
        if others := int((~texts.isin(kept)).sum()):
            cells[f"{title}: other"] = _part(others, len(values), fewest)
    return cells | ({f"{title}: missing": _part(missing, len(values), fewest)} if everywhere.isna().any() else {})


def _part(count: int, total: int, fewest: int = 0) -> str:
    if 0 < count < fewest:
        return f"<{fewest}"
    return f"{count:,} ({100 * count / total:.1f}%)" if total else "0"


def _mean(values: pd.Series) -> str:
    return "–" if values.isna().all() else f"{values.mean():.1f} ({values.std(ddof=1):.1f})"


def render(name: str, about: str, sections: Sequence[Section], footer: str) -> str:
    """One HTML page that needs no other file; whatever names hold is text in it.

    Args:
        name: title of the page.
        about: one sentence below it.
        sections: in their order.
        footer: where the numbers and figures are found in other files.
    """
    import jinja2

    style, page = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.html"))
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.from_string(page).render(name=name, about=about, sections=sections, style=style, footer=footer)


# Item, topic, development (D) or evaluation (E), what it asks for in short (the published wording, CC BY 4.0, is in
# https://www.tripod-statement.org), the sections of reports that answer it, and what of it they answer where not all.
ITEMS = TEMPLATES / "tripod_ai.csv"


def tripod_table(sections: Sequence[Section]) -> Table:
    """TRIPOD+AI (Collins et al., BMJ 2024;385:e078378) for a report: the 27 items, and where it answers them.

    Args:
        sections: of the report; an item whose sections it lacks is left to the authors.
    """
    titles, rows = {part.name: part.title for part in sections}, []
    for item in pd.read_csv(ITEMS, dtype=str, keep_default_na=False).itertuples():
        found = [titles[name] for name in item.section.split(";") if name in titles]
        status = ("in part" if item.remark else "yes") if found else "no"
        where = (
            "; ".join(found) + (f": {item.remark}" if item.remark else "") if found else "to be written by the authors"
        )
        rows.append([item.item, item.topic, item.applies, item.asks, status, where])
    answered = sum(row[4] != "no" for row in rows)
    caption = (
        f"{answered} of {len(rows)} parts of the 27 items are answered here, wholly or in part; the others must be "
        "written by the authors. D: development of a model, E: evaluation. What items ask for is in short; the paper "
        "has the whole wording."
    )
    return Table(["item", "topic", "for", "asks for", "answered", "where"], rows, caption, text=6)


def tripod_section(sections: Sequence[Section]) -> Section:
    """The checklist as the last section of a report."""
    lead = (
        "The checklist for studies of prediction models (TRIPOD+AI; Collins et al., BMJ 2024;385:e078378), filled in "
        "by what this report holds."
    )
    return Section("tripod", "TRIPOD+AI checklist", lead, [Block(tables=[tripod_table(sections)])])


INTERVAL = "_ci95"
MOST_CLASSES = 6
FOOTER = "Every number is in the CSV files and in metrics.json beside this page, the figures are in plots/."


@dataclass(frozen=True)
class About:
    """Text of the page of an evaluation beside its figures.

    Attributes:
        name: title of the page.
        facts: of the model, the data and the run, by what they are.
        parts: rows of the labelled table and targets, by split.
        calibration: what was fitted to the logits, in a sentence.
        unread: targets of the images that could not be read, (M,) or (M, C).
    """

    name: str
    facts: Mapping[str, str]
    parts: Parts
    calibration: str = ""
    unread: np.ndarray | None = None


def metric_rows(
    names: Collection[str], problem_type: str, class_names: Sequence[str], class_order: Sequence[str] | None = None
) -> list[tuple[str, str]]:
    """Names of overall figures in the order of a report, with their titles.

    Of two exclusive classes the figures of the finding come first: AUPRC, sensitivity, PPV and F1 of a rare finding
    are other numbers than their means over both classes, which are called means. AUROC is the same for both.

    Args:
        names: of the figures that are known, as in `metrics.json`.
        problem_type, class_names, class_order: of the predictions.
    """
    overall = [name for name in names if "/" not in name]
    finding = finding_of(problem_type, class_names, class_order)
    own = [name for name in names if finding is not None and name.endswith(f"/{finding}")]
    if f"recall/{finding}" not in own:
        return [(name, metric_title(name, several=len(class_names) > 1)) for name in overall]
    rows = [(name, metric_title(name)) for name in ("auroc", *own) if name in names and name != f"auroc/{finding}"]
    return rows + [(name, metric_title(name, several=True)) for name in overall if name != "auroc"]


def counts_text(predictions: Predictions, case: str = "image") -> str:
    """Counts that figures rest on, such as `480 images of 240 patients; amd: 96 images of 60 patients`.

    Args:
        predictions: with labels.
        case: what a row is: image, eye or patient.
    """

    def text(rows: int, patients: Any) -> str:
        known = not pd.isna(patients) and case != "patient"
        return counted(rows, case) + (f" of {counted(int(patients), 'patient')}" if known else "")

    numbers = patient_numbers(predictions.patients, len(predictions))
    found = [text(len(predictions), None if predictions.patients is None else numbers.max() + 1)]
    if PROBLEM_TYPES[predictions.problem_type].is_classification:
        counts = class_counts(predictions).set_index("class")
        for name in _shown(predictions):
            found.append(f"{name}: {text(counts.loc[name, 'positives'], counts.loc[name, 'patients_positive'])}")
    return "; ".join(found)


def _shown(predictions: Predictions) -> list[str]:
    """The finding of two exclusive classes, else the first classes."""
    return [predictions.finding] if predictions.finding else list(predictions.class_names[:MOST_CLASSES])


POINT = ("class", "criterion", "target")
REFERRED = ("sensitivity_referred", "specificity_referred", "sensitivity_gradable", "specificity_gradable")
# Sections of the page: anchor, title, lead, and its tables: file, columns, caption.
SECTIONS: tuple[tuple[str, str, str, tuple[tuple[str, tuple[str, ...], str], ...]], ...] = (
    ("participants", "Participants", "Who was studied, and what the figures below rest on.", (
        ("characteristics", (), "Images and classes are counted by image, the facts of a person once for each."),
        ("counts", ("class", "rows", "positives", "patients", "patients_positive"), "The evaluated set."),
        ("ungradable", (*POINT, "ungradable_positives", "ungradable_negatives", *REFERRED),
         "Ungradable images as an outcome: referred, that is counted as positive, or left out. All other figures hold "
         "them as they were predicted, and those that could not be read not at all."))),
    ("performance", "Performance", "How well the model does on images that it has not seen.", (("figures", (), ""),)),
    ("thresholds", "Operating points", "What a threshold does to patients that was chosen on the validation split.", (
        ("operating_points", (*POINT, "threshold", "tp", "fp", "fn", "tn"), "The counts at each threshold."),
        ("operating_points", (*POINT, "sensitivity", "specificity", "ppv", "npv"),
         "With 95% intervals over patients. PPV and NPV are those at the share of this set."),
        ("operating_points", (*POINT, "prevalence", "ppv_there", "npv_there"),
         "PPV and NPV at another prevalence, with the same sensitivity and specificity; 95% intervals."))),
    ("utility", "Net benefit", "True positives for each case, less false ones at the threshold's exchange rate.", (
        ("net_benefit", ("class", "threshold", "net_benefit", "treat_all", "gain"),
         "With 95% intervals over patients; the gain is over the better of treating all and treating none."),)),
    ("calibration", "Calibration", "Whether a probability means what it says.", (
        ("calibration", ("class", "n", "positives", "ece", "slope", "intercept"),
         "Slope 1 and intercept 0 are right; 95% intervals over patients."),)),
    ("subgroups", "Subgroups", "Whether the model serves all alike; the last line is the gap between two groups.", (
        ("subgroups", ("column", "group", "metric", "rows", "n", "value", "p_value"),
         "With 95% intervals over patients."),)),
    ("plots", "Figures", "", ()),
    ("settings", "Settings", "What was run; run.json beside this page has every setting and version.", (
        ("settings", (), ""),)),
)  # fmt: skip
HEADINGS = {
    "rows": "cases", "n": "n", "positives": "with it", "patients_positive": "patients with it", "column": "by",
    "criterion": "chosen for", "ungradable_positives": "ungradable, with it", "tp": "true positive",
    "ungradable_negatives": "ungradable, without", "fp": "false positive", "fn": "false negative",
    "tn": "true negative", "ppv": "PPV", "npv": "NPV", "ppv_there": "PPV", "npv_there": "NPV",
    "ece": "ECE", "p_value": "p of the gap", "metric": "figure", "value": "value (95% CI)",
}  # fmt: skip
WORDS = ("class", "criterion", "column", "group", "metric")
PLOTS = {
    "roc": "ROC curve", "precision_recall": "Precision-recall curve", "confusion_matrix": "Confusion matrix",
    "reliability": "Reliability", "decision_curve": "Decision curve",
    "predicted_vs_true": "Predicted and true numbers, and their differences",
}  # fmt: skip


def report_sections(
    about: About, predictions: Predictions, metrics: Mapping[str, Any], tables: Mapping[str, pd.DataFrame],
    plots: Sequence[Path], counts: str,
) -> list[Section]:  # fmt: skip
    """The page of an evaluation; sections without data are left out.

    Args:
        about: what stands beside the figures.
        predictions, metrics: of the units that the report is about.
        tables: of the folder, by the name of their file.
        plots: their files.
        counts: of the units, as `counts_text` gives them.
    """
    names = [name for name in metrics if not name.endswith(INTERVAL)]
    figures = [
        [title, number(metrics[name]), interval(*(metrics.get(name + INTERVAL) or (None, None)))]
        for name, title in metric_rows(
            names, predictions.problem_type, predictions.class_names, predictions.class_order
        )
    ]
    of_people = tables["characteristics"]
    made = {
        "figures": Table(["", "value", "95% CI"], figures, f"{counts}."),
        "settings": Table(["", ""], [list(pair) for pair in about.facts.items()], text=2),
        "characteristics": Table(
            ["", *of_people], [[name, *row] for name, row in zip(of_people.index, of_people.to_numpy(), strict=True)]
        ),
    }
    unread = 0 if about.unread is None else len(about.unread)
    notes = {
        "participants": [f"{counted(unread, 'image')} could not be read, and is in no figure."] if unread else [],
        "calibration": [about.calibration] if about.calibration else [],
    }
    charts = [Picture(path.read_bytes(), f"{PLOTS[path.stem]}: {counts}.", PLOTS[path.stem]) for path in plots]
    shown, found = _shown(predictions), []
    for name, title, lead, wanted in SECTIONS:
        made_here = [
            replace(made[file], caption=made[file].caption or caption) if file in made
            else _of_file(tables[file], columns, caption, shown)
            for file, columns, caption in wanted if file in made or file in tables
        ]  # fmt: skip
        kept = [table for table in made_here if table.rows]
        pictures = charts if name == "plots" else []
        if kept or pictures or notes.get(name):
            found.append(Section(name, title, lead, [Block(charts=pictures, tables=kept, notes=notes.get(name, ()))]))
    return [*found, tripod_section(found)]


def _of_file(table: pd.DataFrame, columns: Sequence[str], caption: str, shown: Sequence[str]) -> Table:
    """Columns of a CSV file, for the classes that are shown; numbers that have ends with these below them."""
    rows = table[table["class"].isin(shown)] if "class" in table else table
    kept = [name for name in columns if name in rows and rows[name].notna().any()]
    if set(kept) <= set(POINT):  # what the table is about is not known
        return Table([], [])
    if "class" in table and len(shown) == 1:
        kept, caption = kept[1:], f"Positive is {shown[0]}. {caption}"
    cells = []
    for row in rows.to_dict("records"):
        ends = {name: (row.get(f"{name}_low"), row.get(f"{name}_high")) for name in kept}
        ends |= {"value": (row.get("low"), row.get("high"))}
        row |= {"value": row.get("method")} if "value" in kept and pd.isna(row["value"]) else {}
        row |= {"metric": metric_title(row["metric"])} if "metric" in kept else {}
        cells.append([_cell(row[name], *ends[name]) for name in kept])
    words = max(1, sum(name in WORDS for name in kept))
    return Table([HEADINGS.get(name, name.replace("_", " ")) for name in kept], cells, caption, words)


def _cell(value: Any, low: Any, high: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, (int, np.integer)):
        return f"{value:,}"
    return with_interval(value, low, high)
