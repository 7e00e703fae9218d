"""Parts of work, and arrays of jobs: by submitit's local executor, and by stand-ins for SLURM's commands."""

import os
import signal
import sys
from functools import partial
from itertools import chain
from pathlib import Path

import pytest

from retfound_hf import cluster
from retfound_hf.cluster import ClusterArguments
from retfound_hf.errors import BadArgumentError, BadDataError, MissingPackageError, RetFoundError


@pytest.mark.parametrize("count", [1, 3, 7])
def test_every_item_is_in_one_share(count):
    shares = [ClusterArguments(part=f"{number}/{count}").share for number in range(1, count + 1)]
    dealt = [list(share.of(range(17))) for share in shares]
    assert sorted(chain(*dealt)) == list(range(17))
    assert dealt == [[index for index in range(17) if share.owns(index)] for share in shares]
    assert max(map(len, dealt)) - min(map(len, dealt)) <= 1


@pytest.fixture
def installed(monkeypatch):
    """As if submitit and SLURM were there, or not."""

    def say(package: bool = True, slurm: bool = True) -> None:
        monkeypatch.setattr("retfound_hf.cluster.find_spec", lambda name: name if package else None)
        monkeypatch.setattr("shutil.which", lambda name: name if slurm else None)

    return say


@pytest.mark.parametrize("time, minutes", [
    (90, 90), ("90", 90), ("90:01", 91), ("8:00:00", 480), ("0:00:01", 1), ("1-12", 2160), ("2-1:30", 2970),
    ("1-00:00:30", 1441),
])  # fmt: skip
def test_times_are_read_as_sbatch_reads_them(installed, time, minutes):
    installed()
    assert ClusterArguments(cluster="slurm", time=time).minutes == minutes


@pytest.mark.parametrize("field, given", [
    *(("part", {"part": part}) for part in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2", "1/2/3")),
    *(("time", {"time": time}) for time in ("0", "eight", "1-2-3", "1:2:3:4", "")),
    ("cluster", {"cluster": "pbs"}), ("tasks", {"cluster": "local", "tasks": 0}), ("tasks", {"tasks": 9}),
    ("partition", {"partition": "gpu"}), ("partition", {"cluster": "local", "partition": "gpu"}),
    ("sbatch", {"cluster": "local", "sbatch": ["qos=long"]}),
    ("sbatch", {"cluster": "slurm", "sbatch": ["--qos=long"]}),
    ("mem_gb", {"cluster": "slurm", "mem_gb": 0}), ("part", {"cluster": "slurm", "part": "1/2"}),
])  # fmt: skip
def test_what_does_not_fit_is_refused(installed, field, given):
    installed()
    with pytest.raises(BadArgumentError) as error:
        ClusterArguments(**given)
    assert error.value.field == field


def test_what_is_missing_is_told_before_anything_else(installed):
    installed(package=False)
    with pytest.raises(MissingPackageError) as missing:
        ClusterArguments(cluster="slurm")
    assert (missing.value.package, missing.value.extra) == ("submitit", "cluster")
    installed(slurm=False)
    with pytest.raises(BadArgumentError) as error:
        ClusterArguments(cluster="slurm")
    assert error.value.field == "cluster"


# ---- real processes

# The output of a job goes where `#SBATCH --output` says, and sacct tells how it ended.
SLURM = {
    "sbatch": """
id=$((77 + $(ls "$FAKE" | grep -c submitted)))
cp "$1" "$FAKE/submitted-$id.sh"
last=$(sed -n 's/^#SBATCH --array=0-\\([0-9]*\\).*/\\1/p' "$1")
for task in $(seq 0 "$last"); do
    (
        export SLURM_JOB_ID=$((1000 + task)) SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$task
        bash "$FAKE/submitted-$id.sh" && state=COMPLETED || state=FAILED
        echo "${id}_$task|$state|here" >> "$FAKE/states"
    ) > /dev/null 2>&1 &
done
echo "Submitted batch job $id"
""",
    "srun": """
while [[ $1 != *python* ]]; do
    case $1 in --output) out=$2; shift;; --error) err=$2; shift;; esac
    shift
done
name() { sed "s/%A/$SLURM_ARRAY_JOB_ID/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%t/0/" <<< "$1"; }
exec "$@" >> "$(name "$out")" 2>> "$(name "$err")"
""",
    "sacct": """
echo 'JobID|State|NodeList'
cat "$FAKE/states" || true
""",
}


@pytest.fixture
def stand_ins(monkeypatch, tmp_path) -> Path:
    """SLURM's commands, whose jobs are processes of this machine: the folder of what they write."""
    folder = tmp_path / "slurm"
    folder.mkdir()
    for name, text in SLURM.items():
        (folder / name).write_text(f"#!/bin/bash\n{text}", encoding="utf-8")
        (folder / name).chmod(0o755)
    monkeypatch.setenv("FAKE", str(folder))
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    monkeypatch.setitem(cluster.SECONDS, "slurm", 0.2)
    return folder


def deal(folder: Path, arguments: ClusterArguments) -> list[int]:
    """The job: its share of seventeen numbers, unless a file tells it to fail or to die."""
    share = arguments.share
    with open(folder / "called", "a") as file:
        file.write(f"{share}\n")
    if (folder / f"fails-{share.number}").exists():
        raise BadDataError("an image is broken", rows=["eye.png"])
    if (folder / f"dies-{share.number}").exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return list(share.of(range(17)))


def test_an_array_names_what_failed(cluster_here, tmp_path):
    arguments = ClusterArguments(cluster="local", tasks=4)
    (tmp_path / "fails-2").touch()
    with pytest.raises(RetFoundError) as error:
        arguments.run(partial(deal, tmp_path), tmp_path, arguments.shares)
    (failed,) = error.value.failed
    assert failed.part == "2/4" and str(failed.log) in str(error.value)
    assert error.value.__cause__.rows == ("eye.png",)
    (tmp_path / "fails-2").unlink()
    assert arguments.run(partial(deal, tmp_path), tmp_path, arguments.shares[1:2]) == [[1, 5, 9, 13]]
    assert arguments.run(partial(deal, tmp_path), tmp_path, []) == []


@pytest.mark.slow
@pytest.mark.parametrize("name, options", [
    ("local", {}),
    ("slurm", {"partition": "gpu", "sbatch": ["account=eyes", "exclusive"], "mem_gb": 8, "time": "1:30:00"}),
])  # fmt: skip
def test_jobs_in_processes_fail_die_and_are_done_again(stand_ins, monkeypatch, tmp_path, name, options):
    submitit = pytest.importorskip("submitit", reason="submitit is not installed")
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no job can import this file
    monkeypatch.setattr(submitit.core.core.Job, "_results_timeout_s", 0)
    arguments = ClusterArguments(cluster=name, tasks=3, **options)
    for what in ("fails-2", "dies-3"):
        (tmp_path / what).touch()
    with pytest.raises(RetFoundError) as error:
        arguments.run(partial(deal, tmp_path), tmp_path, arguments.shares)
    first, second = error.value.failed
    assert (first.part, second.part) == ("2/3", "3/3") and str(first.log) in str(error.value)
    assert error.value.__cause__.rows == ("eye.png",)
    assert "BadDataError: an image is broken" in first.log.read_text() and second.log.is_file()
    assert sorted((tmp_path / "called").read_text().split()) == ["1/3", "2/3", "3/3"]
    for what in ("fails-2", "dies-3"):
        (tmp_path / what).unlink()
    found = arguments.run(partial(deal, tmp_path), tmp_path, arguments.shares[1:])
    assert found == [list(range(1, 17, 3)), list(range(2, 17, 3))]
    if name == "slurm":
        asked = (stand_ins / "submitted-77.sh").read_text().splitlines()
        for wanted in ("array=0-2%3", "partition=gpu", "account=eyes", "exclusive", "mem=8GB", "time=90"):
            assert f"#SBATCH --{wanted}" in asked


def test_jobs_that_cannot_be_submitted_say_why(stand_ins, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    (stand_ins / "sbatch").write_text("#!/bin/bash\necho 'invalid partition specified: gpus' >&2; exit 1\n")
    arguments = ClusterArguments(cluster="slurm", partition="gpus", tasks=2)
    with pytest.raises(RetFoundError) as error:
        arguments.run(partial(deal, tmp_path), tmp_path, arguments.shares)
    assert "invalid partition specified: gpus" in str(error.value)
