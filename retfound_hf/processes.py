"""Worker processes: their start without the caller's script, their end with their parent, their cores and memory."""

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.context import BaseContext
from typing import Any

_starting = threading.RLock()


def usable_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def release_memory() -> None:
    """Return freed memory to the system, where the C library can.

    glibc keeps what each thread has freed for that thread alone: of forty threads of a server, each would hold the
    buffers of the largest image that it ever read.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def worker_context(preload: str) -> BaseContext:
    """Start method for worker processes: forked from a server that has imported torch and the module `preload` once.

    A worker with imports of its own takes seconds and hundreds of megabytes, and one forked from this process could
    inherit a lock that nobody releases. Where there is no fork server, workers are spawned.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([preload, "torch"])
    if threading.current_thread() is threading.main_thread():
        # The server inherits the handler, so that Ctrl-C during its imports brings no traceback.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            with clean_start():
                forkserver.ensure_running()
        finally:
            signal.signal(signal.SIGINT, before)
    return context


@contextmanager
def clean_start() -> Iterator[None]:
    """Keep the caller's script and the files of the working directory out of processes that the block starts.

    A script that calls the package without `if __name__ == "__main__"` would run again in each of them, so what they
    are sent must not be defined in it. multiprocessing starts them by `python -c`, which looks for modules in the
    working directory first: a `multiprocessing.py` among somebody's images would run. PYTHONSAFEPATH, of Python 3.11
    and later, prevents that.
    """
    with _starting:
        names = vars(sys.modules["__main__"])
        hidden: dict[str, Any] = {name: names.pop(name) for name in ("__spec__", "__file__") if name in names}
        names["__spec__"] = None
        safe_path = os.environ.get("PYTHONSAFEPATH")
        os.environ["PYTHONSAFEPATH"] = "1"
        try:
            yield
        finally:
            names.update(hidden)
            if safe_path is None:
                del os.environ["PYTHONSAFEPATH"]
            else:
                os.environ["PYTHONSAFEPATH"] = safe_path


@contextmanager
def deferred_interrupt() -> Iterator[None]:
    """Deliver Ctrl-C at the end of the block, in the main thread.

    A process that is half started when its parent leaves ends in a traceback.
    """
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


def exit_with_parent() -> None:
    """End this process when its parent is gone: a killed parent says nothing to its workers."""
    parent = multiprocessing.parent_process()

    def follow() -> None:
        parent.join()
        os._exit(1)

    if parent is not None:
        threading.Thread(target=follow, daemon=True).start()
