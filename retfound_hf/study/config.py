"""Study file: YAML as pydantic models, every key known, every value checked, every path absolute."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import pydantic
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, ValidationInfo

from ..data.splits import SPLITS
from ..errors import CONTROL, BadArgumentError, BadDataError, join_names, nearest, shown
from ..evaluation.bootstrap import MIN_DEFINED
from ..evaluation.metrics import METRICS
from ..evaluation.predictions import Aggregate, Conflicts, Level
from ..finetuning.arguments import DataArguments, FinetuneArguments, training_types
from ..finetuning.methods import METHODS
from ..models.configuration_retfound import PRESETS
from ..models.loading import STARTING_POINTS
from ..options import option_words, parse_arguments, read_yaml
from ..vocabulary import MODALITIES

ANY = "any"  # the modality of a start that serves every data set
OF_THE_STUDY = (
    "model_name_or_path", "config_name", "data", "method", "seed", "train_fraction", "output_dir",
    "overwrite_output_dir", "resume_from_checkpoint", "keep_checkpoints", "do_train", "do_eval", "do_predict",
)  # fmt: skip
# Places and speeds: no part of what defines a result.
NEUTRAL = (
    "cache_dir", "image_root", "dataloader_num_workers", "dataloader_pin_memory", "dataloader_prefetch_factor",
    "dataloader_persistent_workers", "disable_tqdm", "logging_steps", "logging_strategy", "report_to", "log_level",
    "run_name", "save_total_limit", "per_device_eval_batch_size", "logging_first_step",
)  # fmt: skip
EXTERNAL_OPTIONS = (
    "label_columns", "image_column", "image_root", "patient_column", "split_fractions", "split_seed",
)  # fmt: skip
PATH_OPTIONS = ("image_root", "cache_dir")
LONGEST_NAME = 150  # bytes of what also names a folder


def finetune_options() -> tuple[str, ...]:
    """Options of the command `finetune` that a study file may set, those of every method among them."""
    fields = [field for kind in training_types() for field in dataclasses.fields(kind)]
    return tuple(dict.fromkeys(field.name for field in fields if field.init and field.name not in OF_THE_STUDY))


def training_options() -> tuple[str, ...]:
    """Those of a model or a method: all that do not say how data are read."""
    of_data = {field.name for field in dataclasses.fields(DataArguments)}
    return tuple(name for name in finetune_options() if name not in of_data)


T = TypeVar("T")


def _require(name: Any, known: Collection[str], what: str = "", key: str = "") -> Any:
    """`name`, which must be one of `known`; an error of a key has its place among the fields."""
    if name not in known:
        reason = f"{what}{name!r} is unknown{nearest(str(name), known)}; accepted: {join_names(known, 25)}"
        raise BadArgumentError(reason, field=key, value=name, accepted=known)
    return name


def _key_of(table: Collection[str]) -> AfterValidator:
    """A name in a table, which is looked up when a file is read: rows may have been added to it."""
    return AfterValidator(lambda name: _require(name, table))


def _label(name: str) -> str:
    fits = name.strip() and not CONTROL.search(name) and len(name.encode()) <= LONGEST_NAME
    if not fits or "/" in name or name.startswith("."):
        needed = f"one line of at most {LONGEST_NAME} bytes that has no / and starts with no dot"
        raise ValueError(f"{name!r} is not accepted as a name; give {needed}")
    return name


def _by_name(value: Any) -> Any:
    """Settings by name; a list of names maps to the names themselves."""
    if not isinstance(value, (list, Mapping)) or not value:
        raise ValueError(f"{shown(repr(value))} is not accepted; map names to settings")
    named = dict(value) if isinstance(value, Mapping) else {name: name for name in _distinct(value)}
    # Names are those of folders, and some disks tell no capitals from small letters.
    folded = Counter(str(name).casefold() for name in named)
    if twice := [name for name in named if folded[str(name).casefold()] > 1]:
        raise ValueError(f"{join_names(twice)} differ in capitals alone; give other names")
    return named


def _distinct(value: Any) -> Any:
    """A tuple without repetitions; a single value stands for one of it alone."""
    items = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    for item in items:
        if items.count(item) > 1 or isinstance(item, (list, dict)):
            raise ValueError(f"{item!r} is not accepted in the list; give each value once")
    return items


def _folder(info: ValidationInfo) -> Path:
    return info.context["folder"] if info.context else Path()


def _path(name: str, info: ValidationInfo) -> str:
    """Absolute path of what lies in the study file's folder, or else in the working directory.

    A name that is nothing in either (Hub id, preset) stays as it is.
    """
    path = _folder(info) / Path(name).expanduser()
    if path.exists() or name.startswith((".", "~")):
        return str(path.resolve())
    return str(Path(name).resolve()) if Path(name).exists() else name


def _starts(value: Any, info: ValidationInfo) -> Any:
    """Starts by modality: `retfound` stands for retfound-cfp and retfound-oct, any other text for all data sets."""
    if isinstance(value, str):
        names = {modality: f"{value}-{modality}" for modality in MODALITIES}
        known = {modality: name for modality, name in names.items() if name in (*STARTING_POINTS, *PRESETS)}
        return {ANY: value} if not known or (_folder(info) / value).exists() else known
    for key in value if isinstance(value, Mapping) else ():
        _require(key, (ANY, *MODALITIES), "key ", key)
    return value


Text = Annotated[str, Field(min_length=1)]
PathText = Annotated[Text, AfterValidator(_path)]
Label = Annotated[str, AfterValidator(_label)]
Named = Annotated[dict[Label, T], BeforeValidator(_by_name)]
Items = Annotated[tuple[T, ...], BeforeValidator(_distinct)]
Filled = Annotated[Items[T], Field(min_length=1)]
Shares = Annotated[Filled[Annotated[float, Field(gt=0, le=1)]], AfterValidator(lambda shares: tuple(sorted(shares)))]


class Section(BaseModel):
    """Mapping of the file, whose keys are the fields and some options of `finetune`.

    Attributes:
        accepted: gives the names of the options that may stand among the fields.
        main: field that is meant where a plain text stands for the mapping.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="allow")
    accepted: ClassVar[Callable[[], tuple[str, ...]]] = staticmethod(tuple)
    main: ClassVar[str | None] = None

    @pydantic.model_validator(mode="before")
    @classmethod
    def _check_keys(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, str) and cls.main:
            return {cls.main: value}
        if not isinstance(value, Mapping):
            return value
        options = cls.accepted()
        for key in value:
            _require(key, (*cls.model_fields, *options), "key ", str(key))
        given = {key: item for key, item in value.items() if item is not None or key in options}
        return given | {key: _path(str(given[key]), info) for key in PATH_OPTIONS if given.get(key)}

    @pydantic.model_serializer(mode="wrap")
    def _given(self, serialise: Any) -> dict[str, Any]:
        return {key: item for key, item in serialise(self).items() if item not in (None, {}) or key in self.options}

    @property
    def options(self) -> dict[str, Any]:
        """The options of `finetune` among the keys."""
        return dict(self.model_extra or {})


class Model(Section):
    """Starting point of fine-tuning, with options of `finetune` that hold for it; one of both fields is given.

    Attributes:
        model_name_or_path: folder, Hub id or name by modality (`cfp`, `oct`), or under `any` for all data sets.
        config_name: preset for random weights, likewise.
    """

    accepted = staticmethod(training_options)
    main = "model_name_or_path"
    model_name_or_path: Annotated[dict[str, PathText], BeforeValidator(_starts)] | None = None
    config_name: Annotated[dict[str, Text], BeforeValidator(_starts)] | None = None

    @pydantic.model_validator(mode="after")
    def _one_start(self) -> "Model":
        if bool(self.model_name_or_path) == bool(self.config_name):
            raise ValueError("give model_name_or_path (folder, Hub id or preset) or config_name, one of them")
        return self

    @property
    def option(self) -> str:
        """Name of the field that is given."""
        return "config_name" if self.config_name else "model_name_or_path"

    def start(self, modality: str | None) -> str | None:
        """Weights or preset for a data set of this modality; None where the model has nothing for it."""
        starts = self.config_name or self.model_name_or_path or {}
        return starts.get(modality or ANY, starts.get(ANY))


class Method(Section):
    """Way to adapt: a key of `METHODS`, with options of `finetune`."""

    accepted = staticmethod(training_options)
    main = "method"
    method: Annotated[str, _key_of(METHODS)]


class ExternalSet(Section):
    """Labelled set that no model of its data set was trained on.

    Attributes:
        data: as the command `evaluate` takes it.
        split: the part to evaluate on.
    """

    accepted = staticmethod(lambda: EXTERNAL_OPTIONS)
    main = "data"
    data: PathText
    split: Literal["all", "train", "val", "test"] = "all"


class DataSet(Section):
    """Task: a labelled set with train, val and test, and options of `finetune` such as `label_columns`.

    Attributes:
        data: as the command `finetune` takes it.
        modality: None where no model depends on it.
        external: sets for external evaluation by name; a list names other data sets, and means their test splits.
        cohort: folder that `build_cohort` made, for the report's flow chart.
    """

    accepted = staticmethod(finetune_options)
    main = "data"
    data: PathText
    modality: Annotated[str, _key_of(MODALITIES)] | None = None
    cohort: PathText | None = None
    external: dict[Label, ExternalSet] = {}

    @pydantic.field_validator("external", mode="before")
    @classmethod
    def _test_splits(cls, value: Any, info: ValidationInfo) -> Any:
        if isinstance(value, list):
            sets, keys = info.context["data"] if info.context else {}, ("data", *EXTERNAL_OPTIONS)
            others = {name: sets[_require(name, sets)] for name in _distinct(value)}
            whole = {name: other if isinstance(other, Mapping) else {"data": other} for name, other in others.items()}
            value = {name: {"split": "test"} | {key: other[key] for key in keys if key in other}
                     for name, other in whole.items()}  # fmt: skip
        for name in value if isinstance(value, Mapping) else ():
            if name in SPLITS:
                raise BadArgumentError(f"{name} stands for the data set's own; choose another name", field=name)
        return value

    @property
    def evaluated(self) -> tuple[str, ...]:
        """The sets that every job predicts: `val`, `test` and the external ones."""
        return ("val", "test", *self.external)


class Reporting(Section):
    """Comparison and display of results; a change of these runs no job again.

    Attributes:
        reference: label of the model that is tested against the others; the first one by default.
        level: what counts as one case; the images of a case are joined by `aggregation` of their scores.
        label_conflicts: images of a case with different labels: `error`, or `max` for the highest of them.
        resamples: of the bootstrap over patients; 0 for no intervals and tests over patients.
        subgroups: columns of the data, such as `camera`, in which groups are compared.
        sensitivity, specificity: operating points, each the rate at which the other one is given.
        examples: images shown per class that are right, and wrong, with the highest confidence.
    """

    reference: str = ""
    level: Level = "image"
    aggregation: Aggregate = "mean"
    label_conflicts: Conflicts = "error"
    resamples: Annotated[int, Field(ge=0)] = 1000
    subgroups: Items[str] = ()
    sensitivity: Shares = (0.9,)
    specificity: Shares = (0.9,)
    examples: Annotated[int, Field(ge=0)] = 4

    @pydantic.field_validator("resamples")
    @classmethod
    def _enough(cls, value: int) -> int:
        if 0 < value < MIN_DEFINED:
            raise ValueError(f"{value} are too few for a 95% interval; give at least {MIN_DEFINED}, or 0 for none")
        return value


class Options(Section):
    """Options of `finetune` for all jobs."""

    accepted = staticmethod(finetune_options)


class Study(Section):
    """One YAML file, checked in itself; `jobs.check_study` compares it with what lies on the disk.

    Attributes:
        models, methods, data: by label.
        fractions: of the training patients, ascending; 1 is all.
        metrics: as in `metrics.json`; the first that exists for a data set is its main one.
        finetune: options of the command `finetune` for all jobs. Those of a data set override them, those of a method
            override both, those of a model all others.
        keep_models: whether the trained weights stay in the folders of the jobs.
    """

    name: str
    models: Named[Model]
    methods: Named[Method]
    data: Named[DataSet]
    fractions: Shares = (1.0,)
    seeds: Filled[int] = (0, 1, 2, 3, 4)
    metrics: Filled[Annotated[str, _key_of(METRICS)]] = ("auroc", "auprc")
    finetune: Options = Options()
    keep_models: bool = False
    reporting: Reporting = Field(default=Reporting(), validate_default=True)

    @pydantic.field_validator("methods", mode="before")
    @classmethod
    def _named_methods(cls, value: Any) -> Any:
        methods = _by_name(value).items()
        return {name: {"method": name, **method} if isinstance(method, Mapping) else method or name
                for name, method in methods}  # fmt: skip

    @pydantic.field_validator("reporting")
    @classmethod
    def _known_reference(cls, value: Reporting, info: ValidationInfo) -> Reporting:
        labels = tuple(info.data.get("models", ()))  # empty where the models are wrong
        if value.reference and labels:
            _require(value.reference, labels, key="reference")
        return value if value.reference or not labels else value.model_copy(update={"reference": labels[0]})


def read_settings(path: str | Path) -> Study:
    """Read a study file; relative paths in it start at its folder, or else at the working directory.

    Raises:
        BadArgumentError: an unknown key (the nearest right one is named) or a value that is not accepted; `field` is
            its place, such as `data.Inside.external`. Whether the data and models exist is for `jobs.check_study`.
        BadDataError: no file, or one that is not a mapping in YAML.
    """
    path = Path(path)
    content = _read_yaml(path)
    content = {**content, "name": content.get("name") or path.stem}
    data = content["data"] if isinstance(content.get("data"), Mapping) else {}
    context = {"folder": path.absolute().parent, "data": data}
    try:
        return Study.model_validate(content, context=context)
    except ValidationError as error:
        found = error.errors()[0]
    cause, value = found.get("ctx", {}).get("error"), found["input"]
    own = cause.field if isinstance(cause, BadArgumentError) else ""
    field = ".".join(str(part) for part in (*found["loc"], own) if part not in ("[key]", ""))
    missing = found["type"] == "missing"
    reason = (
        "the key is missing"
        if missing
        else f"{shown(repr(value))} is not accepted; {found['msg'][0].lower()}{found['msg'][1:]}"
    )
    accepted = getattr(cause, "accepted", ())
    raise BadArgumentError(f"{path}: {field}: {cause or reason}", field=field, value=value, accepted=accepted)


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        example = "give a YAML file such as scripts/studies/synthetic.yaml"
        raise BadDataError(f"study file {path} does not exist; {example}", source=path)
    content = read_yaml(path)
    if not isinstance(content, Mapping):
        raise BadDataError(f"study file {path} must map names to values, found {type(content).__name__}", source=path)
    return content


def job_options(study: Study, model: Model, method: Method, data: DataSet) -> dict[str, Any]:
    """The options of `finetune` for a cell of the study, but for its fraction, seed and folder."""
    given = {**study.finetune.options, **data.options, **method.options, **model.options}
    return {**given, model.option: model.start(data.modality), "data": data.data, "method": method.method}


def parse_options(options: Mapping[str, Any], output_dir: str | Path = "unused") -> FinetuneArguments:
    """The arguments of `finetune`, checked as its command does."""
    types, options = training_types(), {**options, "output_dir": str(output_dir)}
    return FinetuneArguments(parse_arguments(*types, argv=option_words(options, types, "the study")))
