"""Registries: tables that cannot be true are refused with their rows; days, time zones and horizons."""

from datetime import date
from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from retfound_hf.data.cohort import Horizon
from retfound_hf.data.registry import DateReader, find_events, read_registry
from retfound_hf.errors import BadArgumentError, BadDataError

IMAGES = pd.DataFrame(
    [("a.png", "p1", "R", "2019-03-04"), ("b.png", "p1", "L", "2019-03-04"), ("c.png", "p2", "R", "2018-01-01")],
    columns=["image", "patient_id", "eye", "date"],
)
EVENTS = pd.DataFrame(
    [("p1", "R", "wet AMD", "2019-06-01"), ("p1", None, "last_follow_up", "2020-06-01"),
     ("p2", None, "death", "2020-01-01"), ("p2", None, "stroke", "2019-01-01")],
    columns=["patient_id", "eye", "event", "date"],
)  # fmt: skip


def changed(table, row, column, value):
    table = table.astype({column: object}) if column in table else table.assign(**{column: None})
    table.loc[row, column] = value
    return table


def refused(read) -> BadDataError:
    """The error of tables that cannot be, in one line."""
    with pytest.raises(BadDataError) as error:
        read()
    assert "\n" not in str(error.value)
    return error.value


@pytest.mark.parametrize(
    ("images", "rows"),
    [
        (changed(IMAGES, 1, "date", None), (2,)),
        (changed(IMAGES, 1, "patient_id", None), (2,)),
        (changed(IMAGES, 2, "date", "01/02/2018"), (3,)),
        (changed(IMAGES, 1, "eye", "X"), (2,)),
        (changed(IMAGES, 1, "eye", "OU"), (2,)),
        (changed(IMAGES, 1, "image", "a.png"), (1, 2)),
        (changed(IMAGES, 2, "date", "2020-01-02"), (3,)),  # after the patient's death
        (changed(IMAGES, 0, "date", "2020-06-02"), (1,)),  # after the last follow-up
        (changed(IMAGES, 2, "birth_date", "2018-01-02"), (3,)),
        (IMAGES.drop(columns="date"), ()),
        (IMAGES.drop(columns="patient_id"), ()),
        (IMAGES.rename(columns={"image": "file"}), ()),
    ],
)
def test_images_that_cannot_be(registry, images, rows):
    assert refused(lambda: registry(images, EVENTS)).rows == rows


@pytest.mark.parametrize(
    ("events", "rows"),
    [
        (changed(EVENTS, 3, "date", None), (4,)),
        (changed(EVENTS, 3, "event", None), (4,)),
        (changed(EVENTS, 3, "date", "soon"), (4,)),
        (changed(EVENTS, 0, "eye", "third"), (1,)),
        (changed(EVENTS, 3, "date", "2020-01-02"), (4,)),  # after the patient's death
        (changed(EVENTS, 0, "date", "2020-06-02"), (1,)),  # after the last follow-up
        (pd.concat([EVENTS, EVENTS.iloc[[0]]]), (1, 5)),
        (pd.concat([EVENTS, EVENTS.iloc[[2]]]), (3, 5)),
        (changed(EVENTS, 3, "birth_date", "2019-02-01"), (3,)),  # of the images
        (EVENTS.drop(columns="event"), ()),
        (changed(EVENTS, 3, "sex", "F").pipe(changed, 2, "sex", "M"), ("p2",)),
    ],
)
def test_events_that_cannot_be(registry, events, rows):
    assert refused(lambda: registry(IMAGES, events)).rows == rows


@pytest.mark.parametrize(
    "facts",
    [
        {"patient_id": ["p1", "p2"], "death": [None, "2020-01-02"]},  # the events say 2020-01-01
        {"patient_id": ["p2"], "last_follow_up": ["2020-02-01"]},  # after death
        {"patient_id": ["p2"], "birth_date": ["2020-02-01"]},  # after death
    ],
)
def test_patients_that_cannot_be(registry, facts):
    assert refused(lambda: registry(IMAGES, EVENTS, pd.DataFrame(facts))).rows == ("p2",)


def test_an_event_before_birth(registry):
    events = changed(EVENTS, 3, "date", "1950-01-01")
    people = pd.DataFrame({"patient_id": ["p2"], "birth_date": ["1950-01-02"]})
    assert refused(lambda: registry(IMAGES, events, people)).rows == (4,)


def test_what_is_known_of_a_patient_may_stand_in_any_table(registry):
    """Rows of events, or columns of images, of events or of a table of patients."""
    wanted = registry(IMAGES, EVENTS).patients
    told = {"patient_id": ["p1", "p2"], "last_follow_up": ["2020-06-01", None], "death": [None, "2020-01-01"]}
    people = pd.DataFrame(told)
    bare = EVENTS[~EVENTS["event"].isin(["death", "last_follow_up"])]
    by_columns = registry(IMAGES, bare, people).patients
    in_images = registry(IMAGES.merge(people), bare).patients
    in_events = registry(IMAGES, pd.concat([bare, people])).patients
    for found in (by_columns, in_images, in_events):
        pd.testing.assert_frame_equal(found.sort_index(), wanted.sort_index(), check_dtype=False)
    assert wanted.loc["p1", "follow_up_end"] == pd.Timestamp("2020-06-01")
    assert wanted.loc["p2", "follow_up_end"] == wanted.loc["p2", "death"] == pd.Timestamp("2020-01-01")


def test_follow_up_without_a_word_ends_with_the_last_record(registry):
    events = EVENTS.iloc[[0, 3]]
    found = registry(IMAGES, events).patients
    assert found["follow_up_end"].to_dict() == {"p1": pd.Timestamp("2019-06-01"), "p2": pd.Timestamp("2019-01-01")}
    assert not found["follow_up_given"].any()


def test_tables_of_two_time_zones(registry):
    images = IMAGES.assign(date=IMAGES["date"] + "T23:00:00Z")
    events = EVENTS.assign(date=EVENTS["date"] + "T01:00:00+09:00")
    source = refused(lambda: registry(images, events)).source
    assert "images.csv" in source and "events.csv" in source
    assert registry(images, EVENTS).images["date"].tolist() == pd.to_datetime(IMAGES["date"]).tolist()
    found = registry(images, events, time_zone=ZoneInfo("Asia/Tokyo"))
    assert found.images["date"].tolist() == (pd.to_datetime(IMAGES["date"]) + pd.Timedelta(days=1)).tolist()
    assert found.events["date"].min() == pd.Timestamp("2019-01-01")


def test_numbers_as_patients_and_codes_as_events(registry, build):
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": [7, 8], "date": [20190304, 20190304]})
    events = pd.DataFrame({"patient_id": [7, 8], "event": ["I63", "last_follow_up"], "date": [20190401, 20210101]})
    assert build(registry(images, events), "I63").table["label"].tolist() == [1, 0]


def test_an_event_called_na_is_not_a_missing_one(registry, build):
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": ["a", "b"], "date": ["2019-03-04"] * 2})
    events = pd.DataFrame({"patient_id": ["a", "b"], "event": ["NA", "death"], "date": ["2019-04-01", "2021-01-01"]})
    assert build(registry(images, events), "NA").table["label"].tolist() == [1, 0]


def test_unknown_events_and_eyes(registry, build):
    found = registry(IMAGES, EVENTS)
    with pytest.raises(BadArgumentError, match="did you mean stroke") as error:
        build(found, "strok")
    assert (error.value.value, error.value.accepted) == ("strok", ("death", "stroke", "wet AMD"))
    assert refused(lambda: build(found, "stroke", unit="eye")).rows == ("p2",)
    mixed = pd.concat([EVENTS, pd.DataFrame([("p2", None, "wet AMD", "2019-01-02")], columns=EVENTS.columns)])
    assert refused(lambda: build(registry(IMAGES, mixed), "wet AMD")).rows == ("p2",)
    without = registry(IMAGES.assign(eye=[None, "L", "R"]), EVENTS)
    assert refused(lambda: build(without, "wet AMD")).rows == ("a.png",)


@pytest.mark.parametrize("unit", [None, "patient"])
@pytest.mark.parametrize(
    ("event", "field"), [("stroke", "follow_up_end"), ("death", "follow_up_end"), ("strok", "event")]
)
def test_events_that_all_lie_after_the_closing_day_are_called_so(registry, build, event, field, unit):
    """A stroke of 2019-01-01 and one of 2020; names are looked up in the table as it was before it was closed."""
    found = registry(IMAGES, EVENTS, follow_up_end="2018-12-31")
    assert found.events.empty and found.closed == pd.Timestamp("2018-12-31")
    with pytest.raises(BadArgumentError) as error:
        build(found, event, unit=unit)
    assert error.value.field == field


def test_an_event_that_bars_and_was_not_seen_bars_nobody(registry, build):
    later = pd.DataFrame([("p1", None, "cancer", "2022-01-01")], columns=["patient_id", "eye", "event", "date"])
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": ["p1", "p2"], "date": ["2018-03-04"] * 2})
    events = pd.concat([EVENTS[EVENTS["event"] == "stroke"], later])
    found = registry(images, events, follow_up_end="2021-12-31")
    question = {"unit": "patient", "horizon": "1y"}
    wanted = build(found, "stroke", **question).table
    assert build(found, "stroke", exclude_prior=("cancer",), **question).table.equals(wanted)
    with pytest.raises(BadArgumentError) as error:
        build(found, "stroke", exclude_prior=("cancr",), **question)
    assert error.value.value == "cancr"


@pytest.mark.parametrize("day", ["", " ", "31/12/2018"])
def test_a_closing_day_that_is_not_a_date_is_refused(registry, day):
    with pytest.raises(BadArgumentError) as error:
        registry(IMAGES, EVENTS, follow_up_end=day)
    assert (error.value.field, error.value.value) == ("follow_up_end", day)


def test_parquet_tables_keep_their_dates(tmp_path):
    images = IMAGES.assign(date=pd.to_datetime(IMAGES["date"]))
    events = EVENTS.assign(date=pd.to_datetime(EVENTS["date"]).dt.date)
    images.to_parquet(tmp_path / "images.parquet")
    events.to_parquet(tmp_path / "events.parquet")
    found = read_registry(tmp_path / "images.parquet", tmp_path / "events.parquet")
    assert found.images["date"].tolist() == images["date"].tolist()
    assert found.events["date"].max() == pd.Timestamp("2020-01-01")


@pytest.mark.parametrize("index", [[10, 20, 30], [0, 1, 0], ["x", "y", "z"]])
def test_parquet_tables_with_an_index_of_pandas(tmp_path, build, index):
    EVENTS.to_parquet(tmp_path / "events.parquet")
    for number, images in enumerate((IMAGES, IMAGES.set_axis(index), changed(IMAGES, 1, "date", "x").set_axis(index))):
        images.to_parquet(tmp_path / f"{number}.parquet")
    plain, indexed = (
        build(read_registry(tmp_path / f"{number}.parquet", tmp_path / "events.parquet")).table for number in range(2)
    )
    assert len(plain) and indexed.equals(plain)
    assert refused(lambda: read_registry(tmp_path / "2.parquet", tmp_path / "events.parquet")).rows == (2,)


def test_an_event_in_two_spellings_is_refused_unless_both_are_asked_for(registry, build):
    """Otherwise those whose event is spelled in the other way would be controls."""
    events = pd.concat([EVENTS, pd.DataFrame([("p1", None, "Stroke", "2020-05-01")], columns=EVENTS.columns)])
    found = registry(IMAGES, events)
    with pytest.raises(BadArgumentError) as error:
        build(found, "stroke")
    assert error.value.accepted == ("stroke", "Stroke")
    assert set(find_events(found, ("stroke", "Stroke"))["patient_id"]) == {"p1", "p2"}
    other = registry(IMAGES, events.replace({"event": {"Stroke": "wet-amd"}}))
    with pytest.raises(BadArgumentError) as error:
        build(other, "stroke", exclude_prior=("wet AMD",))
    assert error.value.accepted == ("wet AMD", "wet-amd")


def test_patients_of_whom_there_is_no_image_are_counted_or_refused(registry):
    images = IMAGES.replace({"patient_id": {"p1": "031", "p2": "131"}})
    events = EVENTS.replace({"patient_id": {"p1": "031", "p2": "131"}})
    alike = {"patient_id": ["031", "777", "778"], "death": ["2020-06-01", None, None]}
    found = registry(images, pd.concat([events, events.iloc[[3]].assign(patient_id="900")]), pd.DataFrame(alike))
    assert found.without_images == {"events": 1, "patients": 2}
    for ids, rows in ((["31", "131"], ("31",)), (["A7", "A8"], ("A7", "A8"))):  # a lost zero, other patients
        people = pd.DataFrame({"patient_id": ids, "death": ["2020-06-01", None]})
        assert refused(lambda p=people: registry(images, events, p, follow_up_end="2021-01-01")).rows == rows
    assert refused(lambda: registry(IMAGES, events)).rows == ("031", "131")


def days(values, **options):
    return [None if pd.isna(day) else day.date() for day in DateReader(**options).read(pd.Series(values), "the date")]


@pytest.mark.parametrize(
    "written",
    ["2019-03-04", "20190304", 20190304, 20190304.0, " 2019-03-04 ", "2019-03-04T23:59", "2019-03-04 23:59:59.123",
     "2019-03-04T23:59:59Z", "2019-03-04T00:10:00+09:00", date(2019, 3, 4), pd.Timestamp("2019-03-04 23:30"),
     pd.Timestamp("2019-03-04 23:30", tz="Asia/Tokyo")],
)  # fmt: skip
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
    [(["2019-03-04", "03/04/2019", "25/12/2019"], (2, 3)), (["2019-02-30"], (1,)),
     (["2019-02-28", "2019-02-29"], (2,)), (["spring 2019"], (1,)), (["2019"], (1,)), (["2019-3-4"], (1,)),
     (["2019-03-04x"], (1,)), (["9999-12-31", "1753-01-01", None], (1, 2)),
     (["2019-03-04T01:00Z", "2019-03-04T01:00+01:00"], (1, 2)), (["2019-03-04T01:00Z", "2019-03-04T01:00"], (1, 2))],
)  # fmt: skip
def test_values_that_are_not_days_are_named(values, rows):
    with pytest.raises(BadDataError) as error:
        days(values)
    assert error.value.rows == rows


def test_dates_without_a_time_have_no_time_zone():
    assert days(["2019-03-04", "2019-03-05T10:00Z"]) == [date(2019, 3, 4), date(2019, 3, 5)]


def test_times_with_an_offset_are_brought_to_the_clinic():
    zone = ZoneInfo("Europe/London")
    values = ["2019-07-01T23:30:00Z", "2019-01-01T23:30:00Z", "2019-07-01T00:30:00+05:00", "2019-07-01 23:30"]
    assert days(values, time_zone=zone) == [date(2019, 7, 2), date(2019, 1, 1), date(2019, 6, 30), date(2019, 7, 1)]
    with pytest.raises(BadDataError) as error:
        days(["2019-07-01T25:30:00Z"], time_zone="Europe/London")
    assert error.value.rows == (1,)


@pytest.mark.parametrize(
    ("horizon", "day", "last"),
    [("1y", "2019-03-01", "2020-03-01"), ("1y", "2020-02-29", "2021-02-28"), ("4 years", "2020-02-29", "2024-02-29"),
     ("365d", "2019-03-01", "2020-02-29"), ("365d", "2020-03-01", "2021-03-01"), ("1m", "2019-01-31", "2019-02-28"),
     ("18m", "2018-08-31", "2020-02-29"), ("2w", "2019-12-25", "2020-01-08"), ("3Y", "2017-06-15", "2020-06-15")],
)  # fmt: skip
def test_horizons_follow_the_calendar(horizon, day, last):
    assert Horizon.parse(horizon).after(pd.Series([pd.Timestamp(day)]))[0] == pd.Timestamp(last)


@pytest.mark.parametrize("text", ["3", "y", "0y", "-1y", "1.5y", "3 fortnights", ""])
def test_what_is_no_horizon_is_refused(text):
    with pytest.raises(BadArgumentError) as error:
        Horizon.parse(text)
    assert (error.value.field, error.value.value) == ("horizon", text)


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
