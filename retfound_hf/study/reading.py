"""From the study's YAML file to `settings.Study`: every key known, every value checked, every path absolute."""

import dataclasses
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..evaluation.bootstrap import MIN_DEFINED
from ..runs.errors import RetFoundError
from .options import FINETUNE_OPTIONS, TRAINING_OPTIONS
from .section import Section, one_of, read_yaml
from .settings import ANY, DataSet, ExternalSet, Method, Model, Reporting, Study

METHODS = ("full", "lora", "linear")
MODALITIES = ("cfp", "oct")
CLASSIFICATION_METRICS = (
    "auroc", "auprc", "accuracy", "balanced_accuracy", "f1_macro", "precision_macro", "recall_macro", "kappa",
    "quadratic_kappa", "mcc", "hamming", "jaccard", "ece", "brier", "loss",
)  # fmt: skip
REGRESSION_METRICS = ("mae", "mse", "rmse", "r2", "pearson", "spearman", "loss")
METRICS = tuple(dict.fromkeys(CLASSIFICATION_METRICS + REGRESSION_METRICS))
LOWER_IS_BETTER = frozenset({"hamming", "ece", "brier", "loss", "mae", "mse", "rmse"})
EXTERNAL_OPTIONS = ("label_columns", "image_column", "image_root", "split_fractions", "split_seed")
PATH_OPTIONS = ("image_root", "cache_dir")
RESERVED_SETS = ("val", "test", "train")


def accepted_metrics(problem_type: str) -> tuple[str, ...]:
    """The metrics that exist for classes, or for numbers."""
    return REGRESSION_METRICS if problem_type == "regression" else CLASSIFICATION_METRICS


def read_settings(path: str | Path) -> Study:
    """Read a study file; relative paths in it start at its folder, see `here`.

    Raises:
        RetFoundError: an unknown key (the nearest right one is named), a value that is not accepted, or names that
            do not fit each other, with their place in the file. Whether the data and models exist is for `checks`.
    """
    path = Path(path)
    known = [field.name for field in dataclasses.fields(Study)]
    file = Section(read_yaml(path), str(path), known, required=("models", "methods", "data"))
    folder = path.absolute().parent
    models = tuple(_model(name, value, file.at("models"), folder) for name, value in file.named("models").items())
    entries = file.named("data")
    return Study(
        name=file.get("name", str, path.stem),
        models=models,
        methods=tuple(_method(name, value, file.at("methods")) for name, value in file.named("methods").items()),
        data=tuple(_data_set(name, entries, file.at("data"), folder) for name in entries),
        fractions=file.shares("fractions", (1.0,)),
        seeds=file.items("seeds", int, (0, 1, 2, 3, 4)),
        metrics=tuple(one_of(name, METRICS, file.at("metrics")) for name in file.items("metrics", str, METRICS[:2])),
        reporting=_reporting(file, models),
        finetune=_options(file.get("finetune", dict, {}), file.at("finetune"), folder),
        keep_models=file.get("keep_models", bool, False),
    )


def _model(name: str, value: Any, place: str, folder: Path) -> Model:
    place = f"{place} > {name}"
    value = value if isinstance(value, Mapping) else {"model_name_or_path": value}
    section = Section(value, place, ("model_name_or_path", "config_name", *TRAINING_OPTIONS))
    given = [option for option in ("model_name_or_path", "config_name") if section.values.get(option)]
    if len(given) != 1:
        raise RetFoundError(f"{place}: give model_name_or_path (folder, Hub id or preset) or config_name, one of them")
    starts = section.get(given[0], (str, dict))
    if isinstance(starts, str):
        each = starts == "retfound" and not (folder / starts).exists()  # the weights of either modality
        starts = {modality: f"{starts}-{modality}" for modality in MODALITIES} if each else {ANY: starts}
    starts = Section(starts, section.at(given[0]), (ANY, *MODALITIES)).values
    for start in starts.values():
        if not isinstance(start, str) or not start:
            raise RetFoundError(f"{section.at(given[0])}: {start!r} is not accepted; give a folder, Hub id or preset")
    if given[0] == "model_name_or_path":
        starts = {modality: here(start, folder) for modality, start in starts.items()}
    rest = {key: value for key, value in section.values.items() if key not in ("model_name_or_path", "config_name")}
    return Model(name, given[0], dict(starts), _options(rest, place, folder))


def _method(name: str, value: Any, place: str) -> Method:
    place = f"{place} > {name}"
    section = Section({} if value in (None, name) else value, place, ("method", *TRAINING_OPTIONS))
    method = one_of(section.values.get("method", name), METHODS, section.at("method"))
    return Method(name, method, {key: item for key, item in section.values.items() if key != "method"})


def _data_set(name: str, entries: Mapping[str, Any], place: str, folder: Path) -> DataSet:
    own = ("data", "modality", "external", "cohort")
    section = _data_section(entries[name], f"{place} > {name}", (*own, *FINETUNE_OPTIONS))
    cohort = section.get("cohort", str)
    return DataSet(
        name=name,
        data=here(section.get("data", str), folder),
        modality=section.choice("modality", MODALITIES),
        external=tuple(_external_sets(section, entries, folder)),
        cohort=here(cohort, folder) if cohort else None,
        finetune=_options(
            {key: value for key, value in section.values.items() if key not in own}, section.place, folder
        ),
    )


def _external_sets(parent: Section, entries: Mapping[str, Any], folder: Path) -> Iterator[ExternalSet]:
    """The external sets of a data set; in a list, names of other data sets of the study stand for their test split."""
    if not parent.values.get("external"):
        return
    names_only = isinstance(parent.values["external"], list)
    for name, value in parent.named("external").items():
        place = f"{parent.at('external')} > {name}"
        if name in RESERVED_SETS:
            raise RetFoundError(f"{place}: the name {name} stands for the data set's own; give another one")
        if names_only:
            other = entries[one_of(name, entries, place)]
            other = other if isinstance(other, Mapping) else {"data": other}
            value = {"split": "test"} | {key: other[key] for key in ("data", *EXTERNAL_OPTIONS) if key in other}
        section = _data_section(value, place, ("data", "split", *EXTERNAL_OPTIONS))
        options = {key: item for key, item in section.values.items() if key in EXTERNAL_OPTIONS}
        yield ExternalSet(
            name=name,
            data=here(section.get("data", str), folder),
            split=section.choice("split", ("all", "train", "val", "test"), "all"),
            options=_options(options, place, folder),
        )


def _data_section(value: Any, place: str, known: tuple[str, ...]) -> Section:
    return Section({"data": value} if isinstance(value, str) else value, place, known, required=("data",))


def _reporting(file: Section, models: tuple[Model, ...]) -> Reporting:
    known = [field.name for field in dataclasses.fields(Reporting)]
    section = Section(file.values.get("reporting") or {}, file.at("reporting"), known)
    labels = [model.label for model in models]
    whole = {name: section.get(name, int, default) for name, default in (("resamples", 1000), ("examples", 4))}
    for name, value in whole.items():
        if value < 0:
            raise RetFoundError(f"{section.at(name)}: {value} must be at least 0")
    if 0 < whole["resamples"] < MIN_DEFINED:
        raise RetFoundError(
            f"{section.at('resamples')}: {whole['resamples']} are too few for a 95% interval; give at least "
            f"{MIN_DEFINED}, or 0 for no intervals over patients"
        )
    return Reporting(
        reference=section.choice("reference", labels, labels[0]),
        level=section.choice("level", ("image", "eye", "patient"), "image"),
        aggregation=section.choice("aggregation", ("mean", "max"), "mean"),
        label_conflicts=section.choice("label_conflicts", ("error", "max"), "error"),
        subgroups=section.items("subgroups", str),
        sensitivity=section.shares("sensitivity", (0.9,)),
        specificity=section.shares("specificity", (0.9,)),
        **whole,
    )


def _options(options: Mapping[str, Any], place: str, folder: Path) -> dict[str, Any]:
    """Options of `finetune`, their paths absolute."""
    options = dict(Section(options, place, FINETUNE_OPTIONS).values)
    return options | {name: here(str(options[name]), folder) for name in PATH_OPTIONS if options.get(name)}


def here(name: str, folder: Path) -> str:
    """A path that starts at the study file's folder, or at the working directory where nothing is there.

    A name that is nothing in either (Hub id, preset) stays as it is.
    """
    path = folder / Path(name).expanduser()
    if path.exists() or name.startswith((".", "~")):
        return str(path.resolve())
    return str(Path(name).resolve()) if Path(name).exists() else name
