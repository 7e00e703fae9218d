"""Checkpoints, each of them a model folder, and resuming from them."""

import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from safetensors import SafetensorError
from safetensors.torch import load_file, load_model, save_file
from transformers.image_processing_utils import BaseImageProcessor

from ..errors import BadArgumentError, BadModelError, OutputError, one_line
from ..files import open_to_all, read_json, write_json
from .objectives.base import Objective

STATE_FILE = "training_state.json"
OBJECTIVE_FILE = "objective.safetensors"
FOLDER = re.compile(r"checkpoint-(\d+)")
# A full disk is reported by safetensors and by torch.save in their own ways.
WRITE_ERRORS = (OSError, SafetensorError, RuntimeError)


@dataclass
class Checkpoints:
    """Checkpoints of one run, `checkpoint-<step>` in its output folder.

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
        """Write a checkpoint; if that fails nothing of it stays, and the earlier ones do.

        Args:
            state: JSON-able facts for `load`.

        Raises:
            OutputError: such as for a full disk; on every process.
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
        except WRITE_ERRORS as error:
            failure = one_line(error)
        failures = [reason for reason in gather_object([failure]) if reason]
        if accelerator.is_main_process and not failures:
            _remove(folder)
            os.replace(partial, folder)
            self._remove_others(step)
        elif accelerator.is_main_process:
            shutil.rmtree(partial, ignore_errors=True)
        accelerator.wait_for_everyone()
        if failures:
            raise cannot_write(self.output_dir, f"checkpoint-{step}", failures[0])
        return folder

    def load(self, folder: Path) -> dict[str, Any]:
        """Restore weights, optimiser and scaler, and return the state that `save` was given.

        Raises:
            BadModelError: damaged, or of another network.
        """
        try:
            self.accelerator.load_state(str(folder))
        except Exception as error:  # readers of three libraries, each with its own errors
            raise BadModelError(
                f"cannot resume from {folder} ({one_line(error)}); pass the `config_name` or `model_name_or_path` of "
                "its run, or an earlier checkpoint if it is damaged",
                model=folder,
            ) from error
        return read_state(folder)

    def _remove_others(self, step: int) -> None:
        """Remove those beyond the limit, and later ones, of a course that was left by resuming before them."""
        found = _checkpoints(self.output_dir)
        kept = [path for path in found if _step_of(path) <= step]
        for path in found[len(kept) :] + (kept[: -self.limit] if self.limit is not None else []):
            _remove(path)

    def _save_weights(self, models: list[Any], weights: list[Any], output_dir: str) -> None:
        """Save the weights in place of accelerate, which would write the whole module under its own names."""
        weights.clear()
        if not self.accelerator.is_main_process:
            return
        objective: Objective = self.accelerator.unwrap_model(models[0])
        objective.model.save_pretrained(output_dir)
        self.processor.save_pretrained(output_dir)
        own = {name: value for name, value in objective.state_dict().items() if not name.startswith("model.")}
        if own:
            save_file({name: value.contiguous() for name, value in own.items()}, Path(output_dir, OBJECTIVE_FILE))

    def _load_weights(self, models: list[Any], input_dir: str) -> None:
        objective: Objective = self.accelerator.unwrap_model(models.pop())
        load_model(objective.model, Path(input_dir, "model.safetensors"))
        own = Path(input_dir, OBJECTIVE_FILE)
        if own.is_file():
            absent = objective.load_state_dict(load_file(own), strict=False).missing_keys
            missing = [name for name in absent if not name.startswith("model.")]
            if missing:
                raise BadModelError(f"{input_dir} lacks {missing[0]} of the objective", model=input_dir)


def cannot_write(output_dir: Path, what: str, reason: str) -> OutputError:
    """The error for a full disk: what could not be written, and which checkpoint the run can resume from."""
    newest = latest_checkpoint(output_dir)
    fix = "make room and start again: there is no checkpoint"
    if newest is not None:
        fix = f"make room and go on from {newest.name} with `resume_from_checkpoint=latest`"
    return OutputError(f"{what} could not be written to {output_dir} ({reason}); {fix}", path=output_dir)


def latest_checkpoint(output_dir: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return max(_checkpoints(output_dir), key=_step_of, default=None)


def remove_checkpoints(output_dir: Path) -> None:
    """Remove all checkpoints of a run that is replaced."""
    for path in _checkpoints(output_dir):
        _remove(path)


def remove_leftovers(output_dir: Path) -> None:
    """Remove the rest of checkpoints that a killed run was writing or removing."""
    for path in output_dir.glob(".checkpoint-*"):
        shutil.rmtree(path, ignore_errors=True)


def read_state(folder: Path) -> dict[str, Any]:
    """The state that `Checkpoints.save` was given."""
    return read_json(folder / STATE_FILE)


def _checkpoints(output_dir: Path) -> list[Path]:
    found = [path for path in output_dir.glob("checkpoint-*") if FOLDER.fullmatch(path.name)]
    return sorted((path for path in found if (path / STATE_FILE).is_file()), key=_step_of)


def _step_of(folder: Path) -> int:
    return int(FOLDER.fullmatch(folder.name)[1])


def _remove(folder: Path) -> None:
    """Remove a folder under another name: half removed under its own, it would still look like a checkpoint."""
    if folder.exists():
        hidden = folder.with_name(f".{folder.name}-removed")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _flush(path: Path) -> None:
    """Write a file or a folder's list to the disk, so that no rename outruns its content when the machine stops."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def find_checkpoint(asked: str | None, output_dir: Path) -> Path | None:
    """The folder that `resume_from_checkpoint` names: a path, or `latest` in the output folder.

    Returns:
        None to start anew, also where `latest` finds none: so a job that is started again and again needs one command.

    Raises:
        BadArgumentError: the path is not a checkpoint.
    """
    if asked is None or asked == "latest":
        return latest_checkpoint(output_dir) if asked else None
    folder = Path(asked)
    if not (folder / STATE_FILE).is_file():
        reason = "is not a checkpoint of pretraining" if folder.exists() else "does not exist"
        newest = latest_checkpoint(folder)
        fix = f"pass {newest}" if newest else "pass a folder checkpoint-<step> of a run, or latest"
        raise BadArgumentError(
            f"`resume_from_checkpoint={asked}` {reason}; {fix}", field="resume_from_checkpoint", value=asked
        )
    return folder


def check_resumable(state: dict[str, Any], facts: dict[str, Any], max_steps: int, folder: Path) -> None:
    """Raise `BadArgumentError`, whose field differs from the checkpoint's, unless a run may go on from it.

    Args:
        state: of the checkpoint `folder`.
        facts: the same of the run; `max_steps` its length, if above 0.
    """
    new_run = f"start a new run from its weights with `model_name_or_path={folder}`"
    reasons = {
        "objective": ("objective", new_run),
        "seed": ("seed", "the order of the images would be another one: pass the same `seed`"),
        "fingerprint": ("train_data", f"the shards are not the same: pass the same `train_data`, or {new_run}"),
    }
    for name, (field, fix) in reasons.items():
        if state[name] != facts[name]:
            raise BadArgumentError(
                f"cannot resume from {folder}: its {name} is {state[name]}, and now it is {facts[name]}; {fix}",
                field=field, value=facts[name], accepted=[state[name]],
            )  # fmt: skip
    before, now = state.get("stream"), facts["stream"]
    if before != now and state["position"]["offset"]:
        raise BadArgumentError(
            f"cannot resume from {folder}: it is in the middle of an epoch {_describe_stream(before)}, and now the "
            f"images come {_describe_stream(now)}, in another order; pass the same, or {new_run}",
            field="streaming" if before is None or now is None else "mixed_shards", value=now, accepted=[before],
        )  # fmt: skip
    if max_steps > 0 and state["global_batch"] != facts["global_batch"]:
        raise BadArgumentError(
            f"cannot resume from {folder}: its step has {state['global_batch']} images, and now it has "
            f"{facts['global_batch']} (batch x accumulation x processes), so `max_steps` means another length; pass "
            "`num_train_epochs`, or `gradient_accumulation_steps` that makes the same product",
            field="max_steps", value=max_steps,
        )  # fmt: skip


def _describe_stream(stream: dict[str, int] | None) -> str:
    if stream is None:
        return "without `streaming`"
    return f"with `streaming`, {stream['processes']} processes and `mixed_shards={stream['mixed_shards']}`"
