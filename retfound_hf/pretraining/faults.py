"""What goes wrong in long runs: losses that are not finite, images that cannot be read."""

import csv
import logging
import math
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from ..runs.errors import RetFoundError
from ..runs.files import whole_file, write_json

logger = logging.getLogger(__name__)
REJECTED_FILE = "rejected.csv"
NON_FINITE_FILE = "non_finite-step-{}.json"
# Unreadable images are compared with a share of at least so many: the first of a run proves nothing.
FEWEST = 10_000
# Skipped steps in a row that end a run: it learns nothing any more.
MOST_IN_A_ROW = 10
# The same for steps whose scaled gradients overflowed (fp16): of a loss scale of 65,536 nothing is left after 16.
MOST_OVERFLOWS = 50
NAMED = 8


class NonFinite:
    """Steps whose loss or gradient is NaN or infinite. The weights never take such a step (see `guarded_step`).

    Args:
        skip: go on after such a step, instead of stopping the run.
        total_steps: of the run.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, skip: bool, total_steps: int):
        self.accelerator = accelerator
        self.output_dir = output_dir
        self.skip = skip
        self.skipped = 0
        self.in_a_row = 0
        self.most_in_a_row = min(MOST_IN_A_ROW, total_steps)
        self.overflows = 0
        self.most_overflows = min(MOST_OVERFLOWS, total_steps)

    def check(self, shared: Tensor, own: Tensor, ids: list[list[str]], last_step: int) -> list[int]:
        """Look at steps that were not looked at before, on every process.

        Args:
            shared: float (steps, columns), loss and gradient norm first, the mean over processes.
            own: the same of this process.
            ids: of every step this process's images.
            last_step: number of the last of the steps.

        Returns:
            Indices of the finite steps.

        Raises:
            RetFoundError: names the first such step and its images, unless they are skipped; also where too many
                steps in a row, or all of the run, were not finite, or overflowed (fp16).
        """
        # Overflow of scaled gradients is everyday work of the fp16 scaler; a loss that is not finite never is.
        looked_at = shared[:, :1] if self.accelerator.scaler is not None else shared[:, :2]
        finite = looked_at.isfinite().all(dim=1).tolist()
        bad = [index for index, fine in enumerate(finite) if not fine]
        for index in bad:
            step = last_step - len(finite) + 1 + index
            blamed = [] if own[index, 0].isfinite() else ids[index]
            named = sorted({name for part in gather_object([blamed]) for name in part})
            named = named or sorted({name for part in gather_object([ids[index]]) for name in part})
            self._report(step, float(shared[index, 0]), float(shared[index, 1]), named, fatal=not self.skip)
        self.skipped += len(bad)
        for index, fine in enumerate(finite):
            self.in_a_row = 0 if fine else self.in_a_row + 1
            if self.in_a_row >= self.most_in_a_row:
                raise RetFoundError(
                    f"none of the {self.in_a_row} steps up to {last_step - len(finite) + 1 + index} had a finite loss "
                    "and gradient; lower --learning_rate, or use --bf16 in place of --fp16"
                )
        if self.accelerator.scaler is not None:
            self._check_overflows(shared[:, 1].isfinite().tolist(), last_step)
        return [index for index, fine in enumerate(finite) if fine]

    def _check_overflows(self, finite: list[bool], last_step: int) -> None:
        """The scaler passes over a step that overflows and halves its scale, also where no scale helps any more."""
        for step, fine in enumerate(finite, last_step - len(finite) + 1):
            self.overflows = 0 if fine else self.overflows + 1
            if self.overflows >= self.most_overflows:
                raise RetFoundError(
                    f"none of the {self.overflows} steps up to {step} had a finite gradient, whatever the loss scale, "
                    f"which is {self.accelerator.scaler.get_scale():g} now; go on from the last checkpoint with "
                    "--bf16 in place of --fp16, or lower --learning_rate"
                )

    def _report(self, step: int, loss: float, norm: float, ids: list[str], fatal: bool) -> None:
        path = self.output_dir / NON_FINITE_FILE.format(step)
        if self.accelerator.is_main_process:
            write_json(path, {"step": step, "loss": str(loss), "grad_norm": str(norm), "ids": ids})
        images = ", ".join(ids[:NAMED]) + (f" and {len(ids) - NAMED} more" if len(ids) > NAMED else "")
        what = f"the loss is {loss} and the gradient norm {norm} at step {step}, whose images are {images}"
        if fatal:
            raise RetFoundError(
                f"{what} (all in {path}); look at them, lower --learning_rate, or go on from the last checkpoint with "
                "--on_non_finite skip"
            )
        if self.accelerator.is_main_process:
            logger.warning("%s; the step is skipped", what)


class Rejected:
    """Unreadable images, counted once each over all processes, and listed in `rejected.csv`.

    Args:
        num_images: in the shards.
        max_share: above which the run stops.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, num_images: int, max_share: float):
        self.accelerator = accelerator
        self.path = output_dir / REJECTED_FILE
        self.num_images = num_images
        self.max_share = max_share
        self.reasons: dict[str, str] = {}
        self._new: dict[str, str] = {}

    def add(self, rejected: list[tuple[str, str]]) -> None:
        """Note what this process met."""
        self._new.update(rejected)

    def check(self, seen: int) -> None:
        """Put together what all processes met; on every process.

        Args:
            seen: images used so far.

        Raises:
            RetFoundError: more than the share of the images seen (of 10,000 at least, or of all).
        """
        met = {name: reason for part in gather_object([self._new]) for name, reason in part.items()}
        self._new = {}
        if met.keys() <= self.reasons.keys():
            return
        self.reasons |= met
        if self.accelerator.is_main_process:
            with whole_file(self.path) as partial, open(partial, "w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([("id", "reason"), *sorted(self.reasons.items())])
            logger.warning("%d images could not be read: %s", len(self.reasons), self.path)
        basis = min(self.num_images, max(seen, FEWEST))
        if len(self.reasons) > math.floor(self.max_share * basis):
            raise RetFoundError(
                f"{len(self.reasons)} images of the shards cannot be read, more than --max_bad_share {self.max_share} "
                f"of {basis} allows (listed in {self.path}); mend the shards, or raise --max_bad_share"
            )
