"""Studies in real processes: skipped, killed, failed, in parts; their tables are the same in the end."""

import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from scipy.stats import t
from tiny import save_autoencoder, save_planted_set

from retfound_hf import RetFoundForPreTraining
from retfound_hf.errors import RetFoundError
from retfound_hf.finetuning.finetune import main as finetune
from retfound_hf.inference.evaluate import main as evaluate
from retfound_hf.study import runner
from retfound_hf.study.results import adaptation, read_history, read_study
from retfound_hf.study.runner import main, run_study

ROOT = Path(__file__).parents[2]
ONE = {"fractions": [1.0], "seeds": [0], "reporting": {"resamples": 100}}


def tables(folder: Path) -> list[pd.DataFrame]:
    """The tables of a study, but for what a clock says."""
    names = ("results", "summary", "comparisons", "efficiency")
    found = [pd.read_csv(folder / f"{name}.csv", keep_default_na=False) for name in names]
    return [table.drop(columns="seconds", errors="ignore") for table in found]


def assert_same(first: Path, second: Path) -> None:
    for one, other in zip(tables(first), tables(second), strict=True):
        pd.testing.assert_frame_equal(one, other)


def half(path: Path) -> Path:
    """The whole study with half of the labels and one seed alone: 2 models x 2 methods."""
    content = yaml.safe_load(path.read_text()) | {"fractions": [0.5], "seeds": [0]}
    target = path.with_name("half.yaml")
    target.write_text(yaml.safe_dump(content))
    return target


@pytest.fixture(scope="module")
def halved(whole, tmp_path_factory) -> tuple[Path, Path]:
    """File and folder of that study, finished; its jobs are some of those of the whole one."""
    path, folder = half(whole[0]), tmp_path_factory.mktemp("halves") / "half"
    shutil.copytree(whole[1] / "jobs", folder / "jobs")
    run_study(path, folder)
    return path, folder


def test_every_cell_has_its_rows_and_the_values_of_its_job(found):
    # A linear head on all labels is the same for every seed.
    assert found.planned == len(found.finished) == 2 * 2 * 2 * 3 - 2 * 2
    results = found.results
    assert set(results["set"]) == {"val", "test", "Outside"}
    own = results[results["metric"].str.fullmatch("auroc|brier|ece|auroc/.*")]
    assert (own.groupby(["job", "set"])["metric"].nunique() == 5).all()
    for job in found.finished:
        stored = found.predictions(job, "test").metrics()
        rows = results[(results["job"] == job.id) & (results["set"] == "test")].set_index("metric")
        assert all(rows.loc[name, "value"] == stored[name] for name in ("auroc", "brier", "ece"))
        assert rows.loc["auroc", "low"] <= stored["auroc"] <= rows.loc["auroc", "high"]
    assert (results.loc[results["set"] == "Outside", "patients"] == 24).all()
    assert (own.loc[own["set"] == "test", "cases"] == 20).all()


def test_a_job_equals_finetune_and_evaluate(found, tmp_path):
    for method in ("linear", "full"):
        job = next(job for job in found.finished if (job.method, job.fraction, job.seed) == (method, 0.5, 1))
        folder, alone, outside = found.folder / "jobs" / job.id, tmp_path / method, tmp_path / f"{method}-outside"
        finetune([str(folder / "finetune.yaml"), "--output_dir", str(alone)])
        evaluate(
            ["--model_name_or_path", str(alone), "--data", found.study.data["Inside"].external["Outside"].data,
             "--split", "all", "--output_dir", str(outside), "--dataloader_num_workers", "0"]
        )  # fmt: skip
        for name, other in {"test": alone, "val": alone / "validation", "Outside": outside}.items():
            mine, theirs = (pd.read_csv(path / "predictions.csv") for path in (folder / name, other))
            pd.testing.assert_frame_equal(mine, theirs, atol=1e-5)


def test_the_summary_is_that_of_the_results(found):
    keys = ["data", "set", "method", "fraction", "model", "metric"]
    means = found.results.groupby(keys)["value"].agg(["mean", "std", "count"])
    summary = found.summary.set_index(keys)
    joined = summary.join(means.rename(columns={"mean": "mean_again"}))
    assert joined["mean"].to_numpy() == pytest.approx(joined["mean_again"].to_numpy(), abs=1e-12)
    assert (joined["seeds"] == joined["count"]).all()
    error, several = joined["std"] / joined["count"] ** 0.5, joined["count"] > 1
    for name, quantile in (("seeds", t.ppf(0.975, joined["count"] - 1)), ("paper", 1.96)):
        spread = (joined[f"{name}_high"] - joined["mean"])[several]
        assert spread.to_numpy() == pytest.approx((quantile * error)[several], abs=1e-4)
    reference = summary.reset_index().query("model == 'First' and set != 'val' and metric == 'auroc'")
    assert (reference["competitor"] == "Second").all() and found.comparisons["best"].all()
    assert not (found.comparisons["set"] == "val").any()
    for row in found.comparisons.itertuples():
        first, second = (summary.loc[(row.data, row.set, row.method, row.fraction, model, row.metric), "mean"]
                         for model in ("First", "Second"))  # fmt: skip
        assert row.difference == pytest.approx(first - second, abs=1e-12)


def test_curves_of_adaptation(found):
    assert set(found.curves["method"]) == {"full"}
    for job in (job for job in found.finished if job.method == "full"):
        curve = found.curves[found.curves["job"] == job.id]
        assert list(curve["epoch"]) == [1, 2]
        assert 0 < curve["seconds"].iloc[0] < curve["seconds"].iloc[1] < job.seconds
        assert job.efficiency == adaptation(read_history(found.folder, job.id))
        assert job.efficiency["final"] == curve["value"].max()
        first = curve[curve["value"] >= 0.95 * curve["value"].max()].iloc[0]
        assert job.efficiency["epochs_to_95"] == first["epoch"]
        assert job.efficiency["seconds_to_95"] == pytest.approx(first["seconds"])


def test_all_models_learn_from_the_same_patients(found):
    sizes = {(job.fraction, job.images["train"], job.patients["train"]) for job in found.finished}
    assert sizes == {(0.5, 20, 10), (1.0, 40, 20)}


def test_finished_jobs_are_not_done_again(halved, capsys):
    path, folder = halved
    before = {found: found.stat().st_mtime_ns for found in (folder / "jobs").rglob("*")}
    results = (folder / "results.csv").read_bytes()
    main([str(path), "--output_dir", str(folder)])
    assert "4 finished already" in capsys.readouterr().out
    assert {found: found.stat().st_mtime_ns for found in (folder / "jobs").rglob("*")} == before
    assert (folder / "results.csv").read_bytes() == results


def test_the_record_holds_every_option(halved):
    kinds = (runner.StudyArguments, runner.ClusterArguments, runner.PlanArguments)
    options = {name for kind in kinds for name in kind.__dataclass_fields__}
    assert set(json.loads((halved[1] / "run.json").read_text())["arguments"]) == options


def test_parts_brought_together_give_the_same_tables(halved, tmp_path):
    path, folder = halved
    for part in ("1/2", "2/2"):
        run_study(path, tmp_path / part.replace("/", "-"), part=part, jobs=2)
    for found in (tmp_path / "2-2" / "jobs").iterdir():  # as from another machine
        found.rename(tmp_path / "1-2" / "jobs" / found.name)
    done = {job.name: job.stat().st_mtime_ns for job in (tmp_path / "1-2" / "jobs").iterdir()}
    assert len(done) == 4
    run_study(path, tmp_path / "1-2")
    assert {job.name: job.stat().st_mtime_ns for job in (tmp_path / "1-2" / "jobs").iterdir()} == done
    assert_same(tmp_path / "1-2", folder)


def test_a_cluster_gives_the_same_tables(halved, tmp_path, monkeypatch, cluster_here):
    """Of a study that was stopped, the parts with jobs to do are submitted."""
    path, folder = halved
    plan = runner.Plan.of(runner.StudyArguments(str(path)), runner.ClusterArguments(part="1/2"))
    for job in plan.mine:
        shutil.copytree(folder / "jobs" / job.id, tmp_path / "out" / "jobs" / job.id)
    submitted, run_share = [], runner._run_share
    monkeypatch.setattr(runner, "_run_share", lambda *given: submitted.append(given[-1].part) or run_share(*given))
    found = run_study(path, tmp_path / "out", cluster="local", tasks=2, jobs=2)  # by as many threads as the other
    assert submitted == ["2/2"] and len(found.finished) == len(plan.jobs) == 4
    assert_same(tmp_path / "out", folder)


@pytest.mark.slow
def test_jobs_in_processes_of_a_cluster_give_the_same_tables(halved, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    path, folder = halved
    run_study(path, tmp_path / "out", cluster="local", tasks=2)
    assert_same(tmp_path / "out", folder)


def test_killed_and_started_again_it_ends_the_same(halved, tmp_path):
    path, folder = halved
    output = tmp_path / "killed"
    words = [sys.executable, str(ROOT / "scripts/study.py"), str(path), "--output_dir", str(output), "--jobs", "2"]
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    jobs = output / "jobs"
    deadline = time.time() + 300
    while not (jobs.is_dir() and any(not one.name.startswith(".") for one in jobs.iterdir())):
        assert process.poll() is None and time.time() < deadline
        time.sleep(0.02)
    while not any(one.name.startswith(".") for one in jobs.iterdir()):  # in the middle of a job
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (output / "results.csv").exists()
    time.sleep(1)  # a job of the killed study ends with it
    run_study(path, output, jobs=2)
    assert not [one for one in jobs.iterdir() if one.name.startswith(".")]
    assert_same(output, folder)


def test_a_failed_job_is_reported_with_its_error_and_harms_no_other(write_study, desk, found, tmp_path):
    shutil.copytree(desk / "second", desk / "broken")
    weights = desk / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    models = {"First": "first", "Second": "second", "Broken": "broken"}
    path = write_study("broken", models=models, **{**ONE, "fractions": [0.5]}, metrics=["auroc"])
    with pytest.raises(RetFoundError) as error:
        run_study(path, tmp_path / "out", jobs=2)
    (failed,) = error.value.failed
    assert failed.model == "Broken" and isinstance(failed.error, RetFoundError) and "broken" in str(failed.error)
    results = pd.read_csv(tmp_path / "out" / "results.csv", keep_default_na=False)
    rows = results[results["status"] == "failed"]
    assert list(rows["model"]) == ["Broken"] and rows["reason"].iloc[0] == failed.reason
    assert "Traceback" in (tmp_path / "out" / "jobs" / failed.id / "log.txt").read_text()
    same = found.results.query("method == 'linear' and fraction == 0.5 and seed == 0 and metric == 'auroc'")
    again = results[(results["metric"] == "auroc") & (results["model"] == "First")]
    assert list(again["value"].astype(float)) == list(same.loc[same["model"] == "First", "value"])
    statuses = {job.model: job.status for job in read_study(tmp_path / "out").jobs}
    assert statuses == {"First": "finished", "Second": "finished", "Broken": "failed"}


def test_a_job_whose_process_is_killed_is_a_failed_one(study_file, tmp_path, monkeypatch):
    """As by the kernel where memory runs out."""
    start, killed = runner._start, []

    def start_and_kill(context, task):
        worker = start(context, task)
        if not killed:
            killed.append(task.job.id)
            os.kill(worker.process.pid, signal.SIGKILL)
        return worker

    monkeypatch.setattr(runner, "_start", start_and_kill)
    path = study_file(**ONE)
    with pytest.raises(RetFoundError) as error:
        run_study(path, tmp_path / "out")
    (failed,) = error.value.failed
    assert (failed.id, failed.error.exit_code) == (killed[0], -signal.SIGKILL)
    assert len(read_study(tmp_path / "out").finished) == 1
    monkeypatch.setattr(runner, "_start", start)
    assert len(run_study(path, tmp_path / "out").finished) == 2


def test_a_finished_training_outlives_what_follows_it(study_file, tmp_path, monkeypatch):
    """A process that fails after its folder is in place leaves predictions, log and the status `finished`."""
    work = runner.work

    def training_then_failure(*given):
        monkeypatch.setattr(runner, "resampled", lambda *_: sys.exit(1))
        work(*given)

    monkeypatch.setattr(runner, "work", training_then_failure)
    monkeypatch.setattr(runner, "worker_context", lambda *_: multiprocessing.get_context("fork"))
    (job,) = run_study(study_file(models={"First": "first"}, **ONE), tmp_path / "out").jobs
    assert job.status == "finished"
    folder = tmp_path / "out" / "jobs" / job.id
    assert (folder / "test" / "predictions.csv").is_file() and (folder / "log.txt").is_file()


def test_a_dry_run_shows_the_jobs_and_writes_nothing(study_file, tmp_path, capsys):
    main([str(study_file()), "--output_dir", str(tmp_path / "out"), "--dry_run"])
    assert "6 jobs to do" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_a_script_without_main_guard_adds_a_metric_and_a_method(study_file, tmp_path):
    """The rows of the script reach the jobs; its lines run once."""
    path = study_file(models={"First": "first"}, methods=["linear", "ridge"], metrics=["auroc", "hits"], **ONE)
    script = tmp_path / "mine.py"
    script.write_text(
        textwrap.dedent(
            f"""
            from retfound_hf.evaluation.metrics import METRICS, Metric
            from retfound_hf.finetuning.methods import METHODS, Linear
            from retfound_hf.study.runner import run_study
            from retfound_hf.vocabulary import SINGLE_LABEL

            class Ridge(Linear):
                name, title = "ridge", "ridge head"

            print("script")
            METHODS["ridge"] = Ridge
            METRICS["hits"] = Metric("hits", "Hits", True, (SINGLE_LABEL,), lambda all: all.mean(all.rows.targets))
            found = run_study({str(path)!r}, {str(tmp_path / "out")!r})
            print(sorted(set(found.summary["method"])), found.summary.query("metric == 'hits'")["low"].notna().all())
            """
        )
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, timeout=600)
    assert done.stdout.splitlines() == ["script", "['linear', 'ridge'] True"]
    assert "Hits" in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


@pytest.mark.slow
def test_a_blind_model_is_found_and_a_twin_is_not(tmp_path):
    """`Blind` gets nothing of the pixels; `Twin` is `Seeing` with other random weights."""
    for seed, name in enumerate(("Seeing", "Twin", "Blind")):
        save_autoencoder(tmp_path / name, seed)
    blind = RetFoundForPreTraining.from_pretrained(tmp_path / "Blind")
    with torch.no_grad():
        blind.vit.embeddings.patch_embeddings.projection.weight.zero_()
    blind.save_pretrained(tmp_path / "Blind")
    save_planted_set(tmp_path / "data", {"train": 40, "val": 20, "test": 80}, seed=3, random=0.3)
    content = {
        "models": ["Seeing", "Twin", "Blind"], "methods": ["linear"], "data": ["data"], "fractions": [0.5],
        "seeds": [0, 1, 2],
        "finetune": {"dataloader_num_workers": 0, "cache_dir": str(tmp_path / "cache")}, "metrics": ["auroc"],
    }  # fmt: skip
    (tmp_path / "study.yaml").write_text(yaml.safe_dump(content))
    found = run_study(tmp_path / "study.yaml", tmp_path / "out", jobs=2)
    test = found.comparisons.query("set == 'test'").set_index("other")
    assert test.loc["Blind", "p_holm"] < 0.01 and test.loc["Blind", "low"] > 0.2
    assert test.loc["Twin", "p_holm"] > 0.05
    assert test["best"].to_dict() == {"Twin": True, "Blind": False}


@pytest.mark.slow
def test_the_example_of_the_guide_runs(tmp_path):
    guide = (ROOT / "retfound_hf/study/README.md").read_text(encoding="utf-8")
    block = re.search(r"```bash\n(python scripts/make_synthetic\.py study-data.*?)```", guide, re.S)[1]
    for line in block.replace("\\\n", " ").strip().splitlines():
        line = line.replace("scripts/", f"{ROOT}/scripts/").replace("python ", f"{sys.executable} ", 1)
        subprocess.run(line, shell=True, cwd=tmp_path, check=True, capture_output=True)
    found = read_study(tmp_path / "my-study")
    assert len(found.finished) == found.planned == 40
    assert set(found.results["set"]) == {"val", "test", "Other clinic"}
    assert found.summary["mean"].between(0, 1).all()
    told = found.comparisons.query("data == 'Fundus diagnosis' and fraction == 1 and metric == 'auroc'")
    assert set(told["set"]) == {"test", "Other clinic"}
    assert (told["low"] > 0).all()  # 224 px are ahead of 48, which hide small lesions
