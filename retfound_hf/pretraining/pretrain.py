"""Pretraining from arguments to a finished model folder, and the command `pretrain`."""

import errno
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from transformers import PreTrainedModel

from ..errors import RetFoundError, one_line
from ..files import exclusive_folder, move_into, refuse_existing
from ..models.cards import cost_text, describe_preprocessing, hub_id_of, license_of, write_card
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..options import parse_arguments
from ..record import hardware, write_run_record
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .build import build_network, build_objective
from .checkpoints import (
    Checkpoints,
    check_resumable,
    find_checkpoint,
    latest_checkpoint,
    read_state,
    remove_checkpoints,
    remove_leftovers,
)
from .data import ImageReader, make_loader, open_training_images
from .loop import Loop
from .monitor import (
    METRICS_FILE,
    NON_FINITE_FILE,
    REJECTED_FILE,
    LinearProbeMonitor,
    NonFinite,
    Previews,
    Rejected,
    Report,
    Window,
)
from .objectives.distributed import synchronize
from .optim import make_optimizer
from .order import Order, Position

TITLES = {
    "mae": "masked autoencoding", "simclr": "SimCLR", "swav": "SwAV", "dino": "DINO", "moco_v3": "MoCo v3",
}  # fmt: skip
MODALITIES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans", None: "retinal images"}


def write_pretrained_card(
    folder: Path,
    name: str,
    model: PreTrainedModel,
    processor: RetFoundImageProcessor,
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
    order: Order,
    seconds: float,
) -> Path:
    """Write the card into `folder`; `name` is that of the folder it will be."""
    base = model_args.model_name_or_path
    start = (
        f"the weights of `{Path(base).name if Path(base).exists() else base}`"
        if base
        else f"random weights (preset `{model_args.config_name}`)"
    )
    metadata: dict[str, Any] = {"pipeline_tag": "image-feature-extraction"}
    if base:
        metadata |= {"license": license_of(base)}
        metadata |= {"base_model": named, "base_model_relation": "finetune"} if (named := hub_id_of(base)) else {}
    on_hub = [source for source in data_args.train_data if not Path(source).exists()]
    if on_hub:
        metadata["datasets"] = on_hub
    sources = ", ".join(f"`{source if source in on_hub else Path(source).name}`" for source in data_args.train_data)
    images = MODALITIES[model.config.modality]
    masked = f"mask ratio {model.config.mask_ratio}, " if model_args.objective == "mae" else ""
    return write_card(
        folder,
        "pretrained",
        metadata,
        folder_name=name,
        title=f"{name}: RETFound pretrained on {images}",
        description=(
            f"Self-supervised pretraining by {TITLES[model_args.objective]} on {order.num_images:,} {images}, "
            f"from {start}."
        ),
        has_decoder=model_args.objective == "mae",
        training_data=(
            f"{order.num_images:,} {images} of {sources}, without labels. The shards say nothing of the age, sex or "
            "origin of the patients."
        ),
        preprocessing=describe_preprocessing(processor),
        cost=cost_text(seconds, hardware()),
        provenance=(
            f"{order.total_steps:,} steps of {order.global_batch:,} images; {masked}peak learning rate "
            f"{args.peak_learning_rate(order.global_batch):.3g}, weight decay {args.weight_decay}, seed {args.seed}. "
            "`metrics.jsonl` holds the course of the loss; `run.json`, with every setting and version, stays with the "
            "owner when the folder is published."
        ),
    )


def make_accelerator(args: PretrainingArguments, output_dir: Path) -> Accelerator:
    """Accelerate as `accelerate launch` configured it, with the run's precision and trackers."""
    if torch.accelerator.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 in what mixed precision leaves in float32
    trackers = [name for name in args.report_to if name != "none"]
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            # accelerate joins processes on CPUs only when it is told.
            cpu=not torch.accelerator.is_available(),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=trackers or None,
            project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "trackers")),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                # The others wait while one process lets `datasets` copy a million images into its cache.
                InitProcessGroupKwargs(timeout=timedelta(hours=2)),
            ],
        )
    except (ValueError, ImportError) as error:
        raise RetFoundError(f"Accelerate refuses its settings: {error}") from error
    if len(accelerator.log_with) < len(trackers):
        raise RetFoundError(f"--report_to {' '.join(trackers)}: not installed, or unknown to Accelerate")
    accelerator.init_trackers("retfound")
    return accelerator


def prepare(
    model_args: ModelArguments,
    data_args: DataArguments,
    args: PretrainingArguments,
    accelerator: Accelerator,
    checkpoint: Path | None,
) -> tuple[Loop, ImageReader]:
    """Put the run's parts together; every mistake of the user shows here, before the first step."""
    output_dir = Path(args.output_dir)
    set_seed(args.seed)
    network = build_network(model_args, args)
    images = open_training_images(data_args, args, accelerator, checkpoint)
    reader, order = images.reader, images.order
    objective = synchronize(build_objective(network, model_args, args, reader.side), accelerator.device)
    args = args.with_recipe(objective.recipe)
    modality = objective.model.config.modality
    processor = RetFoundImageProcessor.for_image_size(
        objective.model.config.image_size, do_fundus_crop=modality != "oct"
    )
    probe = None
    if data_args.probe_data is not None:
        options = {
            "batch_size": min(args.per_device_train_batch_size, 64),
            "precision": accelerator.mixed_precision,
        }
        probe = LinearProbeMonitor(
            data_args.probe_data, data_args.probe_epochs, processor, data_args.cache_dir, options
        )
        probe.splits  # noqa: B018 decoded here, so that mistakes show before training
    optimizer = make_optimizer(
        objective,
        args.peak_learning_rate(order.global_batch),
        args.weight_decay,
        (args.adam_beta1, args.adam_beta2),
        args.optim,
    )
    network, optimizer = accelerator.prepare(objective, optimizer)
    checkpoints = Checkpoints(output_dir, accelerator, processor, args.save_total_limit or None)
    facts = {
        "objective": model_args.objective,
        "seed": args.seed,
        **images.facts,
        "global_batch": order.global_batch,
    }
    position, window = Position(), Window()
    non_finite = NonFinite(accelerator, output_dir, args.on_non_finite == "skip", order.total_steps)
    rejected = Rejected(accelerator, output_dir, order.num_images, data_args.max_bad_share)
    if checkpoint is not None:
        check_resumable(read_state(checkpoint), facts, args.max_steps, checkpoint)
        state = checkpoints.load(checkpoint)
        # With another batch, the rest of the epoch may be too short for a step.
        position = order.at_epoch(Position(**state["position"]))
        window.restore(state["window"], accelerator.device)
        non_finite.skipped, rejected.reasons = state["skipped_steps"], state["rejected"]
    # With another batch, what is left takes another number of steps than before.
    steps_left = round((1 - order.progress(position)) * order.total_steps)
    report = Report(accelerator, output_dir, position.step, position.step + steps_left)
    loop = Loop(
        accelerator=accelerator,
        args=args,
        objective=objective,
        network=network,
        optimizer=optimizer,
        order=order,
        checkpoints=checkpoints,
        report=report,
        non_finite=non_finite,
        rejected=rejected,
        probe=probe,
        previews=Previews(reader, objective, output_dir, args.seed) if data_args.preview_steps > 0 else None,
        preview_steps=data_args.preview_steps,
        facts=facts,
        position=position,
        window=window,
    )
    return loop, reader


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
    with exclusive_folder(output_dir) if accelerator.is_main_process else nullcontext():
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


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments and run."""
    from .arguments import DataArguments, ModelArguments, PretrainingArguments

    parsed = parse_arguments(
        ModelArguments,
        DataArguments,
        PretrainingArguments,
        argv=argv,
        description="Pretrain on image shards: a preset from scratch, or on from a RETFound or ViT-MAE folder.",
    )
    from transformers.utils import logging

    logging.disable_progress_bar()  # of the files of each checkpoint, across the bar of the run
    pretrain(*parsed)
