"""Model cards: `README.md` of a model folder, from a template, the facts of the run and its result files."""

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from ..evaluation.calibration import is_uninformed
from ..evaluation.metrics import METRICS, metric_title
from ..evaluation.subgroups import FEWEST
from ..files import atomic_file
from .image_processing_retfound import RetFoundImageProcessor
from .official_checkpoints import OfficialCheckpoint
from .other_checkpoints import OtherEncoder
from .starting_points import OFFICIAL_LICENSE, OFFICIAL_ORGANISATION, find_starting_point

# An installed package has its templates inside, a checkout beside it.
PACKAGE = Path(__file__).parents[1]
TEMPLATES = (PACKAGE / "model_cards", PACKAGE.parent / "model_cards")
TAGS = ("retfound", "ophthalmology", "retina", "medical-imaging")


def write_card(folder: str | Path, template: str, metadata: dict[str, Any] | None, **facts: Any) -> Path:
    """Write `README.md` into `folder`.

    Args:
        template: name of a file in `model_cards/`, without `.md`.
        metadata: the YAML block that the Hub reads; `tags` and `library_name` are added. None for a finished card.
        facts: the values of the template's placeholders; `folder_name` is added.

    Raises:
        jinja2.UndefinedError: a placeholder without a value.
    """
    import jinja2
    import yaml

    folder = Path(folder)
    templates = next(path for path in TEMPLATES if path.is_dir())
    metadata = {"library_name": "transformers", "tags": list(TAGS), **(metadata or {})}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    facts.setdefault("folder_name", folder.name)
    card = environment.get_template(f"{template}.md").render(
        card_data=yaml.safe_dump(metadata, sort_keys=False).strip(), **facts
    )
    path = folder / "README.md"
    with atomic_file(path) as partial:
        partial.write_text(card, encoding="utf-8")
    return path


def describe_preprocessing(processor: RetFoundImageProcessor) -> str:
    """One sentence that says what the image processor does, read from its settings."""
    crop = "Crop to the field of view and pad to a square; then r" if processor.do_fundus_crop else "R"
    size = dict(processor.size)
    resized = f"the shorter side to {size['shortest_edge']}" if "shortest_edge" in size else f"to {_by(size)}"
    return (
        f"{crop}esize {resized} pixels (bicubic, antialiased), crop the centre {_by(dict(processor.crop_size))}, "
        f"scale to [0, 1] and normalise by mean "
        f"{tuple(processor.image_mean)} and deviation {tuple(processor.image_std)}."
    )


def license_of(base: str) -> str:
    """The licence of the base, which holds for what is made from it; the official weights' where none is stated."""
    known = find_starting_point(base)
    if known is not None and known.license is not None:
        return known.license
    return _card_data(base).get("license") or OFFICIAL_LICENSE


def hub_id_of(base: str) -> str | None:
    """The Hub id that a card can name for a base: that of the name or folder, or what the folder was made from."""
    known = find_starting_point(base)
    if known is not None:
        return known.hub_id
    if not Path(base).exists():
        return base
    named = _card_data(base).get("base_model")
    return named[0] if isinstance(named, list) else named


def _card_data(folder: str) -> dict[str, Any]:
    path = Path(folder) / "README.md"
    if not path.is_file():
        return {}
    from huggingface_hub import ModelCard

    return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()


def _by(size: dict[str, int]) -> str:
    return f"{size['width']} x {size['height']}"


INTERVAL = "_ci95"
SUBGROUP_METRICS = ("auroc", "mae")  # the one of classifiers, the one of regression
MAX_SUBGROUPS = 40  # rows shown
NUMERIC = re.compile(r"(-?\d[\d.]*( to .*| \(.*)?|undefined)?")


def read_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json` of a folder, empty where there is none."""
    path = Path(folder) / "metrics.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def evaluation_text(folder: Path, of_what: str) -> str:
    """The section on evaluation: all metrics with their intervals, by class, and by group of patients.

    Args:
        of_what: the images, such as "the test split, 120 images".
    """
    metrics = read_metrics(folder)
    values = {name: value for name, value in metrics.items() if not name.endswith(INTERVAL)}
    overall = [name for name in values if "/" not in name and values[name] is not None]
    interval = any(name.endswith(INTERVAL) for name in metrics)
    heading = ["metric", "value", *(["95% interval"] if interval else [])]
    rows = [[title(name), number(values[name]), *([_interval(metrics, name)] if interval else [])] for name in overall]
    parts = [f"On {of_what}:", _table(heading, rows)]
    parts += _by_class(metrics, values, interval)
    undefined = [name for name, value in values.items() if value is None]
    if undefined:
        parts.append(f"Undefined on these images: {', '.join(map(title, undefined))}.")
    subgroups = Path(folder) / "subgroups.csv"
    if subgroups.is_file():
        parts += _by_group(subgroups)
    return "\n\n".join(parts)


def calibration_text(folder: Path, problem_type: str | None) -> str:
    """The section on calibration: its error, and the temperature by which logits are divided."""
    if problem_type == "regression":
        return "Not applicable: the model predicts numbers, not probabilities."
    metrics = read_metrics(folder)
    if metrics.get("ece") is None:
        return "Not measured."
    text = f"Expected calibration error {number(metrics['ece'])}"
    text += f", Brier score {number(metrics['brier'])}" if metrics.get("brier") is not None else ""
    config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    temperature = config.get("calibration_temperature", 1.0)
    if temperature == 1.0:
        return f"{text}; the probabilities are those of the network, no temperature was fitted to them."
    text += f", after the head was divided by a temperature of {number(temperature)}, fitted on validation images."
    if is_uninformed(temperature):
        text += (
            " That is the highest that is tried: on the validation images the scores were hardly better than "
            "guessing, or far too sure. The probabilities are not calibrated, however small the error above: nearly "
            "equal ones may have a small one whatever the model knows."
        )
    return text


def model_index(folder: Path, name: str, dataset: str, dataset_id: str | None = None) -> list[dict[str, Any]]:
    """The card's `model-index` in the form of huggingface_hub, values as they stand in `metrics.json`."""
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id or "retinal-images",
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric,
            metric_value=value,
        )
        for metric, value in read_metrics(folder).items()
        if metric in METRICS and METRICS[metric].indexed and value is not None
    ]
    return eval_results_to_model_index(name, results) if results else []


def cost_text(seconds: float | None, hardware: str | None) -> str:
    """Measured time on what machine; energy is no part of what is measured."""
    if seconds is None:
        return "Not measured."
    whole = max(1, round(seconds))
    shown = f"{whole} second{'s' if whole > 1 else ''}" if seconds < 120 else f"{seconds / 60:.0f} minutes"
    shown = shown if seconds < 7200 else f"{seconds / 3600:.1f} hours"
    return f"Measured: {shown} on {hardware or 'an unnamed machine'}. Power was not measured; no energy is claimed."


def number(value: float) -> str:
    """A figure as cards show it."""
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def title(name: str) -> str:
    """A metric as cards name it: `auroc` is AUROC, `auroc/3` AUROC of `3`, whose marks tell a grade from a figure."""
    metric, _, label = name.partition("/")
    return metric_title(metric) + (f" of `{label}`" if label else "")


def _by_class(metrics: dict[str, Any], values: dict[str, Any], interval: bool) -> list[str]:
    # A class name may hold a slash itself: only the first one separates.
    split = [(name, *name.split("/", 1)) for name, value in values.items() if "/" in name and value is not None]
    columns = list(dict.fromkeys(column for _, column, _ in split))
    labels = list(dict.fromkeys(label for _, _, label in split))
    if not labels:
        return []

    def cell(name: str) -> str:
        if values.get(name) is None:
            return ""
        shown = _interval(metrics, name) if interval else ""
        return number(values[name]) + (f" ({shown})" if shown else "")

    rows = [[label, *(cell(f"{column}/{label}") for column in columns)] for label in labels]
    return ["By class:", _table(["class", *map(title, columns)], rows)]


def _interval(metrics: dict[str, Any], name: str) -> str:
    found = metrics.get(name + INTERVAL)
    return f"{number(found[0])} to {number(found[1])}" if found else ""


def _by_group(path: Path) -> list[str]:
    """The groups and the gaps between them, for the one metric that the card shows.

    Groups of few patients are left out: a card is public, and the figures of one or two patients are theirs.
    """
    with path.open(encoding="utf-8", newline="") as file:
        found = [row for row in csv.DictReader(file) if row["metric"] in SUBGROUP_METRICS]
    shown = [row for row in found if float(row["n"]) >= FEWEST]
    rows = []
    for row in shown[:MAX_SUBGROUPS]:
        interval = f"{_rounded(row['low'])} to {_rounded(row['high'])}" if row["low"] else ""
        value = _rounded(row["value"]) or "undefined"
        metric = title(row["metric"])
        rows.append([row["column"], row["group"], row["n"], metric, value, interval, _rounded(row["p_value"])])
    parts = []
    if rows:
        table = _table(["by", "group", "patients", "metric", "value", "95% interval", "p of a gap"], rows)
        parts = ["By group of patients (`subgroups.csv` has every metric):", table]
    if len(shown) < len(found):
        parts.append(f"Groups of fewer than {FEWEST} patients are left out.")
    return parts


def _rounded(cell: str) -> str:
    try:
        return number(int(cell)) if cell.lstrip("-").isdigit() else number(float(cell))
    except ValueError:
        return cell


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Markdown; columns of numbers to the right, those without any cell left out."""
    columns = [column for column in zip(heading, *rows, strict=True) if any(column[1:])]
    right = [all(NUMERIC.fullmatch(cell) for cell in column[1:]) for column in columns]
    heading, *rows = zip(*columns, strict=True)
    lines = [heading, ["---:" if numbers else "---" for numbers in right], *rows]
    return "\n".join(f"| {' | '.join(cell.replace('|', '/') for cell in line)} |" for line in lines)


# The official weights: each repository holds one file, `<name>.pth`.
OFFICIAL_NAMES = (
    "RETFound_mae_natureCFP", "RETFound_mae_natureOCT", "RETFound_mae_meh", "RETFound_mae_shanghai",
    "RETFound_dinov2_meh", "RETFound_dinov2_shanghai",
)  # fmt: skip
FINISHED = {"RETFound_mae_natureCFP": "retfound-cfp", "RETFound_mae_natureOCT": "retfound-oct"}
PAPER_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 16, "image_size": 224}
MODALITY_NAMES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans"}
DESCRIPTIONS = {
    "autoencoder": "masked autoencoder (encoder and decoder)",
    "encoder": "encoder without decoder",
    "classifier": "fine-tuned classifier",
    "dinov2": "DINOv2 encoder",
}


def write_converted_card(
    folder: Path,
    name: str,
    kind: str,
    modality: str,
    source: str | Path,
    checkpoint: OfficialCheckpoint,
    config: PreTrainedConfig,
    processor: RetFoundImageProcessor,
) -> Path:
    """Write the card; `name` is that of the folder it will be.

    The two models of the paper have finished cards, known by the name of the file; of others the file alone tells.
    """
    provenance = (
        f"Source file `{checkpoint.path.name}`, SHA-256 `{checkpoint.sha256}`. The official weights are released "
        "under CC BY-NC 4.0, which holds for this folder and for what is fine-tuned from it."
    )
    finished = FINISHED.get(_official_name(source, checkpoint.path))
    if finished and all(getattr(config, size) == value for size, value in PAPER_SIZES.items()):
        path = write_card(folder, finished, None, folder_name=name)
        text = path.read_text(encoding="utf-8").replace(finished, name)
        path.write_text(f"{text}\n## Provenance\n\n{provenance}\n", encoding="utf-8")
        return path
    pipeline = "image-classification" if kind == "classifier" else "image-feature-extraction"
    metadata: dict[str, Any] = {"license": OFFICIAL_LICENSE, "pipeline_tag": pipeline}
    if base := _official_name(source, checkpoint.path):
        metadata["base_model"] = f"{OFFICIAL_ORGANISATION}/{base}"
    unknown = "What it was trained on is not told by the file"
    facts = {
        "folder_name": name,
        "title": f"{name}: RETFound, {DESCRIPTIONS[kind]}",
        "description": (
            f"Converted from an official RETFound checkpoint: {DESCRIPTIONS[kind]} for {MODALITY_NAMES[modality]}."
        ),
        "training_data": f"{MODALITY_NAMES[modality].capitalize().replace('Oct', 'OCT')}. {unknown}.",
        "preprocessing": describe_preprocessing(processor),
        "cost": "That of training is not told by the file; conversion takes minutes on a CPU.",
        "provenance": provenance,
    }
    if kind == "classifier":
        facts |= {
            "targets": "The classes are those of `config.json`, in the order of the head.",
            "evaluation": "Not evaluated since the conversion, which changes no weight: `retfound evaluate` does it.",
            "calibration": "Not measured.",
            "problem_type": config.problem_type or "single_label_classification",
        }
        return write_card(folder, "finetuned", metadata, **facts)
    return write_card(folder, "pretrained", metadata, has_decoder=kind == "autoencoder", **facts)


def write_other_card(
    folder: Path,
    name: str,
    encoder: OtherEncoder,
    modality: str | None,
    checkpoint: OfficialCheckpoint,
    config: PreTrainedConfig,
    processor: RetFoundImageProcessor,
) -> Path:
    """The card of an encoder that another method trained; `name` is that of the folder it will be."""
    blocks = getattr(config, "num_hidden_layers", None) or sum(config.depths)
    what = f"{'ViT' if encoder.kind == 'vit' else 'ResNet'} of {blocks} blocks"
    method = encoder.method or "a method that the file does not tell"
    images = f"{MODALITY_NAMES[modality].capitalize().replace('Oct', 'OCT')}" if modality else "Natural images"
    if encoder.method:
        license = f"The licence of {encoder.method}'s released weights, {encoder.license}, holds"
    else:
        license = "The file tells no licence: its publisher's holds"
    return write_card(
        folder,
        "starting_weights",
        {"license": encoder.license or "unknown", "pipeline_tag": "image-feature-extraction"},
        folder_name=name,
        title=f"{name}: a {what} to start from",
        description=f"A {what}, trained by {method}, without the heads of that training.",
        training_data=f"{images}, as far as is known: the file does not tell.",
        preprocessing=describe_preprocessing(processor),
        provenance=(
            f"Source file `{checkpoint.path.name}`, SHA-256 `{checkpoint.sha256}`. {license} for this folder "
            "and for what is made from it."
        ),
    )


def _official_name(source: str | Path, path: Path) -> str:
    """The name among the official weights that a source bears, or nothing."""
    names = (path.stem, str(source).split("/")[-1])
    return next((name for name in names if name in OFFICIAL_NAMES), "")
