"""Worker processes that keep the order, bound what is in flight, and outlive an image that kills one of them."""

import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import forkserver
from typing import Any, TypeVar

from ...runs.errors import RetFoundError
from . import worker
from .worker import Job, Prepared, run_chunk, start_worker

Task = TypeVar("Task")
IN_FLIGHT = 4  # chunks for each worker
KILLED = "it ended the process that read it (the decoder crashed, or memory ran out)"


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """Processes that prepare images; to be used in a `with`.

    They are forked from a server that has imported the package once: a worker of its own import takes seconds and
    hundreds of megabytes, and one forked from this process could inherit a lock that nobody will release.
    """

    def __init__(self, num_workers: int, job: Job):
        self.num_workers = num_workers
        self.job = job
        has_server = "forkserver" in multiprocessing.get_all_start_methods()
        self._context = multiprocessing.get_context("forkserver" if has_server else "spawn")
        if has_server:
            _start_server(self._context)
        self._pool = self._new_pool(num_workers)
        self._lone: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self._pool, self._lone):
            if pool is not None:
                pool.shutdown(wait=True, cancel_futures=True)

    def ordered(self, tasks: Iterable[tuple[Task, Sequence[Any]]]) -> Iterator[tuple[Task, list[Prepared]]]:
        """The results of `(task, refs)` pairs in their order; the pairs are taken as there is room for them.

        Raises:
            RetFoundError: no worker process can be kept alive even without an image.
        """
        tasks = iter(tasks)
        waiting: deque[tuple[Task, Sequence[Any], Future]] = deque()
        while True:
            while len(waiting) < IN_FLIGHT * self.num_workers and (pair := next(tasks, None)) is not None:
                waiting.append((*pair, self._submit(pair[1])))
            if not waiting:
                return
            try:
                results = waiting[0][2].result()
            except BrokenProcessPool:
                self._rescue(waiting)
                continue
            yield waiting.popleft()[0], results

    def _new_pool(self, num_workers: int) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(num_workers, self._context, start_worker, (self.job,))

    def _submit(self, refs: Sequence[Any]) -> Future:
        try:
            with _interrupt_deferred():
                return self._pool.submit(run_chunk, refs)
        except BrokenProcessPool as error:
            failed: Future = Future()
            failed.set_exception(error)
            return failed

    def _rescue(self, waiting: deque[tuple[Task, Sequence[Any], Future]]) -> None:
        """Do again, one by one, what a dead worker took down with it; all that was in flight is suspect."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        try:
            self._alone([])
        except BrokenProcessPool as error:
            raise RetFoundError(
                "worker processes end as soon as they start; check the memory that is free, and --num_workers"
            ) from error
        for place, (task, refs, future) in enumerate(waiting):
            if future.cancelled() or future.exception() is not None:
                done: Future = Future()
                done.set_result(self._survivors(refs))
                waiting[place] = task, refs, done
        self._pool = self._new_pool(self.num_workers)

    def _survivors(self, refs: Sequence[Any]) -> list[Prepared]:
        """Results of a suspect chunk, in which an image that kills a process of its own is rejected."""
        try:
            return self._alone(refs)
        except BrokenProcessPool:
            if len(refs) == 1:
                return [Prepared(reason=KILLED)]
        return [result for ref in refs for result in self._survivors([ref])]

    def _alone(self, refs: Sequence[Any]) -> list[Prepared]:
        if self._lone is None:
            self._lone = self._new_pool(1)
        try:
            with _interrupt_deferred():
                future = self._lone.submit(run_chunk, refs)
            return future.result()
        except BrokenProcessPool:
            self._lone.shutdown()
            self._lone = None
            raise


@contextmanager
def _interrupt_deferred() -> Iterator[None]:
    """Let Ctrl-C wait: a process that is half started when its parent leaves ends in a traceback."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    caught: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: caught.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if caught:
        raise KeyboardInterrupt


def _start_server(context: multiprocessing.context.BaseContext) -> None:
    context.set_forkserver_preload([worker.__name__])
    if threading.current_thread() is not threading.main_thread():
        forkserver.ensure_running()
        return
    # It inherits this, so that Ctrl-C during its imports brings no traceback.
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        forkserver.ensure_running()
    finally:
        signal.signal(signal.SIGINT, before)
