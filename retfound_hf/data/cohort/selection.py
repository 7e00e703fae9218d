"""Which visit of a patient or eye, and which image of a visit: choices that no order of rows can change."""

import numpy as np
import pandas as pd

from ...runs.errors import RetFoundError


def other_visits(images: pd.DataFrame, unit: str, visits: str, seed: int) -> pd.Series:
    """True for the images of visits that are not chosen.

    No choice looks ahead: it knows nothing of the outcome.

    Args:
        images: at risk, sorted; columns `patient_id`, `eye`, `date`.
        unit: "patient" for one visit per patient, otherwise one per eye.
        visits: "first" or "random" (seeded).
    """
    key = ["patient_id"] if unit == "patient" else ["patient_id", "eye"]
    if visits == "first":
        return images["date"] != images.groupby(key)["date"].transform("min")
    place = images.groupby(key)["date"].rank("dense").astype(int)
    number = place.groupby([images[name] for name in key]).transform("max")
    group = images.groupby(key).ngroup()  # numbered in the order of the sorted keys
    drawn = np.random.default_rng(seed).random(int(group.max()) + 1 if len(group) else 0)
    return place != 1 + (drawn[group] * number).astype(int)


def further_images(images: pd.DataFrame, quality_column: str | None) -> pd.Series:
    """True for all but one image of each eye and day: the first by name, or the best by `quality_column`.

    Raises:
        RetFoundError: no such column, or one that holds no numbers.
    """
    order = images[["path_in_table"]].assign(quality=0.0)
    if quality_column is not None:
        if quality_column not in images or not pd.api.types.is_numeric_dtype(images[quality_column]):
            raise RetFoundError(f"the images table has no column {quality_column!r} of numbers (--quality_column)")
        order["quality"] = images[quality_column].fillna(-np.inf)
    order = images.loc[order.sort_values(["quality", "path_in_table"], ascending=[False, True]).index]
    return order.assign(eye=order["eye"].fillna("")).duplicated(["patient_id", "eye", "date"])
