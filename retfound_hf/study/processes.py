"""Several jobs at once, each in a process of its own, forked from a server that has imported everything once."""

import multiprocessing
import os
import shutil
from collections.abc import Iterator, Sequence
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from pathlib import Path

from ..data.shards.pool import usable_cores
from ..runs.files import whole_folder
from .folder import JobResult, read_job
from .jobs import Job
from .layout import job_folder
from .settings import Study

WORKER = "retfound_hf.study.worker"


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
    from .worker import Work, work  # where there is no server, these imports take seconds

    work(Work(*facts))


def _result(process: BaseProcess, job: Job, folder: Path) -> JobResult:
    process.join()
    found = read_job(folder, job.id)
    # What is finished stays so, whatever befell the process after its training: the tables look again at the rest.
    if found is not None and (process.exitcode == 0 or found.status == "finished"):
        return found
    code = process.exitcode or 0
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    with whole_folder(job_folder(folder, job.id), overwrite=True) as partial:
        from .worker import write_failure

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
