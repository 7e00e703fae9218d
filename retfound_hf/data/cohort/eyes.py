"""Which eye: the spellings of clinics and machines."""

import pandas as pd

from ...runs.errors import RetFoundError
from ..labels import as_text
from .dates import rows_of

SPELLINGS = {
    "R": ("r", "re", "od", "right", "right eye"),
    "L": ("l", "le", "os", "left", "left eye"),
    "both": ("both", "both eyes", "ou", "b", "bilateral"),
}
EYES = {spelling: eye for eye, spellings in SPELLINGS.items() for spelling in spellings}


def read_eyes(table: pd.DataFrame, source: object, both: bool) -> pd.Series:
    """Column `eye` as "R", "L" or "both"; None where it is empty, or where there is no such column.

    Args:
        both: whether "both" is accepted: an event may befall both eyes, a photograph shows one.

    Raises:
        RetFoundError: names the rows with another value.
    """
    if "eye" not in table:
        return pd.Series(None, index=table.index, dtype=object)
    text = as_text(table["eye"]).replace("", None)
    eyes = text.map(lambda value: EYES.get(value.casefold(), "?"), na_action="ignore").astype(object)
    wrong = (eyes == "?") | ((eyes == "both") & (not both))
    if wrong.any():
        accepted = "R, L (OD, OS, right, left)" + (", both (OU)" if both else "")
        raise RetFoundError(
            f"the eye of {source}: {text[wrong].iloc[0]!r} in {rows_of(wrong)}; accepted are {accepted} or no value"
        )
    return eyes.where(eyes.notna(), None)
