"""Checkpoints, each of them a model folder, and resuming from them."""

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors.torch import load_file, load_model, save_file
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import RetFoundError, one_line
from ..files import open_to_all, write_json
from .objectives.base import Objective

STATE_FILE = "training_state.json"
OWN_FILE = "objective.safetensors"
FOLDER = re.compile(r"checkpoint-(\d+)")


@dataclass
class Checkpoints:
    """The checkpoints of one run, `checkpoint-<step>` in its output folder.

    Args:
        accelerator: that has prepared the objective and its optimiser.
        processor: saved with every model, so that each checkpoint is a folder for the Auto classes.
        limit: how many to keep, the newest; None keeps all.
    """

    output_dir: Path
    accelerator: Accelerator
    processor: BaseImageProcessor
    limit: int | None = None

    def __post_init__(self) -> None:
        self.accelerator.register_save_state_pre_hook(self._save_weights)
        self.accelerator.register_load_state_pre_hook(self._load_weights)

    def save(self, step: int, state: dict[str, Any]) -> Path:
        """Write a checkpoint; on any failure nothing of it stays, and the earlier ones do.

        Args:
            state: JSON-able facts for `load`.

        Raises:
            RetFoundError: such as for a full disk; on every process.
        """
        accelerator = self.accelerator
        folder = self.output_dir / f"checkpoint-{step}"
        partial = self.output_dir / f".checkpoint-{step}-partial"
        if accelerator.is_main_process:
            remove_leftovers(self.output_dir)
        accelerator.wait_for_everyone()
        failure = ""
        try:
            accelerator.save_state(str(partial))
            if accelerator.is_main_process:
                write_json(partial / STATE_FILE, state)
                open_to_all(partial)
                for path in [*partial.iterdir(), partial]:
                    _flush(path)
        except Exception as error:  # the writers below report a full disk by errors of three types
            failure = " ".join(str(error).split()) or type(error).__name__
        failures = [reason for reason in gather_object([failure]) if reason]
        if accelerator.is_main_process and not failures:
            _discard(folder)
            os.replace(partial, folder)
            self._remove_others(step)
        elif accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        if failures:
            newest = latest_checkpoint(self.output_dir)
            raise RetFoundError(
                f"checkpoint-{step} could not be written to {self.output_dir} ({failures[0][:300]}); "
                + (f"{newest.name} is whole: make room and go on with --resume_from_checkpoint latest" if newest else
                   "there is no earlier one: make room and start again")
            )  # fmt: skip
        return folder

    def load(self, folder: Path) -> dict[str, Any]:
        """Put weights, optimiser and scaler back, and return the state that `save` was given.

        Raises:
            RetFoundError: damaged, or of another network.
        """
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:  # readers of three libraries, each with its own errors
            raise RetFoundError(
                f"--resume_from_checkpoint {folder} cannot be taken up ({one_line(error)}); give "
                "the --config_name or --model_name_or_path of its run, or an earlier checkpoint if it is damaged"
            ) from error
        return read_state(folder)

    def _remove_others(self, step: int) -> None:
        """Those beyond the limit; and later ones, of a course that the run has left by going on from before them."""
        later = [path for path in _checkpoints(self.output_dir) if _step_of(path) > step]
        for path in later:
            _discard(path)
        if self.limit is not None:
            for path in _checkpoints(self.output_dir)[: -self.limit]:
                _discard(path)

    def _save_weights(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        """Take the saving of weights over from accelerate, which would write the whole module under its own names."""
        weights.clear()
        if not self.accelerator.is_main_process:
            return
        (objective,) = models
        objective: Objective = self.accelerator.unwrap_model(objective)
        objective.model.save_pretrained(output_dir)
        self.processor.save_pretrained(output_dir)
        own = {name: value for name, value in objective.state_dict().items() if not name.startswith("model.")}
        if own:
            save_file({name: value.contiguous() for name, value in own.items()}, Path(output_dir, OWN_FILE))

    def _load_weights(self, models: list[Any], input_dir: str) -> None:
        (objective,) = models
        models.clear()
        objective: Objective = self.accelerator.unwrap_model(objective)
        load_model(objective.model, Path(input_dir, "model.safetensors"))
        own = Path(input_dir, OWN_FILE)
        if own.is_file():
            found = load_file(own)
            missing = [
                name for name in objective.load_state_dict(found, strict=False).missing_keys
                if not name.startswith("model.")
            ]  # fmt: skip
            if missing:
                raise RetFoundError(f"{input_dir} lacks {missing[0]} of the objective; was it made by another one?")


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest whole checkpoint of a run."""
    found = _checkpoints(output_dir)
    return found[-1] if found else None


def remove_checkpoints(output_dir: Path) -> None:
    """Remove all of a run that is replaced."""
    for path in _checkpoints(output_dir):
        _discard(path)


def remove_leftovers(output_dir: Path) -> None:
    """Remove what a run left that was killed while it wrote or removed a checkpoint."""
    for path in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    return json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))


def _checkpoints(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob("checkpoint-*") if FOLDER.fullmatch(path.name)]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(FOLDER.fullmatch(folder.name)[1])


def _discard(folder: Path) -> None:
    """Remove a folder, under another name: one that is removed by half would still look like a checkpoint."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}-removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _flush(path: Path) -> None:
    """Bring a file or a folder's list to the disk, so that no rename outruns its content when the machine stops."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_checkpoint(asked: str | None, output_dir: Path) -> Path | None:
    """The folder that `--resume_from_checkpoint` asks for: a path, or `latest` in the output folder.

    Returns:
        None to start anew, also where `latest` finds none: so a job that is started again and again needs one command.

    Raises:
        RetFoundError: the path is no checkpoint.
    """
    if asked is None:
        return None
    if asked == "latest":
        return latest_checkpoint(output_dir)
    folder = Path(asked)
    if not (folder / STATE_FILE).is_file():
        what = "is no checkpoint of pretrain" if folder.exists() else "does not exist"
        newest = latest_checkpoint(folder)
        fix = f"give {newest}" if newest else "give a folder checkpoint-<step> of a run, or latest"
        raise RetFoundError(f"--resume_from_checkpoint {asked} {what}; {fix}")
    return folder


def check_resumable(state: dict[str, Any], facts: dict[str, Any], max_steps: int, folder: Path) -> None:
    """Raise unless a run with `facts` may go on from a checkpoint with `state`."""
    reasons = {
        "objective": "start a new run from its weights with --model_name_or_path {folder}",
        "seed": "the order of the images would be another one: give the same --seed",
        "fingerprint": "the shards are not the same: give the same --train_data, or start a new run from the weights "
        "with --model_name_or_path {folder}",
    }
    for name, fix in reasons.items():
        if state[name] != facts[name]:
            raise RetFoundError(
                f"--resume_from_checkpoint {folder}: its {name} is {state[name]}, and now it is {facts[name]}; "
                + fix.format(folder=folder)
            )
    before, now = state.get("stream"), facts["stream"]
    if before != now and state["position"]["offset"]:
        raise RetFoundError(
            f"--resume_from_checkpoint {folder}: it is in the middle of an epoch {_said(before)}, and now the images "
            f"come {_said(now)}, in another order; give the same, or start a new run from the weights with "
            f"--model_name_or_path {folder}"
        )
    if max_steps > 0 and state["global_batch"] != facts["global_batch"]:
        raise RetFoundError(
            f"--resume_from_checkpoint {folder}: its step has {state['global_batch']} images, and now it has "
            f"{facts['global_batch']} (batch x accumulation x processes), so --max_steps means another length; give "
            "--num_train_epochs, or --gradient_accumulation_steps that makes the same product"
        )


def _said(stream: dict[str, int] | None) -> str:
    if stream is None:
        return "without --streaming"
    return f"with --streaming, {stream['processes']} processes and --mixed_shards {stream['mixed_shards']}"
