"""The processes of a run."""

import torch
from accelerate import PartialState


def process_state() -> PartialState:
    """Which process this is, and of how many.

    accelerate joins processes on CPUs only when it is told that they are meant; otherwise each of them would take
    itself for the only one, and all would write the same files.
    """
    return PartialState(cpu=not torch.accelerator.is_available())
