"""The command `evaluate` with intervals, subgroups and stored thresholds, and requests that it refuses."""

import json
import shutil

import pytest

from retfound_hf.evaluation.report import ReportArguments, write_points
from retfound_hf.evaluation.thresholds import OperatingPoint
from retfound_hf.inference.evaluate import main
from retfound_hf.options import run_command


def test_the_command(classifier_folder, labelled_table, tmp_path):
    folder, out = tmp_path / "model", tmp_path / "out"
    shutil.copytree(classifier_folder, folder)
    write_points(folder, [OperatingPoint("mild", "youden", None, 0.3)], ReportArguments(), images=15)
    words = [
        "--model_name_or_path", folder, "--data", labelled_table, "--output_dir", out, "--split", "all",
        "--dataloader_num_workers", "0", "--confidence_intervals", "--resamples", "100",
        "--subgroup_columns", "split",
    ]  # fmt: skip
    assert run_command(main, [str(word) for word in words]) == 0
    names = {path.name for path in out.iterdir()}
    assert {"intervals.csv", "calibration.csv", "subgroups.csv", "operating_points.csv"} <= names
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["auroc_ci95"][0] < metrics["auroc"] < metrics["auroc_ci95"][1]
    assert json.loads((out / "run.json").read_text())["arguments"]["confidence_intervals"] is True


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--subgroup_columns", "patient"], "did you mean patient_id"),
        (["--subgroup_columns", "patient_id"], "--subgroup_columns"),
        (["--subgroup_columns", "image"], "--subgroup_columns"),
        (["--subgroup_columns", "split", "id:1,2"], "--subgroup_columns id:"),
        (["--subgroup_columns", "age:old"], "--subgroup_columns age:old"),
        (["--resamples", "10"], "--resamples 10"),
        (["--level", "eye"], "--level eye"),
        (["--level", "patient"], "--label_conflicts max"),
    ],
)
def test_requests_that_cannot_be_met(classifier_folder, labelled_table, tmp_path, capsys, options, message):
    words = ["--model_name_or_path", classifier_folder, "--data", labelled_table, "--output_dir", tmp_path / "out",
             "--dataloader_num_workers", "0", *options]  # fmt: skip
    assert run_command(main, [str(word) for word in words]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
