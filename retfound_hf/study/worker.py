"""The process of one job: its output goes to a log, its result appears whole, its death harms no other job."""

import dataclasses
import os
import shutil
import signal
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing import connection, parent_process
from pathlib import Path

import torch

from ..runs.errors import RetFoundError
from ..runs.files import whole_folder, write_json
from .folder import JobResult
from .jobs import Job
from .layout import job_folder
from .perform import perform
from .resampling import resampled
from .settings import Study


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
    with whole_folder(target, overwrite=True) as partial:
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
