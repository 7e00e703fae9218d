"""A card that tells the truth: complete, valid for the Hub, without placeholders, its numbers those of results."""

from pathlib import Path
from typing import Any

from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from ..models.card_results import INTERVAL, title
from ..runs.errors import RetFoundError
from .card_figures import RESULT_SECTIONS, figures_of, read_figure
from .card_prose import sections_of
from .contents import CITED, Contents, read_json
from .figure_words import CHOSEN, METRIC, SETTINGS
from .result_values import METRICS, RESULT_FILES, numbers_in, read_results, settings_of
from .small_groups import check_no_small_groups

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
                    known = ", ".join(name for name in metrics if "/" not in name and not name.endswith(INTERVAL))
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
