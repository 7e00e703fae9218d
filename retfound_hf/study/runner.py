"""Runs of a study: several jobs at once, each in its own process; the function `run_study` and the command `study`."""

import os
import pickle
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import dill
import pandas as pd
import torch
from threadpoolctl import threadpool_limits
from tqdm import tqdm

from ..cluster import ClusterArguments
from ..errors import RetFoundError, one_line, require_range
from ..evaluation.metrics import METRICS
from ..files import atomic_folder, exclusive_folder
from ..finetuning.methods import METHODS
from ..models.backbones import BACKBONES
from ..models.loading import STARTING_POINTS
from ..options import build_arguments, parse_arguments
from ..processes import clean_start, exit_with_parent, usable_cores, worker_context
from ..record import write_run_record
from ..vocabulary import MODALITIES, PROBLEM_TYPES
from .config import Study, read_settings
from .jobs import Job, Task, check_study, part_of, plan_jobs
from .perform import guess_times, perform
from .report import write_report
from .report_parts import duration
from .results import JobResult, StudyResults, ended_jobs, job_folder, read_job, read_study
from .tables import resampled, write_plan, write_results

TABLES: tuple[dict[str, Any], ...] = (METRICS, METHODS, BACKBONES, STARTING_POINTS, MODALITIES, PROBLEM_TYPES)


@dataclass(frozen=True)
class Work:
    """Task sent to a worker process.

    Attributes:
        job, study, folder: what to do, of which study, and the study's folder.
        threads: of computation.
        device: index among the accelerators, or None.
        tables: `TABLES` pickled by value: a script may have added rows that no module of the worker has.
    """

    job: Job
    study: Study
    folder: Path
    threads: int
    device: str | None
    tables: bytes


def work(task: Work, errors: Connection) -> None:
    """Do a job in this process, which ends with it, and leave its folder, finished or failed.

    Args:
        task: the job.
        errors: takes the exception of a job that failed.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half a folder is removed
    exit_with_parent()
    if task.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = task.device  # Trainer would spread one job over all it sees
    torch.set_num_threads(task.threads)
    threadpool_limits(task.threads)
    _add_rows(task.tables)
    target, data = job_folder(task.folder, task.job.id), task.study.data[task.job.data]
    _remove_partial(target)
    with atomic_folder(target, overwrite=True) as partial:
        _redirect(partial / "log.txt")
        started = time.time()
        try:
            perform(task.job, data, partial, task.folder / "features", task.study.keep_models)
        except Exception as error:
            traceback.print_exc()
            for path in partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            reason = " ".join(str(error).split())[:500]
            if not isinstance(error, RetFoundError):
                reason = f"{type(error).__name__}: {reason}".rstrip(": ")
            seconds = round(time.time() - started, 2)
            JobResult.of(task.job, "failed", reason=reason, seconds=seconds).write(partial)
            errors.send_bytes(_pickled(error))
            return
    for evaluated in data.evaluated:  # here, and not at the end by a single process
        resampled(task.folder, task.study, task.job.id, task.job.data, evaluated)


def _rows() -> bytes:
    """`TABLES` for another process."""
    return dill.dumps([dict(table) for table in TABLES], recurse=True)


def _add_rows(tables: bytes) -> None:
    for table, rows in zip(TABLES, dill.loads(tables), strict=True):
        table.update(rows)


def _pickled(error: Exception) -> bytes:
    try:
        content = pickle.dumps(error)
        pickle.loads(content)  # some exceptions can be written and not read
    except Exception:
        content = pickle.dumps(RetFoundError(f"{type(error).__name__}: {one_line(error)}"))
    return content


def _redirect(path: Path) -> None:
    """Send all that this process prints, from C too, into a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(file, number)


def _remove_partial(target: Path) -> None:
    for path in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class _Worker:
    process: BaseProcess
    errors: Connection
    job: Job


def run_jobs(jobs: Sequence[Job], study: Study, folder: Path, at_once: int = 1) -> Iterator[JobResult]:
    """Run jobs and yield what became of each, in the order in which they end.

    A job that its process does not survive (memory, a crash in a library) is a failed one, and the others go on. The
    cores, and the accelerators where there are any, are divided among the jobs that run at once.

    Args:
        jobs: of the study.
        study: its settings.
        folder: of the study.
        at_once: number of jobs that run at the same time.
    """
    context, devices, waiting = worker_context(__name__), _devices(), list(jobs)
    tables = _rows()
    threads = max(1, usable_cores() // at_once)
    running: dict[int, _Worker] = {}
    try:
        while waiting or running:
            for slot in set(range(at_once)) - set(running):
                if waiting:
                    device = devices[slot % len(devices)] if devices else None
                    running[slot] = _start(context, Work(waiting.pop(0), study, folder, threads, device, tables))
            ready = wait([worker.errors for worker in running.values()])  # also at the end of a process
            for slot, worker in list(running.items()):
                if worker.errors in ready:
                    del running[slot]
                    yield _result(worker, folder)
    finally:
        for worker in running.values():
            worker.process.terminate()
        for worker in running.values():
            worker.process.join()


def _start(context: BaseContext, task: Work) -> _Worker:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(task, sender), name=task.job.id)  # type: ignore[attr-defined]
    with clean_start():
        process.start()
    sender.close()  # so that the end of the process is the end of the pipe
    return _Worker(process, receiver, task.job)


def _result(worker: _Worker, folder: Path) -> JobResult:
    try:
        error = pickle.loads(worker.errors.recv_bytes())
    except EOFError:  # nothing was sent
        error = None
    worker.process.join()
    job, code = worker.job, worker.process.exitcode or 0
    found = read_job(folder, job.id)
    # A finished job stays so, whatever befell the process afterwards: the tables look again at the rest.
    if found is not None and (code == 0 or found.status == "finished"):
        return replace(found, error=error)
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    reason = f"its process ended with {how}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    target, result = job_folder(folder, job.id), JobResult.of(job, "failed", reason=reason)
    with atomic_folder(target, overwrite=True) as partial:
        for log in target.parent.glob(f".{target.name}-*/log.txt"):
            if log.parent != partial:
                shutil.copy(log, partial / "log.txt")
        result.write(partial)
    _remove_partial(target)
    return replace(result, error=RetFoundError(f"{job.id}: {reason}", exit_code=code))


def _devices() -> list[str]:
    """Names of the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` has them."""
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return [name.strip() for name in given.split(",")]
    return [str(index) for index in range(torch.cuda.device_count())]


@dataclass
class StudyArguments:
    study: str = field(metadata={"positional": True, "help": "YAML file that says what to compare, see the guide"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the study, which a later call goes on with; default: the file's name"},
    )
    jobs: int = field(default=1, metadata={"help": "jobs to run at once on a machine"})

    def __post_init__(self) -> None:
        require_range("jobs", self.jobs, 1)


@dataclass
class PlanArguments:
    dry_run: bool = field(default=False, metadata={"help": "check everything, print the table of jobs, and run none"})


def finished_of(folder: Path, jobs: Sequence[Job]) -> set[str]:
    """Ids of those jobs of a study's folder that have finished."""
    return {job.id for job in jobs if (found := read_job(folder, job.id)) and found.status == "finished"}


@dataclass(frozen=True)
class Plan:
    """Study that was checked against its data.

    Attributes:
        jobs: all jobs of the study.
        mine: those of this machine's part.
        done: ids of those of them that have finished.
    """

    arguments: StudyArguments
    cluster: ClusterArguments
    study: Study
    folder: Path
    tasks: tuple[Task, ...]
    jobs: tuple[Job, ...]
    mine: tuple[Job, ...]
    done: set[str]

    @classmethod
    def of(cls, arguments: StudyArguments, cluster: ClusterArguments) -> "Plan":
        """Read and check all that a study needs.

        Raises:
            RetFoundError: anything wrong with the file, the data or the models.
        """
        study = read_settings(arguments.study)
        folder = Path(arguments.output_dir or Path(arguments.study).stem)
        tasks = check_study(study)
        jobs = plan_jobs(study, tasks)
        mine = part_of(jobs, cluster.share)
        return cls(arguments, cluster, study, folder, tasks, jobs, mine, finished_of(folder, mine))

    def __str__(self) -> str:
        counts = f"{len(self.jobs)} jobs, {len(self.mine)} of them here, {len(self.done)} finished already"
        return f"{self.study.name}: {counts}"

    def todo(self) -> list[Job]:
        """Jobs of this machine's part that have not finished by now: another run may have ended."""
        done = finished_of(self.folder, self.mine)
        return [job for job in self.mine if job.id not in done]

    def table(self) -> str:
        """The jobs, and how long they will take."""
        guesses = guess_times(self.mine, self.tasks, ended_jobs(self.folder, [job.key for job in self.jobs]))
        table = pd.DataFrame([(job.id, f"{100 * job.fraction:g}%", job.seed) for job in self.mine])
        table.columns = ["job", "labels", "seed"]
        table["time"], table[""] = guesses["seconds"].map(duration), guesses["how"]
        done = table["job"].isin(self.done)
        table.loc[done, ["time", ""]] = ("", "finished")
        left, at_once = guesses[~done], self.arguments.jobs
        total = f"about {duration(left['seconds'].sum() / at_once)} with {at_once} at once"
        how = ", ".join(sorted(set(left["how"])))
        return f"{table.to_string(index=False)}\n\n{len(left)} jobs to do, {total} ({how})"

    def run(self) -> StudyResults:
        """Run all jobs that have not finished yet, write tables and report, and read them.

        Raises:
            OutputError: another run of the same part, or a folder that cannot be written.
        """
        with exclusive_folder(self.folder, self.cluster.part or ""):
            return self._run()

    def _run(self) -> StudyResults:
        started, todo = time.time(), self.todo()
        write_plan(self.folder, self.study, self.tasks, self.jobs)
        errors: dict[str, BaseException | None] = {}
        try:
            if self.cluster.cluster is not None:
                left = {job.id for job in todo}
                shares = [each for each in self.cluster.shares if left & {job.id for job in part_of(self.jobs, each)}]
                self.cluster.run(partial(_run_share, self.arguments, _rows()), self.folder, shares)
                todo = []
            with tqdm(total=len(todo), desc=self.study.name, unit="job", disable=not todo) as progress:
                for result in run_jobs(todo, self.study, self.folder, self.arguments.jobs):
                    if result.status == "failed":
                        errors[result.id] = result.error
                        progress.write(f"failed: {result.id}: {result.reason}", file=sys.stderr)
                    progress.update()
        finally:
            ended = write_results(self.folder, self.study, self.jobs)
        write_run_record(
            self.folder,
            "study",
            [self.arguments, self.cluster, PlanArguments()],
            seconds=round(time.time() - started, 1),
        )
        write_report(self.folder)
        failed = tuple(replace(job, error=errors.get(job.id)) for job in ended if job.status == "failed")
        if failed:
            raise RetFoundError(
                f"{len(failed)} of {len(self.jobs)} jobs failed, such as {failed[0].id} ({failed[0].reason}); their "
                f"folders in {self.folder / 'jobs'} hold log.txt; the same command tries them again", failed=failed,
            ) from failed[0].error  # fmt: skip
        return read_study(self.folder)


def _run_share(arguments: StudyArguments, tables: bytes, cluster: ClusterArguments) -> None:
    """Run the jobs of a share as one of a cluster; the tables and the report are left to who submitted it."""
    _add_rows(tables)
    plan = Plan.of(arguments, cluster)
    with exclusive_folder(plan.folder, str(cluster.part)):
        for result in run_jobs(plan.todo(), plan.study, plan.folder, arguments.jobs):
            print(f"{result.status}: {result.id} {result.reason}", flush=True)


def run_study(study: str | Path, output_dir: str | Path | None = None, **options: Any) -> StudyResults:
    """Run all jobs of a study that have not finished yet, and write its tables and report.

    Args:
        study: YAML file.
        output_dir: folder of the study, which a later call goes on with; the file's name by default.
        **options: fields of `StudyArguments` and `ClusterArguments`, named as the flags of `retfound study`.

    Returns:
        The jobs that have ended, and the tables.

    Raises:
        RetFoundError: anything wrong with the file, before any job starts; or, when all have ended, failed jobs:
            `failed` has them, each with its `error`.
    """
    given = {"study": str(study), "output_dir": None if output_dir is None else str(output_dir), **options}
    return Plan.of(*build_arguments((StudyArguments, ClusterArguments), given)).run()


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, run, and say where the results lie."""
    arguments, cluster, plan_arguments = parse_arguments(
        StudyArguments,
        ClusterArguments,
        PlanArguments,
        argv=argv,
        options_file=False,  # the study's file is one
        description="Models x methods x data sets x label fractions x seeds, from one file to tables.",
    )
    plan = Plan.of(arguments, cluster)
    print(plan)
    if plan_arguments.dry_run:
        print(plan.table())
        return
    found = plan.run()
    print(
        f"Written to {plan.folder}: report.html, results.csv; {len(found.finished)} of {found.planned} jobs finished"
    )
