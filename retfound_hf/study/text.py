"""A study as the text of a study file: paths absolute, nothing left to defaults."""

from typing import Any

import yaml

from .settings import DataSet, Study


def study_text(study: Study) -> str:
    """YAML that `reading.read_settings` reads back into an equal study."""
    content: dict[str, Any] = {
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
    return yaml.safe_dump(content, sort_keys=False, allow_unicode=True, default_flow_style=None, width=120)


def _data_set(data: DataSet) -> dict[str, Any]:
    known = {"data": data.data, "modality": data.modality, "cohort": data.cohort, **data.finetune}
    if data.external:
        known["external"] = {one.name: {"data": one.data, "split": one.split, **one.options} for one in data.external}
    return {name: value for name, value in known.items() if value is not None}
