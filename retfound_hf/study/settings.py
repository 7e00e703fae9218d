"""What a study is asked: models x methods x data sets x label fractions x seeds, as frozen dataclasses."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

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
