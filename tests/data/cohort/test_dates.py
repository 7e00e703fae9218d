from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from retfound_hf.data.dates import DateReader, Horizon
from retfound_hf.errors import RetFoundError


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
    ("values", "reason"),
    [
        (["2019-03-04", "03/04/2019", "25/12/2019"], "the date: '03/04/2019' in rows 2, 3 is not written "
         r"as 2019-03-04 \(year, month, day\); say which of its numbers is the day with --date_format, "
         "such as %d/%m/%Y"),
        (["2019-02-30"], "'2019-02-30' in row 1 is not a day of the calendar"),
        (["2019-02-29"], "not a day of the calendar"),
        (["spring 2019"], "'spring 2019' in row 1 is not written as 2019-03-04"),
        (["2019"], "'2019' in row 1 is not written"),
        (["2019-3-4"], "is not written"),
        (["2019-03-04x"], "is not written"),
        (["9999-12-31"], "'9999-12-31' in row 1 is not a day of the calendar; leave unknown dates empty"),
        (["1753-01-01"], "leave unknown dates empty"),
        (["2019-03-04T01:00Z", "2019-03-04T01:00+01:00"], "the date mixes time zones .*row 1.*row 2.*--time_zone"),
        (["2019-03-04T01:00Z", "2019-03-04T01:00"], "mixes time zones"),
    ],
)  # fmt: skip
def test_what_is_no_day_is_named(values, reason):
    with pytest.raises(RetFoundError, match=reason):
        days(values)


def test_dates_without_a_time_have_no_time_zone():
    assert days(["2019-03-04", "2019-03-05T10:00Z"]) == [date(2019, 3, 4), date(2019, 3, 5)]


def test_times_with_an_offset_are_brought_to_the_clinic():
    zone = ZoneInfo("Europe/London")
    values = ["2019-07-01T23:30:00Z", "2019-01-01T23:30:00Z", "2019-07-01T00:30:00+05:00", "2019-07-01 23:30"]
    assert days(values, time_zone=zone) == [date(2019, 7, 2), date(2019, 1, 1), date(2019, 6, 30), date(2019, 7, 1)]
    with pytest.raises(RetFoundError, match="'2019-07-01T25:30:00Z' in row 1 is no time"):
        days(["2019-07-01T25:30:00Z"], time_zone=zone)


def test_a_wrong_format_is_said():
    with pytest.raises(RetFoundError, match="'2019-03-04' in row 1 is no date of format %d/%m/%Y"):
        days(["2019-03-04"], date_format="%d/%m/%Y")


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
    with pytest.raises(RetFoundError, match="is not a span of time; give such as 1y, 18m, 52w or 365d"):
        Horizon.parse(text)


def test_horizons_in_words():
    assert [str(Horizon.parse(text)) for text in ("1y", "3y", "18m", "1d")] == [
        "1 year",
        "3 years",
        "18 months",
        "1 day",
    ]


def test_a_format_with_an_offset_is_brought_to_the_clinic_too():
    """23:30 in Greenwich is half past midnight of London's summer."""
    zone = ZoneInfo("Europe/London")
    values = ["30/06/2011 23:30 +0000", "30/01/2011 23:30 +0000", "01/07/2011 03:30 +0530", None]
    expected = [date(2011, 7, 1), date(2011, 1, 30), date(2011, 6, 30), None]
    assert days(values, date_format="%d/%m/%Y %H:%M %z", time_zone=zone) == expected
    assert days(["2011-06-30T23:30+00:00"], time_zone=zone) == expected[:1]
    with pytest.raises(RetFoundError, match="--date_format %d/%m/%Y has none; add %z, or leave out --time_zone"):
        DateReader("%d/%m/%Y", zone)
