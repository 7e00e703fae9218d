"""What cannot be true of a registry is said in one line that names the rows."""

from zoneinfo import ZoneInfo

import pandas as pd
import pytest

from retfound_hf.data.registry import known_events, read_registry
from retfound_hf.errors import RetFoundError

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


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (changed(IMAGES, 1, "date", None), "images.csv: 1 of 3 rows have no date: row 2"),
        (changed(IMAGES, 1, "patient_id", None), "images.csv: 1 of 3 rows name no patient: row 2"),
        (changed(IMAGES, 2, "date", "01/02/2018"), "date of .*images.csv: '01/02/2018' in row 3 .*--date_format"),
        (changed(IMAGES, 1, "eye", "X"), r"the eye of .*images.csv: 'X' in row 2; accepted are R, L \(OD, OS"),
        (changed(IMAGES, 1, "eye", "OU"), "'OU' in row 2; accepted are R, L"),
        (
            changed(IMAGES, 1, "image", "a.png"),
            r"2 of 3 rows list an image that another row lists too \(a.png\): rows 1",
        ),
        (changed(IMAGES, 2, "date", "2020-01-02"), "1 of 3 rows have an image dated after the patient's death: row 3"),
        (changed(IMAGES, 0, "date", "2020-06-02"), "an image dated after the patient's last follow-up: row 1"),
        (changed(IMAGES, 2, "birth_date", "2018-01-02"), "an image dated before the patient's birth: row 3"),
        (IMAGES.drop(columns="date"), "images.csv has no column 'date'; its columns are image, patient_id, eye"),
        (IMAGES.drop(columns="patient_id"), "images.csv has no column 'patient_id'"),
        (IMAGES.rename(columns={"image": "file"}), "images.csv has no column 'image'; .*`image_column`"),
    ],
)
def test_images_that_cannot_be(registry, images, reason):
    with pytest.raises(RetFoundError, match=reason) as caught:
        registry(images, EVENTS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("events", "reason"),
    [
        (changed(EVENTS, 3, "date", None), "events.csv: 1 of 4 rows have an event without a date: row 4"),
        (changed(EVENTS, 3, "event", None), "events.csv: 1 of 4 rows have a date without an event: row 4"),
        (changed(EVENTS, 3, "date", "soon"), "the date of .*events.csv: 'soon' in row 4"),
        (changed(EVENTS, 0, "eye", "third"), r"'third' in row 1; accepted are R, L .*both \(OU\)"),
        (changed(EVENTS, 3, "date", "2020-01-02"), "1 of 2 rows have an event dated after the patient's death: row 4"),
        (changed(EVENTS, 0, "date", "2020-06-02"), "an event dated after the patient's last follow-up: row 1"),
        (pd.concat([EVENTS, EVENTS.iloc[[0]]]), "2 of 5 rows are duplicates .*: rows 1, 5"),
        (pd.concat([EVENTS, EVENTS.iloc[[2]]]), "2 of 5 rows are duplicates .*: rows 3, 5"),
        (changed(EVENTS, 3, "birth_date", "2019-02-01"), "an image dated before the patient's birth: row 3"),
        (EVENTS.drop(columns="event"), "events.csv has no column 'event'"),
        (changed(EVENTS, 3, "sex", "F").pipe(changed, 2, "sex", "M"), r"patient p2 has more than one sex \(M in"),
    ],
)
def test_events_that_cannot_be(registry, events, reason):
    with pytest.raises(RetFoundError, match=reason) as caught:
        registry(IMAGES, events)
    assert "\n" not in str(caught.value)


def test_an_event_before_birth(registry):
    events = changed(EVENTS, 3, "date", "1950-01-01")
    people = pd.DataFrame({"patient_id": ["p2"], "birth_date": ["1950-01-02"]})
    with pytest.raises(RetFoundError, match=r"1 of \d rows have an event dated before the patient's birth: row 4"):
        registry(IMAGES, events, people)


def test_patients_that_cannot_be(registry):
    people = pd.DataFrame({"patient_id": ["p1", "p2"], "death": [None, "2020-01-02"]})
    said = r"patient p2 has more than one death \(2020-01-02 in .*patients.csv and 2020-01-01 in .*events.csv\)"
    with pytest.raises(RetFoundError, match=said):
        registry(IMAGES, EVENTS, people)
    people = pd.DataFrame({"patient_id": ["p2"], "last_follow_up": ["2020-02-01"]})
    with pytest.raises(RetFoundError, match=r"1 patients are followed up after their death \(p2\)"):
        registry(IMAGES, EVENTS, people)
    people = pd.DataFrame({"patient_id": ["p2"], "birth_date": ["2020-02-01"]})
    with pytest.raises(RetFoundError, match=r"1 patients die before their birth \(p2\)"):
        registry(IMAGES, EVENTS, people)


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
    with pytest.raises(
        RetFoundError, match=r"time zones are mixed \(\+00:00 in .*images.csv and \+09:00 in .*events.csv"
    ):
        registry(images, events)
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
    with pytest.raises(
        RetFoundError, match="holds no event 'strok'; did you mean stroke\\?; its events are death, stroke"
    ):
        build(found, "strok")
    with pytest.raises(
        RetFoundError, match=r"1 of 1 events stroke name no eye \(patients p2\); give it .*--unit patient"
    ):
        build(found, "stroke", unit="eye")
    mixed = pd.concat([EVENTS, pd.DataFrame([("p2", None, "wet AMD", "2019-01-02")], columns=EVENTS.columns)])
    with pytest.raises(RetFoundError, match="1 of 2 events wet AMD name no eye"):
        build(registry(IMAGES, mixed), "wet AMD")
    without = registry(IMAGES.assign(eye=[None, "L", "R"]), EVENTS)
    with pytest.raises(RetFoundError, match=r"unit eye needs the eye of 1 images \(a.png\)"):
        build(without, "wet AMD")


def test_events_that_all_lie_after_the_closing_day_are_called_so(registry, build):
    """A stroke of 2019-01-01 and one of 2020; names are looked up in the table as it was before it was closed."""
    found = registry(IMAGES, EVENTS, follow_up_end="2018-12-31")
    assert found.events.empty and found.closed == pd.Timestamp("2018-12-31")
    said = "all events stroke lie after --follow_up_end 2018-12-31, the first on 2019-01-01, and were not seen; give a"
    for unit in (None, "patient"):
        with pytest.raises(RetFoundError, match=said) as caught:
            build(found, "stroke", unit=unit)
        assert "\n" not in str(caught.value)
    with pytest.raises(RetFoundError, match=r"all events death lie after .* the first on 2020-01-01"):
        build(found, "death")
    with pytest.raises(RetFoundError, match="no event 'strok'; did you mean stroke\\?; its events are death, stroke"):
        build(found, "strok")


def test_an_event_that_bars_and_was_not_seen_bars_nobody(registry, build):
    later = pd.DataFrame([("p1", None, "cancer", "2022-01-01")], columns=["patient_id", "eye", "event", "date"])
    images = pd.DataFrame({"image": ["a", "b"], "patient_id": ["p1", "p2"], "date": ["2018-03-04"] * 2})
    events = pd.concat([EVENTS[EVENTS["event"] == "stroke"], later])
    found = registry(images, events, follow_up_end="2021-12-31")
    question = {"unit": "patient", "horizon": "1y"}
    wanted = build(found, "stroke", **question).table
    assert build(found, "stroke", exclude_prior=("cancer",), **question).table.equals(wanted)
    with pytest.raises(RetFoundError, match="holds no event 'cancr'; did you mean cancer"):
        build(found, "stroke", exclude_prior=("cancr",), **question)


def test_a_table_without_any_event_says_so(registry, build):
    events = pd.DataFrame({"patient_id": ["p1"], "event": ["last_follow_up"], "date": ["2021-01-01"]})
    with pytest.raises(RetFoundError, match="holds no event 'stroke'; it holds none at all"):
        build(registry(IMAGES, events), "stroke")


@pytest.mark.parametrize("day", ["", " "])
def test_an_empty_closing_day_is_refused(registry, day):
    with pytest.raises(RetFoundError, match=r"--follow_up_end '' names no day; give the one .* or leave it out"):
        registry(IMAGES, EVENTS, follow_up_end=day)


def test_tables_that_are_not_there(tmp_path):
    with pytest.raises(RetFoundError, match=r"table .*images.csv does not exist; give a CSV or parquet file"):
        read_registry(tmp_path / "images.csv", tmp_path / "events.csv")


def test_parquet_tables_keep_their_dates(tmp_path):
    images = IMAGES.assign(date=pd.to_datetime(IMAGES["date"]))
    events = EVENTS.assign(date=pd.to_datetime(EVENTS["date"]).dt.date)
    images.to_parquet(tmp_path / "images.parquet")
    events.to_parquet(tmp_path / "events.parquet")
    found = read_registry(tmp_path / "images.parquet", tmp_path / "events.parquet")
    assert found.images["date"].tolist() == images["date"].tolist()
    assert found.events["date"].max() == pd.Timestamp("2020-01-01")


def test_an_event_in_two_spellings_is_refused_unless_both_are_asked_for(registry, build):
    """Otherwise those whose event is spelled in the other way would be controls."""
    events = pd.concat([EVENTS, pd.DataFrame([("p1", None, "Stroke", "2020-05-01")], columns=EVENTS.columns)])
    found = registry(IMAGES, events)
    with pytest.raises(RetFoundError, match="events 'stroke' and 'Stroke' look like one event spelled in two ways"):
        build(found, "stroke")
    assert set(known_events(found, ("stroke", "Stroke"))["patient_id"]) == {"p1", "p2"}
    other = registry(IMAGES, events.replace({"event": {"Stroke": "wet-amd"}}))
    with pytest.raises(RetFoundError, match="events 'wet AMD' and 'wet-amd' look like one event"):
        build(other, "stroke", exclude_prior=("wet AMD",))


def test_patients_of_whom_there_is_no_image_are_counted_or_refused(registry):
    images = IMAGES.replace({"patient_id": {"p1": "031", "p2": "131"}})
    events = EVENTS.replace({"patient_id": {"p1": "031", "p2": "131"}})
    alike = {"patient_id": ["031", "777", "778"], "death": ["2020-06-01", None, None]}
    found = registry(images, pd.concat([events, events.iloc[[3]].assign(patient_id="900")]), pd.DataFrame(alike))
    assert found.without_images == {"events": 1, "patients": 2}
    for ids, reason in (
        (
            ["31", "131"],
            "patient_id '31' is not in .*images.csv, which has '031'; .*drops leading zeros",
        ),
        (["A7", "A8"], "patients.csv: none of its 2 patients is in .*images.csv, whose .* '031' and here 'A7'"),
    ):
        people = pd.DataFrame({"patient_id": ids, "death": ["2020-06-01", None]})
        with pytest.raises(RetFoundError, match=reason):
            registry(images, events, people, follow_up_end="2021-01-01")
    with pytest.raises(RetFoundError, match=r"events\.csv: none of its 2 patients is in"):
        registry(IMAGES, events)
