"""Runs of a study: several jobs at once, each in its own process, and the command `study`."""

import dataclasses
import multiprocessing
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import connection, parent_process
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from tqdm import tqdm

from ..errors import RetFoundError
from ..files import atomic_folder, write_json
from ..options import parse_arguments
from ..processes import usable_cores
from ..record import write_run_record
from .config import Study, read_settings
from .jobs import Job, check_study, part_of, plan_jobs
from .perform import guess_times, job_table, perform, total
from .results import JobResult, ended_jobs, job_folder, read_job
from .tables import resampled, write_plan, write_results


@dataclass(frozen=True)
class Work:
    """What a process is sent.

    Attributes:
        job, study, folder: what to do, of what study, and the study's folder.
        threads: of computation; 0 leaves it to the libraries.
        device: index among the accelerators, or None.
    """

    job: Job
    study: Study
    folder: Path
    threads: int
    device: str | None


def work(task: Work) -> None:
    """Do a job and leave its folder, finished or failed. The process ends with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides what an interruption means
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that half a folder is removed
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    if task.device is not None:
        os.environ["CUDA_VISIBLE_DEVICES"] = task.device  # Trainer would spread one job over all it sees
    if task.threads:
        from threadpoolctl import threadpool_limits

        torch.set_num_threads(task.threads)
        threadpool_limits(task.threads)
    target = job_folder(task.folder, task.job.id)
    for stale in target.parent.glob(f".{target.name}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    with atomic_folder(target, overwrite=True) as partial:
        _redirect(partial / "log.txt")
        started = time.time()
        try:
            data = task.study.data_set(task.job.data)
            perform(task.job, data, partial, task.folder / "features", task.study.keep_models)
        except Exception as error:
            traceback.print_exc()
            for path in partial.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
            write_failure(partial, task.job, reason_of(error), round(time.time() - started, 2))
            return
    for evaluated in task.study.data_set(task.job.data).evaluated:  # here, and not at the end by a single process
        resampled(task.folder, task.study, task.job.id, task.job.data, evaluated)


def write_failure(folder: Path, job: Job, reason: str, seconds: float | None = None) -> None:
    """Write the `job.json` of a job that came to nothing."""
    result = JobResult(
        job.id, job.data, job.model, job.method, job.fraction, job.seed, "failed", reason=reason, seconds=seconds
    )
    write_json(folder / "job.json", dataclasses.asdict(result))


def reason_of(error: Exception) -> str:
    """One line about an exception; the log has the rest."""
    line = " ".join(str(error).split())[:500]
    return line if isinstance(error, RetFoundError) else f"{type(error).__name__}: {line}".rstrip(": ")


def _redirect(path: Path) -> None:
    """Send all that this process prints, from C too, into a file."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for number in (1, 2):
        os.dup2(file, number)


def _leave_with_parent() -> None:
    """End this process when its parent is gone: the job would be done twice after a restart."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


WORKER = "retfound_hf.study.runner"


def run_jobs(jobs: Sequence[Job], study: Study, folder: Path, at_once: int = 1) -> Iterator[JobResult]:
    """Run jobs and yield what became of each, in the order in which they end.

    A job that its process does not survive (memory, a crash in a library) is a failed one, and the others go on. The
    cores, and the accelerators where there are any, are divided among the jobs that run at once.
    """
    context = _context()
    waiting = list(jobs)
    devices = _devices()
    threads = max(1, usable_cores() // at_once)
    running: dict[int, tuple[BaseProcess, Job]] = {}
    try:
        while waiting or running:
            for slot in range(at_once):
                if slot not in running and waiting:
                    job = waiting.pop(0)
                    device = devices[slot % len(devices)] if devices else None
                    running[slot] = _start(context, job, study, folder, threads, device), job
            connection.wait([process.sentinel for process, _ in running.values()])
            for slot, (process, job) in list(running.items()):
                if process.exitcode is not None:
                    del running[slot]
                    yield _result(process, job, folder)
    finally:
        for process, _ in running.values():
            process.terminate()
        for process, _ in running.values():
            process.join()


def _start(
    context: multiprocessing.context.BaseContext,
    job: Job,
    study: Study,
    folder: Path,
    threads: int,
    device: str | None,
) -> BaseProcess:
    process = context.Process(target=_work, args=(job, study, folder, threads, device), name=job.id)
    process.start()
    return process


def _work(*facts: object) -> None:

    work(Work(*facts))


def _result(process: BaseProcess, job: Job, folder: Path) -> JobResult:
    process.join()
    found = read_job(folder, job.id)
    # What is finished stays so, whatever befell the process after its training: the tables look again at the rest.
    if found is not None and (process.exitcode == 0 or found.status == "finished"):
        return found
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    with atomic_folder(job_folder(folder, job.id), overwrite=True) as partial:
        for log in job_folder(folder, job.id).parent.glob(f".{job.id}-*/log.txt"):
            shutil.copy(log, partial / "log.txt")
        write_failure(partial, job, f"its process ended with {how}" + (" (out of memory?)" if code == -9 else ""))
    for left in job_folder(folder, job.id).parent.glob(f".{job.id}-*"):
        shutil.rmtree(left, ignore_errors=True)
    found = read_job(folder, job.id)
    assert found is not None
    return found


def _context() -> multiprocessing.context.BaseContext:
    has_server = "forkserver" in multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("forkserver" if has_server else "spawn")
    if has_server:
        context.set_forkserver_preload([WORKER])
    return context


def _devices() -> list[str]:
    """Names of the CUDA devices that this process may use, as `CUDA_VISIBLE_DEVICES` has them."""
    import torch

    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    if given:
        return [name.strip() for name in given.split(",")]
    return [str(index) for index in range(torch.cuda.device_count())]


def run_study(arguments: "StudyArguments") -> tuple[JobResult, ...]:
    """Run all jobs of a study that have not finished yet, and write its tables.

    Returns:
        Every job that has ended.

    Raises:
        RetFoundError: anything wrong with the file, before any job starts; or, when all have ended, failed jobs.
    """
    started = time.time()
    study = read_settings(arguments.study)
    if arguments.jobs < 1:
        raise RetFoundError(f"--jobs {arguments.jobs} must be at least 1")
    folder = Path(arguments.output_dir or Path(arguments.study).stem)
    tasks = check_study(study)
    jobs = plan_jobs(study, tasks)
    mine = part_of(jobs, arguments.part)
    done = {job.id for job in mine if (found := read_job(folder, job.id)) and found.status == "finished"}
    print(f"{study.name}: {len(jobs)} jobs, {len(mine)} of them here, {len(done)} finished already")
    if arguments.dry_run:
        guesses = guess_times(mine, study, tasks, ended_jobs(folder, [job.labelled for job in jobs]))
        left = [guess for job, guess in zip(mine, guesses, strict=True) if job.id not in done]
        print(job_table(mine, guesses, done), f"\n\n{len(left)} jobs to do, {total(left, arguments.jobs)}")
        return ()
    write_plan(folder, study, tasks, jobs)
    try:
        _run([job for job in mine if job.id not in done], study, folder, arguments.jobs)
    finally:
        ended = write_results(folder, study, jobs)
    write_run_record(folder, "study", arguments, seconds=round(time.time() - started, 1))
    failed = [job for job in ended if job.status == "failed"]
    from .report import write_report

    write_report(folder)
    print(f"Written to {folder}: report.html, results.csv; {len(ended) - len(failed)} of {len(jobs)} jobs finished")
    if failed:
        raise RetFoundError(
            f"{len(failed)} of {len(jobs)} jobs failed, such as {failed[0].id} ({failed[0].reason}); their folders in "
            f"{folder / 'jobs'} hold log.txt; the same command tries them again"
        )
    return ended


def _run(jobs: Sequence[Job], study: Study, folder: Path, at_once: int) -> None:
    progress = tqdm(total=len(jobs), desc=study.name, unit="job", disable=not jobs)
    with progress:
        for result in run_jobs(jobs, study, folder, at_once):
            if result.status == "failed":
                progress.write(f"failed: {result.id}: {result.reason}")
            progress.update()


@dataclass
class StudyArguments:
    study: str = field(metadata={"positional": True, "help": "YAML file that says what to compare, see the README"})
    output_dir: str | None = field(
        default=None,
        metadata={"help": "folder of the study, which a later call goes on with; default: the file's name"},
    )
    jobs: int = field(default=1, metadata={"help": "jobs to run at once on this machine"})
    part: str | None = field(
        default=None, metadata={"help": "i/n: this machine's share of the jobs, such as 1/4; all by default"}
    )
    dry_run: bool = field(default=False, metadata={"help": "check everything, print the table of jobs, and run none"})


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    (arguments,) = parse_arguments(
        StudyArguments,
        argv=argv,
        options_file=False,  # the study's file is one
        description="Models x methods x data sets x label fractions x seeds, from one file to tables.",
    )

    run_study(arguments)
