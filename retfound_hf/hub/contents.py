"""Contents of a published folder: allowed files, licence, no small groups, and a card that equals the results."""

import logging
import re
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedConfig

from ..errors import BadDataError, BadModelError, join_names, one_line
from ..evaluation.subgroups import FEWEST, without_small_groups
from ..files import read_json as read_object
from ..files import read_rows, rows_of_csv
from ..models import cards
from ..models.cards import evaluation_tables, read_metrics, title
from ..models.configuration_retfound import ADAPTER_FILE, is_adapter
from ..models.loading import OFFICIAL_LICENSE, OFFICIAL_ORGANISATION, load_processor, read_config
from ..record import as_text, without_escapes
from ..vocabulary import PROBLEM_TYPES, problem_type_of

logger = logging.getLogger(__name__)

MODEL_FILES = ("config.json", "preprocessor_config.json", "README.md")
FROM_BASE = MODEL_FILES[:2]  # that PEFT does not write beside an adapter
WEIGHTS = {"model": "model.safetensors", "adapter": "adapter_model.safetensors"}
INDEX = "model.safetensors.index.json"
SUBGROUPS = "subgroups.csv"
PLOTS = ("roc", "precision_recall", "confusion_matrix", "reliability", "decision_curve", "predicted_vs_true")
PUBLISHED = (
    *MODEL_FILES, "model.safetensors", "model-*-of-*.safetensors", INDEX, "adapter_config.json",
    "adapter_model.safetensors", "metrics.json", "intervals.csv", SUBGROUPS, "calibration.csv", "counts.csv",
    "net_benefit.csv", "operating_points.csv", "operating_points.json", "history.json", "metrics.jsonl",
    *(f"plots/{name}.{kind}" for name in PLOTS for kind in ("png", "pdf")),
    "validation/metrics.json", "validation/intervals.csv", "validation/subgroups.csv",
    "validation/calibration.csv", "validation/counts.csv", "validation/net_benefit.csv",
    *(f"validation/plots/{name}.png" for name in PLOTS), "LICENSE*",
)  # fmt: skip
# Beside them on the Hub: code as `remote_code` names its files, and plots of an earlier version.
ALSO_SENT = ("*retfound*.py", "plots/*.png", "plots/*.pdf", "validation/plots/*.png")
PICKLES = ("*.bin", "*.pth", "*.pt", "*.ckpt", "*.pkl", "*.pickle", "*.joblib", "*.h5", "*.msgpack")
STATE = "state of a training, to resume it"
# Reason why the other files that a run, or Trainer, writes are left out.
PRIVATE = {
    "predictions*.csv": "names of images and patients",
    "splits.csv": "names of images and patients",
    "run.json": "paths of this machine",
    "rejected.csv": "names of images",
    "report.html": "figures of few patients",
    "characteristics.csv": "figures of few patients",
    "ungradable.csv": "figures of few patients",
    "previews/*": "pictures made from the training images",
    "training_args.bin": "settings of the training and paths of this machine",
    **dict.fromkeys(("optimizer*.pt", "optimizer*.bin", "scheduler*.pt", "scheduler*.bin"), STATE),
    **dict.fromkeys(("scaler*.pt", "rng_state*.pth", "random_states*.pkl"), STATE),
}
NO_PART = "not part of the model"
LINK = "links, which are not followed"
HIDDEN = "hidden or half-written"
LEFT = ("~", ".tmp", ".temp", ".part", ".partial", ".bak", ".orig", ".lock")
OFFICIAL_PREFIX = f"{OFFICIAL_ORGANISATION}/RETFound"


@dataclass(frozen=True)
class Contents:
    """A checked folder.

    Attributes:
        folder: the folder.
        kind: `model` or `adapter`.
        config: its `config.json`.
        files: paths within it that are published, sorted.
        left_out: paths that are not, with the reason.
        card: text that takes the place of its `README.md`, where that is a form that nobody has filled in.
    """

    folder: Path
    kind: str
    config: dict[str, Any]
    files: tuple[str, ...]
    left_out: dict[str, str]
    card: str | None = None

    @property
    def is_classifier(self) -> bool:
        """Whether it predicts; adapters always do."""
        architectures = self.config.get("architectures") or ()
        return self.kind == "adapter" or any("ForImageClassification" in name for name in architectures)


def read_contents(folder: str | Path) -> Contents:
    """Check a folder that `convert_checkpoint`, `pretrain` or `finetune` has made.

    Raises:
        BadModelError: no such folder, a missing file, damaged weights, or pickles.
    """
    folder = Path(folder)
    top = {path.name for path in folder.iterdir() if path.is_file()} if folder.is_dir() else set()
    pickles = sorted(
        name for name in top if any(fnmatch(name, pattern) for pattern in PICKLES) and _reason(name) == NO_PART
    )
    if pickles:
        raise BadModelError(
            f"{folder} holds {', '.join(pickles)}, which may be pickles and can run code where they are loaded; only "
            "safetensors are published: convert or remove them",
            model=folder,
        )
    kind = "adapter" if is_adapter(folder) else "model"
    weights = INDEX if kind == "model" and INDEX in top else WEIGHTS[kind]
    of_base = FROM_BASE if kind == "adapter" else ()
    if missing := sorted({*MODEL_FILES, weights} - top - set(of_base)):
        raise BadModelError(
            f"{folder} lacks {', '.join(missing)}; expected a folder written by convert_checkpoint, pretrain or "
            "finetune",
            model=folder,
        )
    needed = [path for path in folder.iterdir() if path.suffix in (".safetensors", ".json", ".md")]
    if links := sorted(path.name for path in needed if path.is_symlink() and may_be_published(path.name)):
        raise BadModelError(
            f"{folder} holds links ({', '.join(links)}), which are not followed: they may lead anywhere; give a copy "
            "of the folder, such as `cp -rL` makes",
            model=folder,
        )
    found = [path for path in folder.rglob("*") if path.is_symlink() or path.is_file()]
    paths = sorted(path.relative_to(folder).as_posix() for path in found)
    files = [path for path in paths if not _unsafe(folder, path) and any(_matches(path, name) for name in PUBLISHED)]
    for path in files:
        if path.endswith(".safetensors"):
            _check_weights(folder / path)
    left_out = {
        path: _unsafe(folder, path) or _reason(path)
        for path in paths if path not in files and not path.endswith(".py")
    }  # fmt: skip
    own = "config.json" in top
    config = read_json(folder / "config.json") if own else read_config(str(folder)).to_dict()
    contents = Contents(folder, kind, config, tuple(files), left_out)
    if kind == "adapter" and "README.md" in top and _is_blank(folder / "README.md"):
        logger.warning(
            f"{folder / 'README.md'} is PEFT's form, and nobody has filled it in: a card of what the folder tells is "
            "published in its place"
        )
        contents = replace(contents, card=_card_of_adapter(contents))
    return contents


def _is_blank(path: Path) -> bool:
    """Whether a card is the Hub's form, as PEFT writes it beside every adapter, without a line of anybody's own."""
    from huggingface_hub import ModelCard, ModelCardData

    form = ModelCard.from_template(ModelCardData()).text.splitlines()
    text = path.read_text(encoding="utf-8", errors="replace").partition("\n---\n")[2]
    own = {line.strip() for line in text.splitlines()} - {line.strip() for line in form}
    return bool(text) and all(re.fullmatch(r"### Framework versions|- PEFT [\w.+]+|", line) for line in own)


def _card_of_adapter(contents: Contents) -> str:
    """Card of an adapter that PEFT saved: what its files say, and what they do not."""
    folder, stored = contents.folder, read_json(contents.folder / ADAPTER_FILE)
    base, carried = stored.get("base_model_name_or_path"), _carried_licence(contents, {}, None)
    config = PreTrainedConfig.from_dict(contents.config)
    kind, names = problem_type_of(config), as_text(", ".join(config.id2label.values()))
    metadata = {"pipeline_tag": "image-classification", **cards.base_metadata(base, "adapter"), "library_name": "peft"}
    if carried:
        metadata["license"] = carried[0]
    named = (stored.get(key) or [] for key in ("target_modules", "modules_to_save"))
    targets, saved = (as_text(join_names([names] if isinstance(names, str) else sorted(names))) for names in named)
    rank = f" of rank {as_text(stored['r'])}" if stored.get("r") else ""
    version = as_text(stored.get("peft_version") or "of an unknown version")
    is_measured = bool(read_metrics(folder))
    return cards.render_card(
        "adapter",
        metadata,
        folder_name=folder.resolve().name,
        title=f"{as_text(folder.resolve().name)}: an adapter of PEFT ({as_text(stored.get('peft_type'))})",
        description=(
            f"Started from {cards.describe_start(base, None)}; trained: an adapter{rank} on {targets or 'its layers'}"
            f"{f'; whole: {saved}' if saved else ''}."
        ),
        problem_type=kind,
        targets=f"Each image has {PROBLEM_TYPES[kind].label}: {names}.",
        training_data="The folder does not say what the adapter was trained on.",
        preprocessing=cards.describe_preprocessing(load_processor(str(folder))),
        evaluation=cards.evaluation_text(folder, "the images of `metrics.json`") if is_measured else "Not measured.",
        calibration=cards.calibration_text(folder, kind),
        cost=cards.cost_text(None, None),
        provenance=f"Trained with PEFT {version}, which wrote no card.",
    )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a folder.

    Raises:
        BadModelError: it is damaged, or holds anything but an object.
    """
    try:
        return read_object(path)
    except BadDataError as error:
        raise BadModelError(str(error), model=path.parent) from error


def may_be_published(path: str) -> bool:
    """Whether a path of a repository is one that publishing may have put there."""
    return any(_matches(path, pattern) for pattern in (*PUBLISHED, *ALSO_SENT))


def _matches(path: str, pattern: str) -> bool:
    # The star of a pattern must not reach into subfolders, such as those of Trainer's checkpoints.
    return path.count("/") == pattern.count("/") and fnmatch(path, pattern)


def _unsafe(folder: Path, path: str) -> str:
    """Reason why a file is left out whatever its name: it may lie elsewhere, or be another program's."""
    if any(part.startswith(".") or part.endswith(LEFT) for part in path.split("/")):
        return HIDDEN
    return LINK if (folder / path).is_symlink() else ""


def _check_weights(path: Path) -> None:
    try:
        with safe_open(path, "pt") as file:
            file.keys()
    except (SafetensorError, OSError) as error:
        raise BadModelError(f"{path} is damaged or cut short: {one_line(error)}", model=path.parent) from error


def _reason(path: str) -> str:
    for pattern, reason in PRIVATE.items():
        if fnmatch(path.split("/")[-1], pattern) or fnmatch(path, pattern):
            return reason
    return NO_PART


def check_licence(contents: Contents, card: dict[str, Any], base_model: str | None = None) -> str:
    """Licence of the card, which has to be the one that the weights carry on.

    Args:
        contents: the folder.
        card: metadata of its card.
        base_model: Hub id or folder that the model was made from, besides what the folder says of it.

    Raises:
        BadModelError: the card has none, or another than the weights carry on.
    """
    stated, carried = card.get("license"), _carried_licence(contents, card, base_model)
    if carried is not None and stated != carried[0]:
        raise BadModelError(
            f"the card of {contents.folder} says license: {stated or 'nothing'}, and the weights carry on "
            f"{carried[0]}, since {carried[1]}; put `license: {carried[0]}` back into README.md",
            model=contents.folder,
        )
    if not stated:
        raise BadModelError(
            f"the card of {contents.folder} has no license; add one to the metadata of README.md, such as "
            "`license: apache-2.0`, if the weights are yours to license",
            model=contents.folder,
        )
    return stated


def _carried_licence(contents: Contents, card: dict[str, Any], base_model: str | None) -> tuple[str, str] | None:
    """Licence that the weights bring along and how that is known, None where nothing states one."""
    if stated := _stated(contents.config):
        return stated, "config.json says so (weights_license)"
    for base in [*([base_model] if base_model else []), *_bases(contents, card)]:
        if base.startswith(OFFICIAL_PREFIX):
            return OFFICIAL_LICENSE, f"it is made from {base}"
        if (Path(base) / "config.json").is_file() and (found := _stated(read_json(Path(base) / "config.json"))):
            return found, f"it is made from {base}"
    return None


def _bases(contents: Contents, card: dict[str, Any]) -> list[str]:
    named = card.get("base_model") or []
    bases = [named] if isinstance(named, str) else list(named)
    record = contents.folder / "run.json"
    if record.is_file():
        arguments = read_json(record).get("arguments", {})
        bases += [arguments.get(name) for name in ("model_name_or_path", "checkpoint")]
    if contents.kind == "adapter":
        bases.append(read_json(contents.folder / "adapter_config.json").get("base_model_name_or_path"))
    return [base for base in bases if base]


def _stated(config: dict[str, Any]) -> str | None:
    """Licence in a configuration; that of a wrapped encoder stands one level down."""
    return config.get("weights_license") or (config.get("encoder_config") or {}).get("weights_license")


def hide_small_groups(path: Path) -> None:
    """Rewrite a `subgroups.csv` without the groups of fewer than 10 patients and without gaps to them.

    Raises:
        BadDataError: a table without the number of patients.
    """
    rows = read_groups(path)
    kept = without_small_groups(rows)
    if len(kept) == len(rows):
        return
    with rows_of_csv(path, list(rows[0])) as write:
        for row in kept:
            write(list(row.values()))


def read_groups(path: Path) -> list[dict[str, str]]:
    """Rows of a `subgroups.csv`.

    Raises:
        BadDataError: the column, the group or the number of patients is missing in a row.
    """
    rows = read_rows(path)
    try:
        for row in rows:
            float(row["n"]), row["column"] + row["group"]
    except (KeyError, TypeError, ValueError) as error:
        raise BadDataError(
            f"{path} needs a column, a group and a number of patients (n) in each row; remove the file, or evaluate "
            "again",
            source=path,
        ) from error
    return rows


PLACEHOLDERS = ("{{", "}}", "{%", "TODO", "TBD", "FIXME", "[More Information Needed]", "[optional]", "lorem ipsum")
SECTIONS = ("Use", "Intended use", "Training data", "Preprocessing", "Limits", "Citation")
RESULT_SECTIONS = ("Evaluation", "Calibration")
METADATA = ("license", "library_name", "pipeline_tag", "tags")
DECIMALS = 3  # of a rounded value in the model-index, at least: one or two would fit many values


def read_card(folder: Path, text: str | None = None) -> tuple[dict[str, Any], str]:
    """Metadata and text of a folder's card, or of the `text` in its place, as the Hub's own library reads them.

    Raises:
        BadModelError: metadata that are not valid YAML, or not valid results.
    """
    import yaml
    from huggingface_hub import ModelCard

    path = folder / "README.md"
    try:
        card = ModelCard(path.read_text(encoding="utf-8") if text is None else text)
    except (OSError, ValueError, TypeError, LookupError, RecursionError, yaml.YAMLError) as error:
        raise BadModelError(
            f"the metadata of {path} are not valid for the Hub: {one_line(error)}", model=folder
        ) from error
    return card.data.to_dict(), card.text


def sections_of(text: str) -> dict[str, str]:
    """Titles of the second level and the text below each."""
    parts = re.split(r"^## +(.+?) *$", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def check_card(contents: Contents, metadata: dict[str, Any], text: str) -> None:
    """Raise BadModelError for the first fault that keeps a card from being published.

    Args:
        contents: the folder, with its result files.
        metadata, text: of the card, as `read_card` gives them.
    """

    def refuse(reason: str) -> NoReturn:
        raise BadModelError(f"{contents.folder / 'README.md'} {reason}", model=contents.folder)

    for line in [*text.splitlines(), *(f"{name}: {value}" for name, value in metadata.items())]:
        if any(word.lower() in line.lower() for word in PLACEHOLDERS):
            refuse(f"has a placeholder left: {line.strip()!r}; fill it in")
    if missing := [name for name in METADATA if not metadata.get(name)]:
        refuse(f"has no {missing[0]} in its metadata; add it")
    sections = sections_of(text)
    for name in SECTIONS + (RESULT_SECTIONS if contents.is_classifier else ()):
        if not sections.get(name, "").strip():
            refuse(f"has no section `## {name}`, or an empty one; write it")
    files = [contents.folder / name for name in (SUBGROUPS, f"validation/{SUBGROUPS}")]
    tables = [read_groups(path) for path in files if path.is_file()]
    shown, known = (
        {(row["column"], row["group"]) for rows in tables for row in select(rows)}
        for select in (without_small_groups, list)
    )
    for column, group in known - shown:
        start = without_escapes(f"| {as_text(column)} | {as_text(group)} |")
        if any(without_escapes(line.lstrip()).startswith(start) for line in text.splitlines()):
            refuse(f"shows the group {group!r} of {column!r}, which has fewer than {FEWEST} patients; remove its rows")
    if fault := _wrong_row(contents.folder, sections.get("Evaluation", "")):
        refuse(f"differs from the results in its section `## Evaluation`: {fault}; correct it, or evaluate again")
    if fault := _wrong_result(contents.folder, metadata):
        refuse(f"has a model-index that differs from the results: {fault}; correct it, or leave it out")


def _wrong_row(folder: Path, section: str) -> str | None:
    """A row of the generated tables that the section lacks, or has with other figures."""
    lines = [_as_older(line.strip()) for line in section.splitlines()]
    for table in evaluation_tables(folder):
        for row in map(_as_older, table.splitlines()):
            first = row.split(" | ")[0] + " | "
            changed = [line for line in lines if line.startswith(first) and line != row]
            if row not in lines:
                return f"{changed[0]!r} should be {row!r}" if changed else f"the row {row!r} is missing"
    return None


def _as_older(line: str) -> str:
    """A line as in older cards, which do not mark means over classes as such, and escape no names."""
    return re.sub(r", mean of (classes|targets)(?= \|)", "", without_escapes(line))


def _wrong_result(folder: Path, metadata: dict[str, Any]) -> str | None:
    """A value of the model-index that is not that of the metric of its own name, as it is rounded there."""
    for model in metadata.get("model-index") or []:
        for result in model["results"]:
            split = str((result.get("dataset") or {}).get("split") or "test")
            metrics = read_metrics(folder / "validation" if split in ("val", "validation") else folder)
            for metric in result["metrics"]:
                kind, value, own = str(metric["type"]), metric["value"], metrics.get(str(metric["type"]))
                if not isinstance(own, (int, float)):
                    return f"{kind} is not in metrics.json of the {split} split"
                decimals = len(str(value).partition(".")[2])
                if own != value and (decimals < DECIMALS or str(value) != f"{own:.{decimals}f}"):
                    return f"{kind} is {value}, and {own} in metrics.json"
                name = str(metric.get("name") or kind).casefold()
                if name not in (kind, title(kind).casefold()) and any(
                    name in (other, title(other).casefold()) for other in metrics
                ):
                    return f"{kind} is named {metric['name']}"
    return None
