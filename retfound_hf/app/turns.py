"""Batches one after another, in the order in which they came."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ..runs.errors import RetFoundError


class Turns:
    """A line in which the first runs and the others wait; several threads may join it at the same time.

    Args:
        most: places in the line, of which each holds a thread of the server and uploads on its disk.
    """

    def __init__(self, most: int):
        self.most = most
        self._line: list[object] = []

    @contextmanager
    def place(self) -> Iterator[Callable[[], int]]:
        """A place at the end of the line; gives a function that counts who is before it, 0 when its turn has come.

        Raises:
            RetFoundError: the line is full.
        """
        if len(self._line) >= self.most:
            raise RetFoundError(f"{self.most} batches are running or waiting, as many as may; try again later")
        own = object()
        self._line.append(own)
        try:
            yield lambda: self._line.index(own)
        finally:
            self._line.remove(own)
