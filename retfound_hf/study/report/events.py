"""What a case's probability speaks of: of two exclusive classes the positive one, else the class that is said."""

import numpy as np

from ...evaluation.calibration import confidence_and_correctness
from ...evaluation.positive_class import positive_class
from ..folder import StudyResults
from ..outcomes import Outcomes
from .classes import class_titles

MOST_CLASSES = 6


def truth(outcomes: Outcomes) -> np.ndarray:
    """(cases, classes) bool."""
    if outcomes.labels.ndim == 2:
        return outcomes.labels.astype(bool)
    return outcomes.labels[:, None] == np.arange(len(outcomes.class_names))


def event_of(found: StudyResults, data: str) -> str:
    """Of two exclusive classes the positive one, as a reader calls it; empty for other tasks."""
    titles = class_titles(found, data)
    if len(titles) != 2 or found.task(data)["problem_type"] != "single_label_classification":
        return ""
    return list(titles.values())[positive_class(list(titles))]


def is_either_or(outcomes: Outcomes) -> bool:
    return outcomes.labels.ndim == 1 and len(outcomes.class_names) == 2


def positive(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray]:
    """Of two exclusive classes, the positive one's probabilities, and where it is true."""
    index = positive_class(outcomes.class_names)
    return outcomes.scores[:, index], outcomes.labels == index


def believed(outcomes: Outcomes) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    """Probabilities, whether what they speak of is true, and patients.

    Of the positive one of two exclusive classes, of the class that is said among many, or of every label.
    """
    if is_either_or(outcomes):
        return *positive(outcomes), outcomes.patients
    predicted, true = confidence_and_correctness(truth(outcomes), outcomes.scores, outcomes.labels.ndim == 1)
    patients = outcomes.patients
    return predicted, true, None if patients is None else np.repeat(patients, len(true) // len(patients))


def positive_classes(outcomes: Outcomes) -> list[tuple[int, str]]:
    """Of two exclusive classes the positive one; of many the most frequent ones."""
    if is_either_or(outcomes):
        index = positive_class(outcomes.class_names)
        return [(index, outcomes.class_names[index])]
    frequent = np.argsort(-truth(outcomes).sum(axis=0), kind="stable")[:MOST_CLASSES]
    return [(int(index), outcomes.class_names[index]) for index in sorted(frequent)]
