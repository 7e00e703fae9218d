"""A cohort on disk."""

import os
from pathlib import Path

import pandas as pd

from ...runs.files import write_json
from .building import Cohort
from .flow_plot import plot_flow


def write_cohort(cohort: Cohort, folder: Path, home: Path) -> None:
    """Write `cohort.csv`, `flow.json`, `flow.png` and `flow.svg` into `folder`, which will be moved to `home`.

    Paths of images are written relative to `home`, so that images and cohort may be moved together.
    """
    table = cohort.table.assign(image=[_relative(path, home) for path in cohort.table["image"]])
    for name in table:
        if pd.api.types.is_datetime64_any_dtype(table[name]):
            table[name] = table[name].dt.strftime("%Y-%m-%d")
    table.to_csv(folder / "cohort.csv", index=False, lineterminator="\n")
    write_json(
        folder / "flow.json", cohort.flow.as_dict() | {"classes": cohort.question.classes, "facts": cohort.facts}
    )
    for suffix in ("png", "svg"):
        plot_flow(cohort.flow, folder / f"flow.{suffix}")


def _relative(path: str, home: Path) -> str:
    try:
        return Path(os.path.relpath(path, home.resolve())).as_posix()
    except ValueError:  # another drive
        return path
