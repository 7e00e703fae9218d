"""A study as the text of a study file: nothing left to defaults, paths absolute, or cut where others read it."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from .settings import DataSet, Study

KEPT = 2  # parts of an absolute path that tell what it is, and not on whose machine
HOMES = ("home", "Users")
# An absolute path in a sentence, up to the first sign that ends a word.
IN_TEXT = re.compile(r"(?<![\w.~/…-])(?:/[^\s/'\"`:,;()<>]+){2,}")


def study_text(study: Study) -> str:
    """YAML that `reading.read_settings` reads back into an equal study."""
    return _dump(_content(study))


def shared_text(study: Study) -> str:
    """The same for others to read: of absolute paths the last two parts, more where these are those of another one."""
    content = _content(study)
    paths = [Path(text) for text in _texts(content) if Path(text).is_absolute()]
    return _dump(_mapped(content, lambda text: _last_parts(text, paths) if Path(text).is_absolute() else text))


def without_paths(sentence: str) -> str:
    """A sentence, such as an error, whose absolute paths are cut to their last two parts."""
    return IN_TEXT.sub(lambda found: _last_parts(found[0]), sentence)


def _content(study: Study) -> dict[str, Any]:
    return {
        "name": study.name,
        "models": {model.label: {model.option: dict(model.starts), **model.finetune} for model in study.models},
        "methods": {method.label: {"method": method.method, **method.finetune} for method in study.methods},
        "data": {data.name: _data_set(data) for data in study.data},
        "fractions": list(study.fractions),
        "seeds": list(study.seeds),
        "metrics": list(study.metrics),
        "finetune": dict(study.finetune),
        "keep_models": study.keep_models,
        "reporting": {name: list(value) if isinstance(value, tuple) else value
                      for name, value in vars(study.reporting).items()},
    }  # fmt: skip


def _dump(content: dict[str, Any]) -> str:
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _data_set(data: DataSet) -> dict[str, Any]:
    known = {"data": data.data, "modality": data.modality, "cohort": data.cohort, **data.finetune}
    if data.external:
        known["external"] = {one.name: {"data": one.data, "split": one.split, **one.options} for one in data.external}
    return {name: value for name, value in known.items() if value is not None}


def _texts(value: Any) -> Iterator[str]:
    """All text among the values of nested mappings and lists."""
    if isinstance(value, str):
        yield value
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(inner)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, dict):
        return {key: _mapped(inner, change) for key, inner in value.items()}
    if isinstance(value, list):
        return [_mapped(inner, change) for inner in value]
    return change(value) if isinstance(value, str) else value


def _last_parts(path: str, others: Sequence[Path] = ()) -> str:
    parts = Path(path).parts[1:]
    kept = KEPT
    while any(other.parts[-kept:] == parts[-kept:] and other != Path(path) for other in others) and kept < len(parts):
        kept += 1
    owner = 2 if parts and parts[0] in HOMES else 0  # of a home not the name of whose it is
    return "/".join(("…", *parts[max(owner, len(parts) - kept) :]))
