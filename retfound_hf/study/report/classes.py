"""Classes as a reader calls them: the labels 0 and 1 of a cohort by what they stand for."""

import json
from pathlib import Path
from typing import Any

from ..folder import StudyResults


def read_flow(found: StudyResults, data: str) -> dict[str, Any]:
    """`flow.json` of the cohort that a data set names; empty where it names none, or it is not here any more."""
    cohort = found.study.data_set(data).cohort
    path = Path(cohort or "", "flow.json")
    return json.loads(path.read_text(encoding="utf-8")) if cohort and path.is_file() else {}


def class_titles(found: StudyResults, data: str) -> dict[str, str]:
    """What to call each class of a data set."""
    own = read_flow(found, data).get("classes", {})
    return {name: own.get(name, name) for name in found.task(data)["class_names"]}
