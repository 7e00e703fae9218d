"""Which checkpoint a run goes on from, and whether it may."""

from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from .checkpoints import STATE_FILE, latest_checkpoint


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
