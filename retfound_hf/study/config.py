"""Study file: YAML to settings, every key known, every value checked, every path absolute."""

import dataclasses
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from ..errors import RetFoundError, nearest
from ..evaluation.bootstrap import MIN_DEFINED
from ..evaluation.metrics import METRICS, metrics_for
from ..finetuning.arguments import DataArguments, FinetuneArguments, training_types
from ..finetuning.methods import METHODS
from ..options import option_words, parse_arguments

ANY = "any"  # the modality of a start that serves every data set


@dataclass(frozen=True)
class Model:
    """A starting point of fine-tuning.

    Attributes:
        label: as tables and figures call it.
        option: `model_name_or_path`, or `config_name` for random weights.
        starts: folder, Hub id or preset by modality (`cfp`, `oct`), or under `any` for all data sets.
        finetune: options of the command `finetune` that hold for this model.
    """

    label: str
    option: str
    starts: Mapping[str, str]
    finetune: Mapping[str, Any] = field(default_factory=dict)

    def start(self, modality: str | None) -> str | None:
        """What to start from on a data set of this modality; None where the model has nothing for it."""
        return self.starts.get(modality or ANY, self.starts.get(ANY))


@dataclass(frozen=True)
class Method:
    """A way to adapt: `method` is `full`, `lora` or `linear`, `finetune` its options."""

    label: str
    method: str
    finetune: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ExternalSet:
    """A labelled set that no model of the data set was trained on.

    Attributes:
        name: as tables and folders call it; never `val` or `test`.
        data: as the command `evaluate` takes it.
        split: the part to evaluate on; `all` by default.
        options: `label_columns`, `image_column`, `image_root` where they differ from the data set's.
    """

    name: str
    data: str
    split: str = "all"
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class DataSet:
    """A task: a labelled set with train, val and test, and sets for external evaluation.

    Attributes:
        name: as tables and figures call it.
        data: as the command `finetune` takes it.
        modality: `cfp`, `oct` or None where no model depends on it.
        cohort: folder in which the command `cohort` made the table, for the report's flow chart, or None.
        finetune: options of the command `finetune` that hold for this set, such as `label_columns`.
    """

    name: str
    data: str
    modality: str | None = None
    external: tuple[ExternalSet, ...] = ()
    cohort: str | None = None
    finetune: Mapping[str, Any] = field(default_factory=dict)

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The sets that every job predicts: `val`, `test` and the external ones."""
        return ("val", "test", *(external.name for external in self.external))


@dataclass(frozen=True)
class Reporting:
    """How results are compared and shown; a change of these runs no job again.

    Attributes:
        reference: label of the model that is tested against the others; the first one by default.
        level: what counts as one case: `image`, `eye` or `patient`; the images of a case are joined by `aggregation`.
        aggregation: `mean` or `max` of the probabilities.
        label_conflicts: images of a case with different labels: `error`, or `max` for the highest of them.
        resamples: of the bootstrap over patients, at least 100; 0 for no intervals and tests over patients.
        subgroups: columns of the data, such as `camera`, in which groups are compared.
        sensitivity, specificity: operating points, each the rate at which the other one is given.
        examples: images shown per class that are right, and wrong, with the highest confidence.
    """

    reference: str
    level: str = "image"
    aggregation: str = "mean"
    label_conflicts: str = "error"
    resamples: int = 1000
    subgroups: tuple[str, ...] = ()
    sensitivity: tuple[float, ...] = (0.9,)
    specificity: tuple[float, ...] = (0.9,)
    examples: int = 4


@dataclass(frozen=True)
class Study:
    """One YAML file, checked in itself; `checks` holds it against what lies on the disk.

    Attributes:
        fractions: of the training patients, ascending; 1 is all.
        metrics: as in `metrics.json`; the first that exists for a data set is its main one.
        finetune: options of the command `finetune` for all jobs. Those of a data set override them, those of a method
            override both, those of a model all others.
        keep_models: whether the trained weights stay in the folders of the jobs.
    """

    name: str
    models: tuple[Model, ...]
    methods: tuple[Method, ...]
    data: tuple[DataSet, ...]
    fractions: tuple[float, ...]
    seeds: tuple[int, ...]
    metrics: tuple[str, ...]
    reporting: Reporting
    finetune: Mapping[str, Any] = field(default_factory=dict)
    keep_models: bool = False

    def model(self, label: str) -> Model:
        """The model of that label."""
        return next(model for model in self.models if model.label == label)

    def data_set(self, name: str) -> DataSet:
        """The data set of that name."""
        return next(data for data in self.data if data.name == name)


class Section:
    """A mapping of the file, with its place for messages such as `study.yaml: data > aptos`."""

    def __init__(self, value: Any, place: str, known: Collection[str], required: Collection[str] = ()):
        if not isinstance(value, Mapping):
            raise RetFoundError(f"{place} must map names to values, found {value!r}; it may hold {', '.join(known)}")
        for key in value:
            if key not in known:
                accepted = f"accepted: {', '.join(known)}" if len(known) < 20 else "see retfound finetune --help"
                raise RetFoundError(f"{place}: unknown key {key!r}{nearest(str(key), known)}; {accepted}")
        for key in required:
            if value.get(key) is None:
                raise RetFoundError(f"{place}: {key} is missing")
        self.values, self.place = value, place

    def at(self, key: str) -> str:
        """The place of a key, for messages."""
        return f"{self.place} > {key}"

    def get(self, key: str, kind: type | tuple[type, ...], default: Any = None) -> Any:
        """The value of a key, of the asked type; a missing or empty one is the default."""
        value = self.values.get(key)
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            names = " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))
            raise RetFoundError(f"{self.at(key)}: {value!r} is not accepted; give one {names}")
        return value

    def choice(self, key: str, accepted: Sequence[str], default: Any = None) -> Any:
        """The value of a key, one of `accepted`."""
        return one_of(self.values.get(key, default), accepted, self.at(key)) if key in self.values else default

    def items(self, key: str, kind: type | tuple[type, ...], default: Sequence[Any] = ()) -> tuple[Any, ...]:
        """A list without repetitions; a single value stands for a list of one. It is empty only if `default` is."""
        value = self.values.get(key)
        if value is None:
            return tuple(default)
        listed = tuple(value if isinstance(value, list) else [value])
        if default and not listed:
            raise RetFoundError(f"{self.at(key)}: the list is empty; name at least one, or leave {key} out")
        for item in listed:
            if not isinstance(item, kind) or isinstance(item, bool):
                raise RetFoundError(f"{self.at(key)}: {item!r} is not accepted in this list")
            if listed.count(item) > 1:
                raise RetFoundError(f"{self.at(key)}: {item!r} is listed twice")
        return listed

    def shares(self, key: str, default: Sequence[float]) -> tuple[float, ...]:
        """Numbers above 0 and up to 1, in ascending order."""
        found = tuple(sorted(float(value) for value in self.items(key, (int, float), default)))
        wrong = [value for value in found if not 0 < value <= 1]
        if wrong:
            raise RetFoundError(f"{self.at(key)}: {wrong} is not accepted; give shares such as 0.1")
        return found

    def named(self, key: str) -> dict[str, Any]:
        """A mapping from names to settings; a list of names is one whose settings are empty or the names."""
        value = self.values.get(key)
        if not isinstance(value, (list, Mapping)) or not value:
            raise RetFoundError(f"{self.at(key)} must map names to settings, found {value!r}")
        for name in value:
            if not isinstance(name, str) or not name.strip() or "/" in name or name.startswith("."):
                raise RetFoundError(f"{self.at(key)}: {name!r} is no name; give text without / and no dot before it")
            if isinstance(value, list) and value.count(name) > 1:
                raise RetFoundError(f"{self.at(key)}: {name!r} is listed twice")
        return {name: name for name in value} if isinstance(value, list) else dict(value)


def one_of(value: Any, accepted: Collection[str], place: str) -> Any:
    """`value` if it is accepted, else an error that names the nearest."""
    if value not in accepted:
        raise RetFoundError(
            f"{place}: {value!r} is unknown{nearest(str(value), accepted)}; accepted: {', '.join(accepted)}"
        )
    return value


class _UniqueKeys(yaml.SafeLoader):
    """YAML in which a key that is written twice is an error: the first one would silently be lost."""


def _mapping(loader: _UniqueKeys, node: yaml.MappingNode) -> dict[Any, Any]:
    keys = [loader.construct_object(key, deep=True) for key, _ in node.value]
    repeated = [key for key in keys if keys.count(key) > 1]
    if repeated:
        raise yaml.YAMLError(f"key {repeated[0]!r} is written twice, line {node.start_mark.line + 1} on")
    return yaml.SafeLoader.construct_mapping(loader, node, deep=True)


_UniqueKeys.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_yaml(path: Path) -> Any:
    """The content of a YAML file, or one line about what is wrong with it."""
    if not path.is_file():
        raise RetFoundError(
            f"study file {path} does not exist; give a YAML file such as scripts/studies/synthetic.yaml"
        )
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_UniqueKeys)
    except UnicodeDecodeError as error:
        raise RetFoundError(
            f"study file {path} is not UTF-8 text (byte {error.start}: {error.object[error.start]:#04x}); save it as "
            "UTF-8"
        ) from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that no calendar has
        raise RetFoundError(f"study file {path} is not valid YAML: {' '.join(str(error).split())}") from error


OF_THE_STUDY = frozenset(
    {
        "model_name_or_path", "config_name", "data", "method", "seed", "train_fraction", "output_dir",
        "overwrite_output_dir", "resume_from_checkpoint", "keep_checkpoints", "do_train", "do_eval", "do_predict",
    }
)  # fmt: skip


def finetune_options(of_data: bool = True) -> tuple[str, ...]:
    """Options of `finetune` that a study takes; without those of the data for a model or a method."""
    names = [field.name for kind in training_types() if of_data or kind is not DataArguments
             for field in dataclasses.fields(kind) if field.init]  # fmt: skip
    return tuple(name for name in names if name not in OF_THE_STUDY)


# Where things lie and how fast they go: no part of what defines a result.
NEUTRAL = frozenset(
    {
        "cache_dir", "image_root", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
        "dataloader_persistent_workers", "disable_tqdm", "logging_steps", "logging_strategy", "report_to",
        "log_level", "run_name", "save_total_limit", "per_device_eval_batch_size", "logging_first_step",
    }
)  # fmt: skip


def job_options(study: Study, model: Model, method: Method, data: DataSet) -> dict[str, Any]:
    """The options of `finetune` for a cell of the study, but for its fraction, seed and folder."""
    given = {**study.finetune, **data.finetune, **method.finetune, **model.finetune}
    start = {model.option: model.start(data.modality)}
    return {**given, **start, "data": data.data, "method": method.method}


def data_arguments(study: Study, data: DataSet) -> DataArguments:
    """How a data set is read, whatever the model and the method."""
    options = {**study.finetune, **data.finetune, "data": data.data, "config_name": "retfound-tiny"}
    return parse_options(options, "unused").parts[1]


def parse_options(options: Mapping[str, Any], output_dir: str | Path) -> FinetuneArguments:
    """The arguments of `finetune`, checked as its command does."""
    options, types = {**options, "output_dir": str(output_dir)}, training_types()
    return FinetuneArguments(parse_arguments(*types, argv=option_words(options, types, "the study")))


MODALITIES = ("cfp", "oct")
EXTERNAL_OPTIONS = ("label_columns", "image_column", "image_root", "split_fractions", "split_seed")
PATH_OPTIONS = ("image_root", "cache_dir")
MAIN_METRICS = ("auroc", "auprc")
RESERVED_SETS = ("val", "test", "train")


def accepted_metrics(problem_type: str) -> tuple[str, ...]:
    """The metrics that exist for classes, or for numbers."""
    return tuple(metric.name for metric in metrics_for(problem_type))


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
        metrics=tuple(one_of(name, METRICS, file.at("metrics")) for name in file.items("metrics", str, MAIN_METRICS)),
        reporting=_reporting(file, models),
        finetune=_options(file.get("finetune", dict, {}), file.at("finetune"), folder),
        keep_models=file.get("keep_models", bool, False),
    )


def _model(name: str, value: Any, place: str, folder: Path) -> Model:
    place = f"{place} > {name}"
    value = value if isinstance(value, Mapping) else {"model_name_or_path": value}
    section = Section(value, place, ("model_name_or_path", "config_name", *finetune_options(of_data=False)))
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
    section = Section({} if value in (None, name) else value, place, ("method", *finetune_options(of_data=False)))
    method = one_of(section.values.get("method", name), METHODS, section.at("method"))
    return Method(name, method, {key: item for key, item in section.values.items() if key != "method"})


def _data_set(name: str, entries: Mapping[str, Any], place: str, folder: Path) -> DataSet:
    own = ("data", "modality", "external", "cohort")
    section = _data_section(entries[name], f"{place} > {name}", (*own, *finetune_options()))
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
    options = dict(Section(options, place, finetune_options()).values)
    return options | {name: here(str(options[name]), folder) for name in PATH_OPTIONS if options.get(name)}


def here(name: str, folder: Path) -> str:
    """A path that starts at the study file's folder, or at the working directory where nothing is there.

    A name that is nothing in either (Hub id, preset) stays as it is.
    """
    path = folder / Path(name).expanduser()
    if path.exists() or name.startswith((".", "~")):
        return str(path.resolve())
    return str(Path(name).resolve()) if Path(name).exists() else name
