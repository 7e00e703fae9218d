"""The metrics as an `evaluate.Metric`, which stores batches and gathers them across processes."""

import shutil
import tempfile
import uuid
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value
from datasets import Sequence as SequenceFeature

from ..errors import RetFoundError
from .metrics import compute_metrics
from .validation import ProblemType, check_problem_type

DESCRIPTION = "Metrics of RETFound classifiers and regressors: see retfound_hf.evaluation.metrics."
INPUTS = """
Args:
    predictions: (N, C) softmax or sigmoid probabilities; (N,) or (N, T) numbers for regression. Stored as float32.
    references: (N,) classes; (N, C) of 0 and 1 for multi-label; (N,) or (N, T) numbers for regression.
"""


def load_metric(problem_type: ProblemType, class_names: Sequence[str], **options: Any) -> "RetFoundMetric":
    """A metric with `add_batch(predictions=, references=)` and `compute()`; nothing is fetched for it.

    Args:
        problem_type: as `config.problem_type` of transformers.
        class_names: names of the C classes or T targets.
        options: of `evaluate.Metric`. With `num_process` above 1, `compute` gathers the rows of all processes and
            returns None except in process 0; they must share `cache_dir` and `experiment_id`.

    Raises:
        RetFoundError: an unknown problem type, or several processes without a folder that they share.
    """
    return RetFoundMetric(problem_type, class_names, **options)


class RetFoundMetric(evaluate.Metric):
    """`compute` returns what `metrics.compute_metrics` gives for all rows that were added, and forgets them.

    The rows wait in files below `cache_dir`, by default in a temporary folder; `compute` removes them.
    """

    def __init__(self, problem_type: ProblemType, class_names: Sequence[str], **options: Any) -> None:
        check_problem_type(problem_type)
        self.problem_type = problem_type
        self._temporary: str | None = None
        self.class_names = tuple(class_names)
        if not options.get("cache_dir"):
            if options.get("num_process", 1) > 1:
                raise RetFoundError("num_process > 1 needs cache_dir, a folder that all processes share")
            self._temporary = options["cache_dir"] = tempfile.mkdtemp(prefix="retfound-metric-")
            weakref.finalize(self, shutil.rmtree, self._temporary, ignore_errors=True)
        super().__init__(**options)
        # Metrics of one process each may share a folder; those of one run must agree on the name.
        alone = self.num_process == 1
        self._experiment = f"{self.experiment_id}-{uuid.uuid4().hex}" if alone else self.experiment_id
        self._round = 0
        self._next_round()

    def _info(self) -> evaluate.MetricInfo:
        one_each = self.problem_type == "single_label_classification"
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation="",
            inputs_description=INPUTS,
            features=Features(
                {
                    "predictions": SequenceFeature(Value("float32")),
                    "references": Value("int64") if one_each else SequenceFeature(Value("float64")),
                }
            ),
        )

    def add(self, *, prediction: Any = None, reference: Any = None, **kwargs: Any) -> None:
        """Add one row."""
        self.add_batch(predictions=[prediction], references=[reference], **kwargs)

    def add_batch(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> None:
        """Add a batch of rows: arrays, tensors or lists."""
        if predictions is None or references is None:
            raise RetFoundError("a metric needs both predictions and references")
        predictions, references = _array(predictions), _array(references)
        if len(predictions) != len(references):
            raise RetFoundError(f"{len(predictions)} predictions for {len(references)} references; give one per row")
        if predictions.ndim == 1 and self.problem_type == "regression":
            predictions = predictions[:, None]
        if references.ndim == 1 and self.problem_type != "single_label_classification":
            references = references[:, None]
        outputs = len(self.class_names)
        if predictions.shape != (len(predictions), outputs):
            raise RetFoundError(f"predictions have shape {predictions.shape}; (N, {outputs}) fits {self.class_names}")
        Path(self.data_dir).mkdir(parents=True, exist_ok=True)
        super().add_batch(predictions=predictions, references=references, **kwargs)

    def compute(self, *, predictions: Any = None, references: Any = None, **kwargs: Any) -> dict[str, Any] | None:
        """Metrics of all rows added since the last call, and of those given here; None except in process 0."""
        try:
            return super().compute(predictions=predictions, references=references, **kwargs)
        finally:
            self._remove_files()
            self._next_round()

    def _compute(self, predictions: Any, references: Any) -> dict[str, float | None]:
        return compute_metrics(self.problem_type, np.asarray(references), np.asarray(predictions), self.class_names)

    def _next_round(self) -> None:
        # A name of its own for every round: no process can open a lock file that another is about to remove.
        self._module_info.experiment_id = f"{self._experiment}-{self._round}"
        self._round += 1

    def _remove_files(self) -> None:
        """What `evaluate` leaves behind: locks, and after an error the rows as well."""
        for lock in (*(self.filelocks or ()), self.filelock):
            if lock is not None:
                lock.release(force=True)
        if self.process_id == 0:
            for path in Path(self.data_dir).glob(f"{self.experiment_id}-*"):
                path.unlink(missing_ok=True)
        if self._temporary is not None:
            shutil.rmtree(self._temporary, ignore_errors=True)
        self.data = self.filelocks = self.filelock = self.cache_file_name = None


def _array(values: Any) -> np.ndarray:
    if hasattr(values, "detach"):  # a tensor: bfloat16 has no counterpart in NumPy
        values = values.detach().float().cpu() if values.is_floating_point() else values.detach().cpu()
    return np.asarray(values)
