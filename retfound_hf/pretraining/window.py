"""What happened since the last log line; kept on the device, so that the host waits for it only when it logs."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Window:
    """The steps since the last log line.

    Attributes:
        rows: of every step the recorded values, on the device.
        ids: of every step the images of this process.
        images: used by all processes.
    """

    rows: list[Tensor] = field(default_factory=list)
    ids: list[list[str]] = field(default_factory=list)
    images: int = 0
    _waited: float = 0.0
    _started: float = field(default_factory=time.perf_counter)

    def add(self, values: Tensor, ids: list[str], images: int) -> None:
        """Record a step: its values (columns,) on the device, this process's images, the number of all images."""
        self.rows.append(values)
        self.ids.append(ids)
        self.images += images

    def values(self) -> Tensor:
        """(steps, columns) on the device."""
        return torch.stack(self.rows)

    def restore(self, rows: list[list[float | None]], device: torch.device) -> None:
        """Put back the steps that a checkpoint found between two log lines; their time is not known any more."""
        filled = [[math.nan if value is None else value for value in row] for row in rows]
        self.rows = [torch.tensor(row, dtype=torch.float32, device=device) for row in filled]
        self.ids = [[] for _ in rows]

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time within as waiting for data."""
        began = time.perf_counter()
        yield
        self._waited += time.perf_counter() - began

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave the time within out: saving, previews and probes are no training."""
        began = time.perf_counter()
        yield
        self._started += time.perf_counter() - began

    def speed(self) -> dict[str, float]:
        """Images per second of all processes, and the share of the time that this one waited for data."""
        seconds = max(time.perf_counter() - self._started, 1e-9)
        return {
            "images_per_second": round(self.images / seconds, 2),
            "data_wait_fraction": round(min(self._waited / seconds, 1.0), 4),
        }


def storable(rows: Tensor) -> list[list[float | None]]:
    """Rows as JSON takes them and `Window.restore` reads them: norms of gradients that overflowed (fp16) are None."""
    return [[value if math.isfinite(value) else None for value in row] for row in rows.tolist()]
