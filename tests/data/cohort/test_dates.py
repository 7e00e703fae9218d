from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from retfound_hf.data.cohort import Horizon
from retfound_hf.data.registry import DateReader
from retfound_hf.errors import BadArgumentError, BadDataError


def days(values, **options):
    return [None if pd.isna(day) else day.date() for day in DateReader(**options).read(pd.Series(values), "the date")]


@pytest.mark.parametrize(
    "written",
    [
        "2019-03-04",
        "20190304",
        20190304,
        20190304.0,
        " 2019-03-04 ",
        "2019-03-04T23:59",
        "2019-03-04 23:59:59.123",
        "2019-03-04T23:59:59Z",
        "2019-03-04T00:10:00+09:00",
        date(2019, 3, 4),
        pd.Timestamp("2019-03-04 23:30"),
        pd.Timestamp("2019-03-04 23:30", tz="Asia/Tokyo"),
    ],
)
def test_one_day_however_it_is_written(written):
    assert days([written]) == [date(2019, 3, 4)]


def test_missing_values_stay_missing():
    assert days(["2019-03-04", None, "", float("nan")]) == [date(2019, 3, 4), None, None, None]
    assert days(pd.Series([pd.Timestamp("2019-03-04"), pd.NaT])) == [date(2019, 3, 4), None]


def test_a_format_decides_which_number_is_the_day():
    assert days(["03/04/2019"], date_format="%d/%m/%Y") == [date(2019, 4, 3)]
    assert days(["03/04/2019"], date_format="%m/%d/%Y") == [date(2019, 3, 4)]
    assert days(["3.4.2019", None], date_format="%d.%m.%Y") == [date(2019, 4, 3), None]


@pytest.mark.parametrize(
    ("values", "rows"),
    [
        (["2019-03-04", "03/04/2019", "25/12/2019"], (2, 3)),
        (["2019-02-30"], (1,)),
        (["2019-02-28", "2019-02-29"], (2,)),
        (["spring 2019"], (1,)),
        (["2019"], (1,)),
        (["2019-3-4"], (1,)),
        (["2019-03-04x"], (1,)),
        (["9999-12-31", "1753-01-01", None], (1, 2)),
        (["2019-03-04T01:00Z", "2019-03-04T01:00+01:00"], (1, 2)),
        (["2019-03-04T01:00Z", "2019-03-04T01:00"], (1, 2)),
    ],
)
def test_values_that_are_not_days_are_named(values, rows):
    with pytest.raises(BadDataError) as error:
        days(values)
    assert error.value.rows == rows


def test_the_cure_of_an_ambiguous_date_is_named():
    with pytest.raises(BadDataError, match=r"'03/04/2019' in row 1 .*`date_format`"):
        days(["03/04/2019"])


def test_dates_without_a_time_have_no_time_zone():
    assert days(["2019-03-04", "2019-03-05T10:00Z"]) == [date(2019, 3, 4), date(2019, 3, 5)]


def test_times_with_an_offset_are_brought_to_the_clinic():
    zone = ZoneInfo("Europe/London")
    values = ["2019-07-01T23:30:00Z", "2019-01-01T23:30:00Z", "2019-07-01T00:30:00+05:00", "2019-07-01 23:30"]
    assert days(values, time_zone=zone) == [date(2019, 7, 2), date(2019, 1, 1), date(2019, 6, 30), date(2019, 7, 1)]
    with pytest.raises(BadDataError) as error:
        days(["2019-07-01T25:30:00Z"], time_zone="Europe/London")
    assert error.value.rows == (1,)


def test_a_wrong_format_is_said():
    with pytest.raises(BadDataError) as error:
        days(["04/03/2019", "2019-03-04"], date_format="%d/%m/%Y")
    assert error.value.rows == (2,)


@pytest.mark.parametrize(
    ("horizon", "day", "last"),
    [
        ("1y", "2019-03-01", "2020-03-01"),
        ("1y", "2020-02-29", "2021-02-28"),
        ("4 years", "2020-02-29", "2024-02-29"),
        ("365d", "2019-03-01", "2020-02-29"),
        ("365d", "2020-03-01", "2021-03-01"),
        ("1m", "2019-01-31", "2019-02-28"),
        ("18m", "2018-08-31", "2020-02-29"),
        ("2w", "2019-12-25", "2020-01-08"),
        ("3Y", "2017-06-15", "2020-06-15"),
    ],
)
def test_horizons_follow_the_calendar(horizon, day, last):
    assert Horizon.parse(horizon).after(pd.Series([pd.Timestamp(day)]))[0] == pd.Timestamp(last)


@pytest.mark.parametrize("text", ["3", "y", "0y", "-1y", "1.5y", "3 fortnights", ""])
def test_what_is_no_horizon_is_refused(text):
    with pytest.raises(BadArgumentError) as error:
        Horizon.parse(text)
    assert (error.value.field, error.value.value) == ("horizon", text)


def test_horizons_in_words():
    assert [str(Horizon.parse(text)) for text in ("1y", "18m", "1d")] == ["1 year", "18 months", "1 day"]


def test_a_format_with_an_offset_is_brought_to_the_clinic_too():
    """23:30 in Greenwich is half past midnight of London's summer."""
    zone = ZoneInfo("Europe/London")
    values = ["30/06/2011 23:30 +0000", "30/01/2011 23:30 +0000", "01/07/2011 03:30 +0530", None]
    expected = [date(2011, 7, 1), date(2011, 1, 30), date(2011, 6, 30), None]
    assert days(values, date_format="%d/%m/%Y %H:%M %z", time_zone=zone) == expected
    assert days(["2011-06-30T23:30+00:00"], time_zone=zone) == expected[:1]
    with pytest.raises(BadArgumentError) as error:
        DateReader("%d/%m/%Y", zone)
    assert error.value.field == "date_format"
