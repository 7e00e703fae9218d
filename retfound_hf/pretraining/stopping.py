"""SIGTERM, SIGINT or a lost launcher as a wish to stop after the step at hand, on which all processes agree."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import torch
import torch.distributed as dist

SIGNALS = (signal.SIGTERM, signal.SIGINT)
LAUNCHED = ("ACCELERATE_MIXED_PRECISION", "TORCHELASTIC_RUN_ID")  # set for their processes by accelerate and torchrun


class StopSignal:
    """Whether a signal has come, to this process or to another one.

    The processes ask each other on the host (gloo), and take the answer a step later: no GPU waits for it.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        # Without a launcher the parent is a shell, which may end before the run that it put into the background.
        self._launcher = os.getppid() if any(name in os.environ for name in LAUNCHED) else None
        self._shared = dist.is_initialized() and dist.get_world_size() > 1
        self._group = dist.new_group(backend="gloo") if self._shared else None
        self._asked: tuple[torch.Tensor, dist.Work] | None = None

    @property
    def name(self) -> str:
        if self.received is not None:
            return signal.Signals(self.received).name
        return "the end of its launcher" if self._orphaned() else "a signal to another process"

    def _orphaned(self) -> bool:
        """For one process `accelerate launch` hands no signal on: what ends the launcher must stop the run."""
        return self._launcher is not None and os.getppid() != self._launcher

    def agreed(self) -> bool:
        """Ask once per step, on every process: true on all of them at the same step."""
        wished = self.received is not None or self._orphaned()
        if not self._shared:
            return wished
        answer = False
        if self._asked is not None:
            votes, work = self._asked
            work.wait()
            answer = bool(votes.item())
        votes = torch.tensor([float(wished)])
        self._asked = votes, dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group, async_op=True)
        return answer

    @contextmanager
    def listening(self) -> Iterator["StopSignal"]:
        """Take the signals over; a second SIGINT does what it did before."""
        before = {number: signal.signal(number, self._receive) for number in SIGNALS}
        self._before = before
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        # A second SIGTERM is no impatience: launchers hand theirs on to processes that a scheduler has told already.
        if number == signal.SIGINT:
            signal.signal(number, self._before[number])
