"""Where the open shards of a run lie, so that no other run takes or removes them."""

import hashlib
import shutil
from pathlib import Path

LENGTH = 8  # of the hashes in a folder's name


def place_of(root: Path, output_dir: Path, fingerprint: str, process: int, num_processes: int) -> Path:
    """The folder for the open shards of one process of a run, not made yet.

    What a killed attempt at the same `output_dir` left in `root` is removed: whatever its data were, and also that of
    processes which the run has no more.

    Args:
        root: shared by the runs with one `--cache_dir`.
        fingerprint: of the table.
    """
    run = hashlib.sha256(str(output_dir.resolve()).encode()).hexdigest()[:LENGTH]
    for left in root.glob(f".stream-{run}-*"):
        number = int(left.name.split("-")[2])
        if number == process or number >= num_processes:
            shutil.rmtree(left, ignore_errors=True)
    return root / f".stream-{run}-{process}-{fingerprint[:LENGTH]}"
