"""Patients on the card of a fine-tuned folder."""

import pandas as pd
import pytest

from retfound_hf.finetuning.finetune import _population


@pytest.mark.parametrize(
    ("ages", "told"),
    [
        ([30, 97], "mean 63.5, 30 to 90+."),
        ([30, 89], "mean 59.5, 30 to 89."),
        ([40, 89.6], "mean 64.8, 40 to 90+."),
        ([91, 103], "mean 90+, 90+."),
        ([50, None, "unknown"], "mean 50.0, 50 to 50."),
    ],
)
def test_no_age_above_89_is_told(ages, told):
    assert _population(pd.DataFrame({"age": ages})) == f"Age of the patients, by image: {told}"


def test_ages_that_nobody_knows_are_not_told():
    rows = pd.DataFrame({"age": [None, "?"], "sex": ["F", None]})
    assert _population(rows) == "Sex, by image: F 1, unknown 1."
