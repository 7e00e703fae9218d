"""Studies in real processes: skipped, killed, failed, in parts; their tables are the same in the end."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.errors import RetFoundError
from retfound_hf.study.results import read_study
from retfound_hf.study.runner import StudyArguments, run_study

SCRIPT = Path(__file__).parents[2] / "scripts" / "study.py"
FULL = {"num_train_epochs": 2, "learning_rate": 3e-3, "augmentation": "light", "disable_tqdm": True}
METHODS = {"linear": None, "full": FULL}


def run(path: Path, output: Path, **options):
    return run_study(StudyArguments(str(path), str(output), **options))


def tables(folder: Path) -> list[pd.DataFrame]:
    """The tables of a study, but for what a clock says."""
    names = ("results", "summary", "comparisons", "efficiency")
    found = [pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in names]
    return [table.drop(columns=[name for name in ("seconds",) if name in table]) for table in found]


def assert_same(first: Path, second: Path) -> None:
    for one, other in zip(tables(first), tables(second), strict=True):
        pd.testing.assert_frame_equal(one, other)


@pytest.fixture(scope="module")
def whole(desk, tmp_path_factory):
    """A study that ran without a break: its file and its folder."""
    import yaml

    path = desk / "whole.yaml"
    content = {
        "name": "Whole",
        "models": {"First": "first", "Second": "second"},
        "methods": METHODS,
        "data": {"Inside": {"data": "inside", "external": {"Outside": "outside"}}},
        "fractions": [0.5],
        "seeds": [0, 1],
        "metrics": ["auroc", "brier"],
        "reporting": {"resamples": 200},
        "finetune": {"dataloader_num_workers": 0, "cache_dir": "./cache"},
    }
    path.write_text(yaml.safe_dump(content))
    folder = tmp_path_factory.mktemp("studies") / "whole"
    run(path, folder, jobs=2)
    return path, folder


def test_every_cell_has_its_rows(whole):
    found = read_study(whole[1])
    assert found.planned == len(found.finished) == 2 * 2 * 2
    results = found.results
    assert set(results["set"]) == {"val", "test", "Outside"}
    # auroc and brier, auroc of both classes; the report adds thresholds and calibration of the job that it shows
    own = results[results["metric"].str.fullmatch("auroc|brier|auroc/.*")]
    assert (own.groupby(["job", "set"])["metric"].nunique() == 4).all()
    for job in found.finished:
        stored = json.loads((found.folder / "jobs" / job.id / "test" / "metrics.json").read_text())
        rows = results[(results["job"] == job.id) & (results["set"] == "test")].set_index("metric")
        assert rows.loc["auroc", "value"] == pytest.approx(stored["auroc"], abs=1e-9)
        assert rows.loc["brier", "value"] == pytest.approx(stored["brier"], abs=1e-7)
        assert rows.loc["auroc", "low"] <= stored["auroc"] <= rows.loc["auroc", "high"]
    assert (results.loc[results["set"] == "Outside", "patients"] == 24).all()
    assert (results.loc[results["set"] == "test", "cases"] == 20).all()


def test_a_job_equals_finetune_and_evaluate(whole, tmp_path):
    from retfound_hf.finetuning.finetune import main as finetune
    from retfound_hf.inference.evaluate import main as evaluate

    found = read_study(whole[1])
    for method in ("linear", "full"):
        job = next(job for job in found.finished if (job.method, job.fraction, job.seed) == (method, 0.5, 1))
        folder = found.folder / "jobs" / job.id
        alone = tmp_path / method
        finetune([str(folder / "finetune.yaml"), "--output_dir", str(alone)])
        evaluate(
            ["--model_name_or_path", str(alone), "--data", found.study.data[0].external[0].data, "--split", "all",
             "--output_dir", str(tmp_path / f"{method}-outside"), "--dataloader_num_workers", "0"]
        )  # fmt: skip
        pairs = {"test": alone, "val": alone / "validation", "Outside": tmp_path / f"{method}-outside"}
        for name, other in pairs.items():
            mine = pd.read_csv(folder / name / "predictions.csv")
            theirs = pd.read_csv(other / "predictions.csv")
            pd.testing.assert_frame_equal(mine, theirs, atol=1e-5)


def test_summary_is_that_of_the_results(whole):
    found = read_study(whole[1])
    keys = ["data", "set", "method", "fraction", "model", "metric"]
    means = found.results.groupby(keys)["value"].agg(["mean", "std", "count"])
    summary = found.summary.set_index(keys)
    joined = summary.join(means.rename(columns={"mean": "mean_again"}))
    assert joined["mean"].to_numpy() == pytest.approx(joined["mean_again"].to_numpy(), abs=1e-12)
    assert (joined["seeds"] == joined["count"]).all()
    half = 1.96 * joined["std"] / joined["count"] ** 0.5
    several = joined["count"] > 1
    assert (joined["seeds_high"] - joined["mean"])[several].to_numpy() == pytest.approx(half[several], abs=1e-4)
    reference = summary.reset_index().query("model == 'First' and set != 'val' and metric == 'auroc'")
    assert (reference["competitor"] == "Second").all()
    assert found.comparisons["best"].all()
    assert not (found.comparisons["set"] == "val").any()
    for _, row in found.comparisons.iterrows():
        cell = tuple(row[name] for name in ("data", "set", "method", "fraction"))
        expected = (
            summary.loc[(*cell, "First", row["metric"]), "mean"]
            - summary.loc[(*cell, "Second", row["metric"]), "mean"]
        )
        assert row["difference"] == pytest.approx(expected, abs=1e-12)


def test_curves_of_adaptation(whole):
    found = read_study(whole[1])
    assert set(found.curves["method"]) == {"full"}
    for job in (job for job in found.finished if job.method == "full"):
        curve = found.curves[found.curves["job"] == job.id]
        assert list(curve["epoch"]) == [1, 2]
        assert 0 < curve["seconds"].iloc[0] < curve["seconds"].iloc[1] < job.seconds
        assert job.efficiency["final"] == curve["value"].max()
        first = curve[curve["value"] >= 0.95 * curve["value"].max()].iloc[0]
        assert job.efficiency["epochs_to_95"] == first["epoch"]
        assert job.efficiency["seconds_to_95"] == pytest.approx(first["seconds"])


def test_all_models_learn_from_the_same_patients(whole):
    found = read_study(whole[1])
    assert {(job.images["train"], job.patients["train"]) for job in found.finished} == {(20, 10)}


def test_finished_jobs_are_not_done_again(whole, capsys):
    path, folder = whole
    before = {found: found.stat().st_mtime_ns for found in (folder / "jobs").rglob("*")}
    results = (folder / "results.csv").read_bytes()
    run(path, folder)
    assert "8 finished already" in capsys.readouterr().out
    assert {found: found.stat().st_mtime_ns for found in (folder / "jobs").rglob("*")} == before
    assert (folder / "results.csv").read_bytes() == results


def test_parts_are_all_jobs_and_give_the_same_tables(whole, tmp_path):
    path, folder = whole
    ids = []
    for part in ("1/2", "2/2"):
        run(path, tmp_path / part.replace("/", "-"), part=part, jobs=2)
        ids += [found.name for found in (tmp_path / part.replace("/", "-") / "jobs").iterdir()]
    assert sorted(ids) == sorted(found.name for found in (folder / "jobs").iterdir())
    for found in (tmp_path / "2-2" / "jobs").iterdir():  # brought together, as from another machine
        found.rename(tmp_path / "1-2" / "jobs" / found.name)
    run(path, tmp_path / "1-2")
    assert_same(tmp_path / "1-2", folder)


def test_killed_and_started_again_it_ends_the_same(whole, tmp_path):
    path, folder = whole
    output = tmp_path / "killed"
    words = [sys.executable, str(SCRIPT), str(path), "--output_dir", str(output), "--jobs", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    jobs = output / "jobs"
    deadline = time.time() + 300
    while not (jobs.is_dir() and sum(not one.name.startswith(".") for one in jobs.iterdir()) >= 3):
        assert process.poll() is None
        assert time.time() < deadline
        time.sleep(0.02)
    while not any(one.name.startswith(".") for one in jobs.iterdir()):  # in the middle of a job
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "results.csv").exists()
    time.sleep(1)  # a job of the killed study ends with it
    run(path, output, jobs=2)
    assert not [one for one in jobs.iterdir() if one.name.startswith(".")]
    assert_same(output, folder)


def test_a_failed_job_is_reported_and_harms_no_other(whole, desk, tmp_path, capsys):
    import shutil

    import yaml

    path, folder = whole
    content = yaml.safe_load(path.read_text()) | {"methods": {"linear": None}, "seeds": [0]}
    shutil.copytree(desk / "second", desk / "broken")
    content["models"]["Broken"] = "broken"
    content["reporting"]["reference"] = "Second"
    broken = desk / "with-broken.yaml"
    broken.write_text(yaml.safe_dump(content))
    weights = desk / "broken" / "model.safetensors"
    good = weights.read_bytes()
    weights.write_bytes(good[: len(good) // 2])
    output = tmp_path / "failing"
    with pytest.raises(RetFoundError, match="1 of 3 jobs failed, such as inside-broken-linear-f0500-s0"):
        run(broken, output, jobs=2)
    results = pd.read_csv(output / "results.csv", keep_default_na=False)
    failed = results[results["status"] == "failed"]
    assert list(failed["model"]) == ["Broken"]
    assert "broken" in failed["reason"].iloc[0]
    log = output / "jobs" / failed["job"].iloc[0] / "log.txt"
    assert "Traceback" in log.read_text()
    first = pd.read_csv(folder / "results.csv").query("method == 'linear' and seed == 0 and model == 'First'")
    again = results[results["model"] == "First"]
    assert list(again["value"].astype(float)) == list(first["value"])
    statuses = {job.model: job.status for job in read_study(output).jobs}
    assert statuses == {"First": "finished", "Second": "finished", "Broken": "failed"}


def test_a_job_that_dies_without_a_word_is_a_failed_one(study_file, tmp_path, monkeypatch):
    """Its process is killed from outside, as the kernel does where memory runs out."""
    from retfound_hf.study import runner as processes

    start = processes._start
    killed = []

    def start_and_kill(context, job, *rest):
        process = start(context, job, *rest)
        if not killed:
            killed.append(job.id)
            os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(processes, "_start", start_and_kill)
    path = study_file(fractions=[1.0], seeds=[0])
    with pytest.raises(RetFoundError, match=r"1 of 2 jobs failed.*signal 9 \(out of memory\?\)"):
        run(path, tmp_path / "out")
    assert [(job.id == killed[0], job.status) for job in read_study(tmp_path / "out").jobs] == [
        (True, "failed"),
        (False, "finished"),
    ]
    monkeypatch.setattr(processes, "_start", start)
    run(path, tmp_path / "out")
    assert {job.status for job in read_study(tmp_path / "out").jobs} == {"finished"}


def test_a_dry_run_shows_the_jobs_and_writes_nothing(study_file, tmp_path, capsys):
    run(study_file(), tmp_path / "out", dry_run=True)
    said = capsys.readouterr().out
    assert "6 jobs" in said
    assert not (tmp_path / "out").exists()


def test_a_finished_training_outlives_what_follows_it(study_file, tmp_path, monkeypatch):
    """A process that fails after its folder is in place leaves predictions, log and the status `finished`."""
    from retfound_hf.study import runner as processes
    from retfound_hf.study import runner as worker

    def training_then_failure(*facts):
        monkeypatch.setattr(worker, "resampled", lambda *_: sys.exit(1))
        worker.work(worker.Work(*facts))

    monkeypatch.setattr(processes, "_work", training_then_failure)
    monkeypatch.setattr(processes, "_context", lambda: multiprocessing.get_context("fork"))
    path = study_file(fractions=[1.0], seeds=[0], models={"First": "first"}, reporting={"resamples": 100})
    (job,) = run(path, tmp_path / "out")
    assert job.status == "finished"
    folder = tmp_path / "out" / "jobs" / job.id
    assert (folder / "test" / "predictions.csv").is_file() and (folder / "log.txt").is_file()
