"""The command: table, flow chart, options, what it refuses, and the recorded chart."""

import json
import runpy
import xml.etree.ElementTree
from pathlib import Path

import pandas as pd
import pytest
from PIL import Image
from tiny import save_noise

from retfound_hf.data.build_cohort import main
from retfound_hf.data.labelled import read_labelled
from retfound_hf.errors import BadArgumentError, RetFoundError


@pytest.fixture
def tables(tmp_path):
    """A registry of 30 patients on disk: every third has a stroke in time."""
    folder = tmp_path / "registry"
    images, events = [], []
    for number in range(30):
        for eye in "RL":
            name = f"images/{number}{eye}.png"
            save_noise(folder / name, 100 * number + ord(eye), (16, 16))
            images.append((name, number, eye, "2019-03-04", 50 + number % 5, "FM"[number % 2]))
        events.append((number, *(("stroke", "2020-03-04") if number % 3 == 0 else ("death", "2024-01-01"))))
    columns = ["image", "patient_id", "eye", "date", "age", "sex"]
    pd.DataFrame(images, columns=columns).to_csv(folder / "images.csv", index=False)
    pd.DataFrame(events, columns=["patient_id", "event", "date"]).to_csv(folder / "events.csv", index=False)
    return [str(folder / "images.csv"), str(folder / "events.csv")]


QUESTION = ["--event", "stroke", "--horizon", "3y"]


def test_the_table_is_what_finetune_takes(tables, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main([*tables, "out/cohort", *QUESTION])
    found = read_labelled("out/cohort/cohort.csv")
    assert found.class_names == ("0", "1") and found.patients_known and len(found.table) == 60
    assert found.counts().sum(axis=1).tolist() == [40, 20]
    assert (found.counts() > 0).all(axis=None)
    table = pd.read_csv("out/cohort/cohort.csv")
    assert table["image"].iloc[0].startswith("../../registry/images/")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "30 patients, 60 eyes, 60 images: Images in the table" and said[-1] == "out/cohort/cohort.csv"
    record = json.loads((tmp_path / "out/cohort/run.json").read_text())
    assert (
        record["command"] == "build_cohort" and record["unit"] == "patient" and record["arguments"]["horizon"] == "3y"
    )
    flow = json.loads((tmp_path / "out/cohort/flow.json").read_text())
    assert flow["stages"][-1]["images"] == 60 and flow["labels"]["1"] == {"patients": 10, "eyes": 20, "images": 20}
    assert flow["facts"]["patients_who_died"] == 20
    assert flow["facts"]["patients_without_images_in_events"] == 0
    assert flow["classes"] == {"0": "no stroke within 3 years", "1": "stroke within 3 years"}
    assert xml.etree.ElementTree.parse(tmp_path / "out/cohort/flow.svg").getroot().tag.endswith("svg")
    assert Image.open(tmp_path / "out/cohort/flow.png").width > 300


def test_cohort_and_images_may_move_together(tables, tmp_path):
    main([*tables, str(tmp_path / "registry/cohort"), *QUESTION])
    (tmp_path / "registry").rename(tmp_path / "elsewhere")
    assert len(read_labelled(str(tmp_path / "elsewhere/cohort/cohort.csv")).table) == 60


def test_options_from_a_file(tables, tmp_path):
    options = {"images": tables[0], "events": tables[1], "out": str(tmp_path / "out"), "event": ["stroke"]}
    options |= {"horizon": "3y", "match_controls": 1, "split_fractions": [0.5, 0.25, 0.25], "date_format": "%Y-%m-%d"}
    (tmp_path / "cohort.json").write_text(json.dumps(options))
    main([str(tmp_path / "cohort.json")])
    table = pd.read_csv(tmp_path / "out/cohort.csv")
    assert table["label"].mean() == 0.5 and table.groupby("matched_to")["patient_id"].nunique().eq(2).all()


@pytest.mark.parametrize(
    ("field", "value", "words"),
    [("event", "strok", ["--event", "strok", "--horizon", "3y"]),
     ("horizon", "3", ["--event", "stroke", "--horizon", "3"]),
     ("time_zone", "Mars", [*QUESTION, "--time_zone", "Mars"]),
     ("follow_up_end", "2019", [*QUESTION, "--follow_up_end", "2019"]),
     ("match_controls", 0, [*QUESTION, "--match_controls", "0"])],
)  # fmt: skip
def test_bad_arguments_leave_nothing(tables, tmp_path, field, value, words):
    with pytest.raises(BadArgumentError) as error:
        main([*tables, str(tmp_path / "out"), *words])
    assert (error.value.field, error.value.value) == (field, value)
    for words in (["--split_fractions", "0.5", "0.1", "0.1"], ["--image_root", "nowhere"]):
        with pytest.raises(RetFoundError):
            main([*tables, str(tmp_path / "out"), *QUESTION, *words])
    assert not (tmp_path / "out").exists()


def test_images_may_be_elsewhere(tables, tmp_path):
    main([*tables, str(tmp_path / "out"), *QUESTION, "--image_root", str(tmp_path / "x"), "--no_check_images"])
    assert pd.read_csv(tmp_path / "out/cohort.csv")["image"].iloc[0] == "../x/images/0L.png"


def test_patients_of_a_table_who_have_no_image_are_said(tables, tmp_path, capsys):
    people = pd.DataFrame({"patient_id": [1, 2, 900, 901], "sex": ["M", "F", "F", "F"]})
    people.to_csv(tmp_path / "patients.csv", index=False)
    main([*tables, str(tmp_path / "out"), *QUESTION, "--patients", str(tmp_path / "patients.csv")])
    assert "2 patients of the patients table have no image" in capsys.readouterr().out.splitlines()
    facts = json.loads((tmp_path / "out/flow.json").read_text())["facts"]
    assert (facts["patients_without_images_in_events"], facts["patients_without_images_in_patients"]) == (0, 2)


BENCHMARKS = Path(__file__).parents[3] / "scripts" / "benchmarks"


def test_the_chart_of_the_readme_is_that_of_its_commands():
    recorded = json.loads((BENCHMARKS / "results" / "cohort_flow.json").read_text())
    assert runpy.run_path(str(BENCHMARKS / "cohort_flow.py"))["cohort"]().flow.as_dict() == recorded
