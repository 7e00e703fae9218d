"""The command `pretrain` from arguments to a finished model folder."""

import errno
import shutil
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..runs.errors import RetFoundError, one_line
from ..runs.files import move_into, only_writer, refuse_existing
from ..runs.record import write_run_record
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .assembly import make_accelerator, prepare
from .card import write_pretrained_card
from .checkpoints import latest_checkpoint, remove_checkpoints, remove_leftovers
from .faults import NON_FINITE_FILE, REJECTED_FILE
from .loading import make_loader
from .loop import Loop
from .report import METRICS_FILE
from .resuming import find_checkpoint

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def pretrain(model_args: ModelArguments, data_args: DataArguments, args: PretrainingArguments) -> Path | None:
    """Pretrain, and write a model folder; see `arguments` for what can be set.

    Returns:
        The output folder; None where a signal ended the run with a checkpoint.

    Raises:
        RetFoundError: bad input, a loss that is not finite, too many unreadable images, a full disk.
    """
    started = time.time()
    output_dir = Path(args.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    # With `latest` the folder may hold what an attempt left that never came to a checkpoint, but no finished model.
    if checkpoint is None and (args.resume_from_checkpoint is None or (output_dir / "config.json").exists()):
        refuse_existing(output_dir, args.overwrite_output_dir)
    accelerator = make_accelerator(args, output_dir)
    with only_writer(output_dir) if accelerator.is_main_process else nullcontext():
        accelerator.wait_for_everyone()
        # Another run may have written a later one before it let go of the folder.
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
        return _pretrain(model_args, data_args, args, accelerator, checkpoint, started)


def _pretrain(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
    accelerator: Accelerator,
    checkpoint: Path | None,
    started: float,
) -> Path | None:
    output_dir = Path(args.output_dir)
    if accelerator.is_main_process:
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir)
        if checkpoint is None:
            _remove_earlier(output_dir)
    accelerator.wait_for_everyone()
    loop, reader = prepare(model_args, data_args, args, accelerator, checkpoint)
    loader = make_loader(
        reader,
        loop.objective.draw,
        loop.order,
        loop.position,
        args.dataloader_num_workers,
        pin_memory=accelerator.device.type != "cpu",
    )
    batches = iter(loader)
    try:
        signal = loop.train(batches)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        newest = latest_checkpoint(output_dir)
        raise RetFoundError(
            f"{output_dir} cannot be written to after step {loop.position.step} ({error}); make room and go on with "
            f"--resume_from_checkpoint latest ({newest.name if newest else 'there is no checkpoint: from the start'})"
        ) from error
    finally:
        loop.report.close()
        # An error's traceback holds the iterator; collected with it, workers end late or stay.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        del batches, loader
        reader.close()
    if signal is not None:
        if accelerator.is_main_process:
            print(
                f"stopped by {signal} after step {loop.position.step}, with a checkpoint; go on with "
                "--resume_from_checkpoint latest"
            )
        accelerator.end_training()
        return None
    if accelerator.is_main_process:
        _write_result(loop, model_args, data_args, round(time.time() - started, 1))
        print(output_dir)
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return output_dir


def _remove_earlier(output_dir: Path) -> None:
    """What an earlier run left in a folder that is written anew; other files are not ours to remove."""
    remove_checkpoints(output_dir)
    shutil.rmtree(output_dir / "previews", ignore_errors=True)
    for name in (METRICS_FILE, REJECTED_FILE):
        (output_dir / name).unlink(missing_ok=True)
    for path in output_dir.glob(NON_FINITE_FILE.format("*")):
        path.unlink()


def _write_result(loop: Loop, model_args: Any, data_args: Any, seconds: float) -> None:
    objective, args = loop.objective, loop.args
    output_dir = Path(args.output_dir)
    try:
        with move_into(output_dir) as partial:
            objective.model.save_pretrained(partial)
            loop.checkpoints.processor.save_pretrained(partial)
            write_pretrained_card(
                partial,
                output_dir.name,
                objective.model,
                loop.checkpoints.processor,
                model_args,
                data_args,
                args,
                loop.order,
                seconds,
            )
    except Exception as error:
        newest = f"checkpoint-{loop.position.step}"
        raise RetFoundError(
            f"the model could not be written to {output_dir} ({one_line(error)}); {newest} there "
            "is whole: make room and go on with --resume_from_checkpoint latest"
        ) from error
    write_run_record(
        output_dir,
        "pretrain",
        [model_args, data_args, args],
        seconds=seconds,
        num_images=loop.order.num_images,
        steps=loop.position.step,
        num_processes=loop.accelerator.num_processes,
        mixed_precision=loop.accelerator.mixed_precision,
        rejected_images=len(loop.rejected.reasons),
        skipped_steps=loop.non_finite.skipped,
    )
