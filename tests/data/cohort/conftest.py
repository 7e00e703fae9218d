import pandas as pd
import pytest

from retfound_hf.data.cohort import Horizon, Question, build_cohort, default_unit
from retfound_hf.data.registry import DateReader, read_registry


@pytest.fixture
def registry(tmp_path):
    def make(images: pd.DataFrame, events: pd.DataFrame, patients: pd.DataFrame | None = None, **options):
        """The registry of tables that are written and read."""
        images.to_csv(tmp_path / "images.csv", index=False)
        events.to_csv(tmp_path / "events.csv", index=False)
        if patients is not None:
            patients.to_csv(tmp_path / "patients.csv", index=False)
            options["patients"] = tmp_path / "patients.csv"
        zone = options.pop("time_zone", None)
        reader = DateReader(options.pop("date_format", None), zone)
        return read_registry(tmp_path / "images.csv", tmp_path / "events.csv", reader=reader, **options)

    return make


@pytest.fixture
def build():
    def build(registry, event="stroke", horizon="1y", unit=None, exclude_prior=(), **options):
        """The cohort for a question in words; a handful of patients needs no splits."""
        options = {"split_fractions": (1, 0, 0)} | options
        unit = unit or default_unit(registry, (event,))
        return build_cohort(registry, Question((event,), Horizon.parse(horizon), unit, exclude_prior), **options)

    return build
