"""Model cards: `README.md` of a model folder, from a template, the facts of the run and its result files."""

import re
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedConfig

from ..evaluation.calibration import LogitScaling
from ..evaluation.document import INTERVAL, metric_rows
from ..evaluation.metrics import METRICS, metric_title
from ..evaluation.subgroups import FEWEST, without_small_groups
from ..files import atomic_file, read_json, read_rows
from ..record import __version__, as_code, as_literal, as_text, markdown_table
from ..vocabulary import MODALITIES, REGRESSION, problem_type_of
from .configuration_retfound import is_calibrated
from .image_processing_retfound import RetFoundImageProcessor
from .loading import OFFICIAL_LICENSE, STARTING_POINTS, StartingPoint, find_starting_point

if TYPE_CHECKING:
    from .conversion import CheckpointFile

# An installed package has its templates inside, a checkout beside it.
PACKAGE = Path(__file__).parents[1]
TEMPLATES = (PACKAGE / "model_cards", PACKAGE.parent / "model_cards")
TAGS = ("retfound", "ophthalmology", "retina", "medical-imaging")
SUBGROUP_METRICS = ("auroc", "mae")  # the one of classifiers, the one of regression
MAX_SUBGROUPS = 40  # rows shown
BALANCED = "Training made all classes count alike, so rare classes get too high a probability."


def write_card(folder: str | Path, template: str, metadata: dict[str, Any] | None, **facts: Any) -> Path:
    """Write `README.md` into `folder`; `folder_name` is added to the facts of `render_card`."""
    path = Path(folder) / "README.md"
    card = render_card(template, metadata, **{"folder_name": path.parent.name, **facts})
    with atomic_file(path) as partial:
        partial.write_text(card, encoding="utf-8")
    return path


def render_card(template: str, metadata: dict[str, Any] | None, **facts: Any) -> str:
    """Text of a card.

    Args:
        template: name of a file in `model_cards/`, without `.md`.
        metadata: the YAML block that the Hub reads; `tags` and `library_name` are added. None for a finished card.
        facts: the values of the template's placeholders.

    Raises:
        jinja2.UndefinedError: a placeholder without a value.
    """
    import jinja2
    import yaml

    metadata = {"library_name": "transformers", "tags": list(TAGS), **(metadata or {})}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_templates(), encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    environment.filters |= {"text": as_text, "code": as_code, "literal": as_literal}
    if "provenance" in facts:
        facts["provenance"] += f" Written by retfound_hf {__version__}."
    return environment.get_template(f"{template}.md").render(
        card_data=yaml.safe_dump(metadata, sort_keys=False).strip(), **facts
    )


def _templates() -> Path:
    return next(path for path in TEMPLATES if path.is_dir())


def describe_preprocessing(processor: RetFoundImageProcessor, stock: bool = True) -> str:
    """Steps of the image processor, read from its settings; with `stock`, also those that a stock one leaves out."""
    crop = "Crop to the field of view and pad to a square; then r" if processor.do_fundus_crop else "R"
    size, cut = processor.resized_size, dict(processor.size)
    shorter = size.get("shortest_edge")
    resized = f"the shorter side to {shorter}" if shorter else f"to {size['width']} x {size['height']}"
    unknown = ["the crop to the field of view"] * processor.do_fundus_crop + ["the margin"] * (size != cut)
    warning = (
        f" Use `AutoImageProcessor`: a stock `ViTImageProcessor` reads size, mean and deviation of this folder, but "
        f"does not know {' or '.join(unknown)}, and gives other pixels."
    )
    return (
        f"{crop}esize {resized} pixels (bicubic, antialiased), crop the centre {cut['width']} x {cut['height']}, "
        f"scale to [0, 1] and normalise by mean {tuple(processor.image_mean)} and deviation "
        f"{tuple(processor.image_std)}.{warning if stock and unknown else ''}"
    )


def describe_start(base: str | None, preset: str | None) -> str:
    """The weights that a training started from, in words; a folder by its name alone."""
    if base is None:
        return f"random weights (preset {as_code(str(preset))})"
    return as_code(Path(base).name if Path(base).exists() else base)


def base_metadata(base: str | None, relation: str = "finetune") -> dict[str, Any]:
    """Licence and base model of a card: those of the weights that a training started from.

    Args:
        base: folder, Hub id or starting point; None for random weights.
        relation: `base_model_relation` of the Hub.
    """
    if base is None:
        return {}
    named = hub_id_of(base)
    metadata: dict[str, Any] = {"license": license_of(base)}
    return metadata | ({"base_model": named, "base_model_relation": relation} if named else {})


def license_of(base: str) -> str:
    """Licence of the base, which holds for what is made from it; the official weights' where none is stated."""
    known = find_starting_point(base)
    if known is not None and known.license is not None:
        return known.license
    return _card_data(base).get("license") or OFFICIAL_LICENSE


def hub_id_of(base: str) -> str | None:
    """Hub id that a card can name for a base: that of the name or folder, or what the folder was made from."""
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


def read_metrics(folder: Path) -> dict[str, Any]:
    """`metrics.json` of a folder, empty where there is none."""
    return read_json(Path(folder, "metrics.json"), absent={})


def evaluation_text(folder: Path, of_what: str) -> str:
    """The section on evaluation: all metrics with their intervals, by class, and by group of patients.

    Args:
        folder: with `metrics.json` and, where there are groups, `subgroups.csv`.
        of_what: the images, such as "the test split, 120 images".
    """
    overall, by_class, by_group = (*evaluation_tables(folder), "", "", "")[:3]
    parts = [f"On {of_what}:", overall]
    parts += ["By class:", by_class] if by_class else []
    undefined = [name for name, value in read_metrics(folder).items() if value is None]
    parts += [f"Undefined on these images: {', '.join(map(title, undefined))}."] if undefined else []
    parts += ["By group of patients (`subgroups.csv` has every metric):", by_group] if by_group else []
    rows = _group_rows(folder)
    if any(float(row["n"]) < FEWEST for row in rows):
        parts.append(f"Groups of fewer than {FEWEST} patients are left out.")
    return "\n\n".join(parts)


def evaluation_tables(folder: Path) -> list[str]:
    """Tables of the section on evaluation: overall, by class, by group, each empty where there is none."""
    metrics = read_metrics(folder)
    values = {name: value for name, value in metrics.items() if not name.endswith(INTERVAL) and value is not None}
    if not values:
        return []

    def interval(name: str) -> str:
        found = metrics.get(name + INTERVAL)
        return f"{number(found[0])} to {number(found[1])}" if found else ""

    def cell(name: str) -> str:
        return f"{number(values[name])} ({interval(name)})".removesuffix(" ()") if name in values else ""

    overall = [[title(name) if "/" in name else heading, number(values[name]), interval(name)]
               for name, heading in metric_rows(values, *_task(folder))]  # fmt: skip
    # A class name may hold a slash itself: only the first one separates.
    split = [name.split("/", 1) for name in values if "/" in name]
    columns, labels = (list(dict.fromkeys(pair[place] for pair in split)) for place in (0, 1))
    by_class = [[as_text(label), *(cell(f"{column}/{label}") for column in columns)] for label in labels]
    return [
        markdown_table(["metric", "value", "95% interval"], overall),
        markdown_table(["class", *(metric_title(f"{column}/") for column in columns)], by_class) if by_class else "",
        _group_table(folder),
    ]


def _task(folder: Path) -> tuple[str, list[str], list[str] | None]:
    """Problem type of a folder, its class names, and their order where it is known."""
    settings = _settings(folder)
    names = list(settings.get("id2label", {}).values())
    config = SimpleNamespace(problem_type=settings.get("problem_type"), num_labels=len(names))
    return problem_type_of(config), names, settings.get("class_order")


def _settings(folder: Path) -> dict[str, Any]:
    """`config.json` of a folder, empty where there is none."""
    return read_json(Path(folder, "config.json"), absent={})


def _group_rows(folder: Path) -> list[dict[str, str]]:
    """Groups and the gaps between them, for the one metric that the card shows."""
    path = Path(folder) / "subgroups.csv"
    if not path.is_file():
        return []
    return [row for row in read_rows(path) if row["metric"] in SUBGROUP_METRICS]


def _group_table(folder: Path) -> str:
    """Groups of few patients are left out: a card is public, and the figures of one or two patients are theirs."""
    rows = []
    for row in without_small_groups(_group_rows(folder))[:MAX_SUBGROUPS]:
        interval = f"{_rounded(row['low'])} to {_rounded(row['high'])}" if row["low"] else ""
        value = _rounded(row["value"]) or as_text(row.get("method", "")) or "undefined"
        metric = title(row["metric"])
        cells = [as_text(row["column"]), as_text(row["group"]), row["n"], metric, value, interval]
        rows.append([*cells, _rounded(row["p_value"])])
    heading = ["by", "group", "patients", "metric", "value", "95% interval", "p of a gap"]
    return markdown_table(heading, rows) if rows else ""


def _rounded(cell: str) -> str:
    try:
        return number(int(cell)) if cell.lstrip("-").isdigit() else number(float(cell))
    except ValueError:
        return cell


def calibration_text(folder: Path, problem_type: str | None, balanced: bool = False) -> str:
    """The section on calibration: its error, and what was fitted to the logits.

    Args:
        folder: with `metrics.json` and `config.json`.
        problem_type: key of `PROBLEM_TYPES`.
        balanced: whether the loss or the draws were balanced over the classes.
    """
    if problem_type == REGRESSION:
        return "Not applicable: the model predicts numbers, not probabilities."
    metrics = read_metrics(folder)
    if metrics.get("ece") is None:
        return "Not measured."
    text = f"Expected calibration error {number(metrics['ece'])}"
    text += f", Brier score {number(metrics['brier'])}" if metrics.get("brier") is not None else ""
    settings, names = _settings(folder), _task(folder)[1]
    if not is_calibrated(settings):
        text += "; the probabilities are those of the network, nothing was fitted to them."
        return f"{text} {BALANCED}" if balanced else text
    scaling = LogitScaling.of(settings, len(names))
    fitted = as_text(scaling.describe(names))
    text += f", after recalibration of the logits on validation images ({fitted}), which the head contains."
    if scaling.is_uninformed:
        text += (
            " The slope is the lowest that is tried: on the validation images the scores were hardly better than "
            "guessing, or far too sure. The probabilities are not calibrated, however small the error above: nearly "
            "equal ones may have a small one whatever the model knows."
        )
    return text


def model_index(folder: Path, name: str, dataset: str, dataset_id: str | None = None) -> list[dict[str, Any]]:
    """The card's `model-index` in the form of huggingface_hub, values as they stand in `metrics.json`.

    Args:
        folder: with `metrics.json`.
        name: of the model.
        dataset: name of the data.
        dataset_id: of a data set on the Hub.
    """
    from huggingface_hub import EvalResult
    from huggingface_hub.repocard_data import eval_results_to_model_index

    metrics = {name: value for name, value in read_metrics(folder).items() if not name.endswith(INTERVAL)}
    headings = {name: title(name) if "/" in name else text for name, text in metric_rows(metrics, *_task(folder))}
    results = [
        EvalResult(
            task_type="image-classification",
            dataset_type=dataset_id or "retinal-images",
            dataset_name=dataset,
            dataset_split="test",
            metric_type=metric,
            metric_name=None
            if headings.get(metric, title(metric)) == title(metric) and "/" not in metric
            else headings[metric],
            metric_value=value,
        )
        for metric, value in metrics.items()
        if value is not None
        and (metric in headings if "/" in metric else metric in METRICS and METRICS[metric].indexed)
    ]
    return eval_results_to_model_index(name, results) if results else []


def cost_text(seconds: float | None, hardware: str | None) -> str:
    """Measured time on what machine; energy is not measured."""
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
    metric, slash, label = name.partition("/")
    return metric_title(metric + slash) + (f" of {as_code(label)}" if label else "")


PAPER_SIZES = {"hidden_size": 1024, "num_hidden_layers": 24, "patch_size": 16, "image_size": 224}
DESCRIPTIONS = {
    "autoencoder": "masked autoencoder (encoder and decoder)",
    "encoder": "encoder without decoder",
    "classifier": "fine-tuned classifier",
    "dinov2": "DINOv2 encoder",
}


def write_converted_card(
    folder: Path,
    name: str,
    checkpoint: "CheckpointFile",
    source: str | Path,
    modality: str | None,
    config: PreTrainedConfig,
    processor: RetFoundImageProcessor,
) -> Path:
    """Write the card of a converted checkpoint.

    The two models of the paper have finished cards, known by the name of the file; of others the file alone tells.

    Args:
        folder: of the model.
        name: that the folder will have.
        checkpoint: recognised.
        source: file or Hub id as it was given.
        modality: of the images that it was trained on; None for natural ones.
        config, processor: of the folder.
    """
    images = MODALITIES[modality].title if modality else "natural images"
    if checkpoint.method != "RETFound":
        return _write_other_card(folder, name, checkpoint, images, config, processor)
    provenance = (
        f"Source file {as_code(checkpoint.path.name)}, SHA-256 `{checkpoint.sha256}`. The official weights are "
        "released under CC BY-NC 4.0, which holds for this folder and for what is fine-tuned from it."
    )
    official = _official(source, checkpoint.path)
    is_paper_sized = all(getattr(config, size) == value for size, value in PAPER_SIZES.items())
    if official and is_paper_sized and (_templates() / f"{official.name}.md").is_file():
        path = write_card(folder, official.name, None, folder_name=name)
        shown = {True: as_literal(name), False: as_text(name)}
        text = re.sub(rf'("?){official.name}\1', lambda own: shown[bool(own[1])], path.read_text(encoding="utf-8"))
        path.write_text(f"{text}\n## Provenance\n\n{provenance}\n", encoding="utf-8")
        return path
    kind = checkpoint.kind
    pipeline = "image-classification" if kind == "classifier" else "image-feature-extraction"
    metadata: dict[str, Any] = {"license": OFFICIAL_LICENSE, "pipeline_tag": pipeline}
    metadata |= {"base_model": official.hub_id} if official else {}
    facts = {
        "folder_name": name,
        "title": f"{as_text(name)}: RETFound, {DESCRIPTIONS[kind]}",
        "description": f"Converted from an official RETFound checkpoint: {DESCRIPTIONS[kind]} for {images}.",
        "training_data": f"{_sentence(images)}. The file does not say more about its training data.",
        "preprocessing": describe_preprocessing(processor),
        "cost": "The file does not state the cost of training; conversion takes minutes on a CPU.",
        "provenance": provenance,
    }
    if kind == "classifier":
        facts |= {
            "targets": "The classes are those of `config.json`, in the order of the head.",
            "evaluation": "Not evaluated since the conversion, which changes no weight: `retfound evaluate` does it.",
            "calibration": "Not measured.",
            "problem_type": problem_type_of(config),
        }
        return write_card(folder, "finetuned", metadata, **facts)
    return write_card(folder, "pretrained", metadata, has_decoder=kind == "autoencoder", **facts)


def _write_other_card(
    folder: Path, name: str, checkpoint: "CheckpointFile", images: str, config: PreTrainedConfig, processor: Any
) -> Path:
    """Card of an encoder that another method trained."""
    blocks = getattr(config, "num_hidden_layers", None) or sum(config.depths)
    what = f"{'ViT' if checkpoint.kind == 'vit' else 'ResNet'} of {blocks} blocks"
    if checkpoint.license:
        license = f"The licence of {checkpoint.method}'s released weights, {checkpoint.license}, holds"
    else:
        license = "The file does not state a licence: its publisher's holds"
    return write_card(
        folder,
        "starting_weights",
        {"license": checkpoint.license or "unknown", "pipeline_tag": "image-feature-extraction"},
        folder_name=name,
        title=f"{as_text(name)}: a {what} to start from",
        description=f"A {what}, trained by {checkpoint.method or 'an unknown method'}, without that training's heads.",
        training_data=f"{_sentence(images)}, as far as is known: the file does not say.",
        preprocessing=describe_preprocessing(processor),
        provenance=(
            f"Source file {as_code(checkpoint.path.name)}, SHA-256 `{checkpoint.sha256}`. {license} for this folder "
            "and for what is made from it."
        ),
    )


def _official(source: str | Path, path: Path) -> StartingPoint | None:
    """Row of the official weights whose name a source bears."""
    names = (path.stem, str(source).split("/")[-1])
    return next((row for row in STARTING_POINTS.values() if row.file and Path(row.file).stem in names), None)


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]
