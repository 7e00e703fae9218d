"""The options of the command `finetune` that a study may set, and those that it sets itself."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..finetuning.arguments import DataArguments, FinetuneTrainingArguments, MethodArguments, ModelArguments
from ..runs.arguments import option_words, parse_arguments
from .settings import DataSet, Method, Model, Study

FINETUNE_TYPES = (ModelArguments, DataArguments, MethodArguments, FinetuneTrainingArguments)
OF_THE_STUDY = frozenset(
    {
        "model_name_or_path", "config_name", "data", "method", "seed", "train_fraction", "output_dir",
        "overwrite_output_dir", "resume_from_checkpoint", "keep_checkpoints", "do_train", "do_eval", "do_predict",
    }
)  # fmt: skip
FINETUNE_OPTIONS = tuple(
    field.name
    for kind in FINETUNE_TYPES
    for field in dataclasses.fields(kind)
    if field.init and field.name not in OF_THE_STUDY
)
_OF_DATA = {field.name for field in dataclasses.fields(DataArguments)}
TRAINING_OPTIONS = tuple(name for name in FINETUNE_OPTIONS if name not in _OF_DATA)  # of a model or a method
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
    return parse_options(options, "unused")[1]


def parse_options(options: Mapping[str, Any], output_dir: str | Path) -> tuple[Any, ...]:
    """The argument objects of `finetune`, checked as its command does."""
    options = {**options, "output_dir": str(output_dir)}
    return parse_arguments(*FINETUNE_TYPES, argv=option_words(options, FINETUNE_TYPES, "the study"))
