"""Which patients are drawn for which metric, and what a draw makes of the metrics: shared by intervals and tests."""

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from .inputs import ProblemType, check_classification, check_problem_type, check_regression
from .patients import Patients, patients_of
from .weighted_metrics import OF_CLASSES, Statistic, classification_statistic, regression_statistic


@dataclass(frozen=True)
class MetricDraws:
    """Labels and scores of one model, checked.

    Attributes:
        truth: bool (N, C), the classes of each row; None for regression, which has none.
        rows: N.
    """

    truth: np.ndarray | None
    rows: int
    _build: Callable[..., Statistic]

    def statistic(self, names: Collection[str] | None = None) -> Statistic:
        """A function from weights of the rows to every metric; AUPRC, half of the work, is NaN unless in `names`."""
        return self._build(precision=names is None or any(name.startswith("auprc") for name in names))

    def passes(self, names: Collection[str], patients: Any) -> Iterator[tuple[list[str], Patients]]:
        """The metrics that are drawn together, and the units that are drawn for them.

        AUROC, balanced accuracy and macro recall do not depend on how frequent the classes are: their patients are
        drawn within their class. All other metrics do depend on it, and drawing within classes would hide that part
        of their variation: they get free draws.

        Raises:
            RetFoundError: see `patients.patients_of`.
        """
        for within in (False, True):
            chosen = [name for name in names if (self.truth is not None and of_classes(name)) == within]
            if chosen:
                yield chosen, patients_of(patients, self.rows, self.truth if within else None)


def metric_draws(problem_type: ProblemType, labels: Any, scores: Any, class_names: Sequence[str]) -> MetricDraws:
    """Check what `metrics.compute_metrics` takes, once for all draws."""
    check_problem_type(problem_type)
    if problem_type == "regression":
        labels, scores = check_regression(labels, scores)
        return MetricDraws(None, len(labels), lambda precision: regression_statistic(labels, scores, class_names))
    labels, scores, truth = check_classification(labels, scores, class_names, problem_type)
    single = problem_type == "single_label_classification"
    return MetricDraws(truth, len(labels), partial(classification_statistic, labels, scores, class_names, single))


def of_classes(name: str) -> bool:
    """Whether a metric conditions on the true class, so that patients are drawn within theirs."""
    return name.split("/", 1)[0] in OF_CLASSES
