"""What a run says while it runs: `metrics.jsonl`, trackers, the progress bar."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor
from tqdm import tqdm

from ..runs.files import whole_file

METRICS_FILE = "metrics.jsonl"


class Report:
    """Lines of numbers, written by the main process alone.

    Args:
        step: the run starts or goes on after this one; lines of later steps, which an earlier attempt wrote after
            its last checkpoint, are removed, since they will be written again.
        total_steps: for the progress bar and its estimate of the time that is left.
    """

    def __init__(self, accelerator: Accelerator, output_dir: Path, step: int, total_steps: int):
        self.accelerator = accelerator
        self.path = output_dir / METRICS_FILE
        if accelerator.is_main_process:
            _keep_until(self.path, step)
        self.bar = tqdm(
            total=total_steps,
            initial=step,
            desc="pretrain",
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
        )

    def log(self, record: dict[str, Any]) -> None:
        """Add a line; `record` has a `step`. Undefined and infinite numbers are written as null."""
        if not self.accelerator.is_main_process:
            return
        record = {
            name: None if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in record.items()
        }
        with open(self.path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record, allow_nan=False) + "\n")
        numbers = {name: value for name, value in record.items() if name != "step" and value is not None}
        self.accelerator.log(numbers, step=record["step"])

    def show(self, record: dict[str, Any], names: Sequence[str] = ()) -> None:
        """The latest numbers on the progress bar; `names` are those of the objective's own."""
        shown = {
            "loss": f"{record['loss']:.4f}",
            "lr": f"{record['learning_rate']:.2e}",
            "images/s": f"{record['images_per_second']:.0f}",
            "wait": f"{record['data_wait_fraction']:.0%}",
        }
        shown |= {name: f"{record[name]:.3f}" for name in names}
        self.bar.set_postfix(shown, refresh=False)

    def show_picture(self, picture: Tensor, step: int) -> None:
        """Hand a preview, uint8 (1, height, width, 3), to the trackers that take pictures."""
        for tracker in self.accelerator.trackers:
            if hasattr(tracker, "log_images"):
                options = {"dataformats": "NHWC"} if tracker.name == "tensorboard" else {}
                tracker.log_images({"preview": picture.numpy()}, step=step, **options)

    def advance(self) -> None:
        self.bar.update()

    def close(self) -> None:
        self.bar.close()
        for tracker in self.accelerator.trackers:
            tracker.finish()


def _keep_until(path: Path, step: int) -> None:
    if not path.is_file():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:  # half a line, where the earlier attempt was killed
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    with whole_file(path) as partial:
        partial.write_text("".join(kept), encoding="utf-8")
