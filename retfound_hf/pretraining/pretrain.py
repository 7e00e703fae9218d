"""Pretraining from arguments to a finished model folder: the function and the command `pretrain`."""

import errno
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from logging import getLogger
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs, PartialState
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from ..errors import BadArgumentError, RetFoundError, one_line
from ..files import exclusive_folder, is_remote, move_into, refuse_existing
from ..images.reading import modality_mismatch
from ..models.cards import base_metadata, cost_text, describe_preprocessing, describe_start, write_card
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..options import tracker_faults
from ..record import as_code, as_text, hardware, write_run_record
from ..vocabulary import MODALITIES
from .arguments import Arguments, PretrainingArguments
from .checkpoints import Checkpoints, cannot_write, find_checkpoint, read_state, remove_checkpoints, remove_leftovers
from .data import ImageReader, make_loader, open_training_images, step_generator
from .loop import Loop
from .monitor import METRICS_FILE, Monitor, read_metrics_log, remove_monitor_files
from .objectives.base import Objective
from .objectives.distributed import convert_sync_batchnorm

LOOKED_AT = 32
LOOKED_AT_SEED = 2**31 + 1  # apart from the steps of training and from the previews
# Share of the untrained loss above which a run has learned next to nothing: in small_data.json features are no better
# than those of random weights above it.
LEARNED = 0.85
DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class PretrainingRun:
    """Result of `pretrain`.

    Attributes:
        output_dir: folder of the model, its card and its checkpoints; without a model where `stopped_by` is set.
        metrics: lines of `metrics.jsonl`, with `step`, `epoch`, `loss` and more.
        loss: the last one in them.
        steps: optimiser steps done.
        stopped_by: signal that ended the run with a checkpoint before its end; None for a finished run.
        untrained_loss: that of a network that predicts the same for every image; None for objectives without one.
    """

    output_dir: Path
    metrics: list[dict[str, Any]]
    loss: float | None
    steps: int
    stopped_by: str | None = None
    untrained_loss: float | None = None

    @property
    def has_learned(self) -> bool:
        """Whether the loss fell below that of a network that predicts the same for every image, where it is known."""
        known = self.loss is not None and self.untrained_loss is not None
        return not known or self.loss < LEARNED * self.untrained_loss


def pretrain(train_data: str | Path | Sequence[str | Path], output_dir: str | Path, **options: Any) -> PretrainingRun:
    """Pretrain on image shards, and write a model folder.

    Args:
        train_data: folders of shards made by prepare_images, parquet files (also s3://, gs://, hf://), or Hub ids.
        output_dir: new folder; see `overwrite_output_dir` and `resume_from_checkpoint`.
        **options: the flags of `retfound pretrain`: `config_name`, `model_name_or_path`, `objective` and its options,
            `num_train_epochs` and so on. One of the first two is needed.

    Raises:
        BadArgumentError, BadModelError, BadDataError: arguments, weights or images that do not fit.
        DivergedError: a loss that is not finite; `.step` and `.ids` say where.
        OutputError: a full disk, or a folder that is in use.
        TypeError: an option that does not exist.
    """
    sources = [train_data] if isinstance(train_data, (str, Path)) else train_data
    given = {"train_data": [str(source) for source in sources], "output_dir": str(output_dir), **options}
    return run(Arguments.build(given))


def main(argv: Sequence[str] | None = None) -> None:
    """The command `pretrain`."""
    result = run(Arguments.parse(
        argv, "Pretrain on image shards: a preset from scratch, or on from a RETFound or ViT-MAE folder."
    ))  # fmt: skip
    if not PartialState().is_main_process:
        return
    if result.stopped_by is None:
        print(result.output_dir)
        return
    print(
        f"stopped by {result.stopped_by} after step {result.steps}, with a checkpoint; go on with "
        "--resume_from_checkpoint latest"
    )


def run(arguments: Arguments) -> PretrainingRun:
    """`pretrain` for arguments that are checked already, such as those of the command."""
    started = time.time()
    args, output_dir = arguments.training, Path(arguments.training.output_dir)
    checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
    # With `latest` the folder may hold an attempt that never came to a checkpoint, but no finished model.
    if checkpoint is None and (args.resume_from_checkpoint is None or (output_dir / "config.json").exists()):
        refuse_existing(output_dir, args.overwrite_output_dir)
    accelerator = make_accelerator(args, output_dir)
    logging.disable_progress_bar()  # of the files of each checkpoint, across the bar of the run
    with exclusive_folder(output_dir if accelerator.is_main_process else None):
        accelerator.wait_for_everyone()
        # Another run may have written a later one before it let go of the folder.
        checkpoint = find_checkpoint(args.resume_from_checkpoint, output_dir)
        if accelerator.is_main_process:
            output_dir.mkdir(parents=True, exist_ok=True)
            remove_leftovers(output_dir)
            if checkpoint is None:
                remove_checkpoints(output_dir)
                remove_monitor_files(output_dir)
        accelerator.wait_for_everyone()
        loop, reader = prepare(arguments, accelerator, checkpoint)
        stopped_by = _train(loop, reader)
        accelerator.wait_for_everyone()
        metrics = read_metrics_log(output_dir / METRICS_FILE)
        losses = [line["loss"] for line in metrics if line.get("loss") is not None]
        result = PretrainingRun(
            output_dir,
            metrics,
            losses[-1] if losses else None,
            loop.position.step,
            stopped_by,
            loop.monitor.untrained_loss,
        )
        if stopped_by is None and accelerator.is_main_process:
            _write_result(loop, arguments, result, round(time.time() - started, 1))
        accelerator.wait_for_everyone()
        accelerator.end_training()
    if accelerator.is_main_process and not result.has_learned:
        getLogger(__name__).warning(
            "the loss is %.3f, and %.3f by the mean patch alone: this run was too short to learn, or its learning "
            "rate of %.2g too low; train longer, or pass a higher `learning_rate`",
            result.loss, result.untrained_loss, loop.peak_rate,
        )  # fmt: skip
    return result


def make_accelerator(args: PretrainingArguments, output_dir: Path) -> Accelerator:
    """Accelerate as `accelerate launch` configured it, with the run's precision and trackers."""
    if torch.accelerator.is_available():
        torch.set_float32_matmul_precision("high")  # TF32 in what mixed precision leaves in float32
    try:
        accelerator = Accelerator(
            mixed_precision=args.mixed_precision,
            # accelerate joins processes on CPUs only when it is told.
            cpu=not torch.accelerator.is_available(),
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
            log_with=args.report_to or None,
            project_config=ProjectConfiguration(str(output_dir), logging_dir=str(output_dir / "trackers")),
            kwargs_handlers=[
                DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
                # The others wait while one process lets `datasets` copy a million images into its cache.
                InitProcessGroupKwargs(timeout=timedelta(hours=2)),
            ],
        )
    except (ValueError, ImportError) as error:
        raise RetFoundError(f"Accelerate refuses its settings: {error}") from error
    with tracker_faults(args.report_to):
        accelerator.init_trackers("retfound")
    return accelerator


def prepare(arguments: Arguments, accelerator: Accelerator, checkpoint: Path | None) -> tuple[Loop, ImageReader]:
    """Build all parts of a run, and its card once; every mistake of the user shows here, before the first step.

    Args:
        checkpoint: to resume from.
    """
    model_args, choice, data_args, given = arguments
    output_dir = Path(given.output_dir)
    # The network needs no image: a mistyped model is told before any is copied.
    check_batch(choice.objective_class, given, accelerator.num_processes)
    set_seed(given.seed)
    network = choice.objective_class.build_network(model_args)

    revisions = read_state(checkpoint).get("revisions") if checkpoint is not None else None
    images = open_training_images(data_args, given, accelerator, revisions)
    reader, order = images.reader, images.order

    objective = choice.objective_class(network, reader.side, choice.make_options())
    if accelerator.num_processes > 1:
        convert_sync_batchnorm(objective, accelerator.device)
    save_memory_and_compile(objective, given)
    fresh = model_args.model_name_or_path is None
    args = given.with_recipe(objective.recipe, order.global_batch, fresh)

    config = objective.model.config
    pixels = reader.read(reader.spread_rows(LOOKED_AT))[0]
    if accelerator.is_main_process:
        _warn_of_modality(pixels, config.modality)
    draws = objective.draw(len(pixels), step_generator(args.seed, LOOKED_AT_SEED))
    untrained_loss = objective.untrained_loss(pixels, draws)
    crop = config.modality is None or MODALITIES[config.modality].crop
    processor = RetFoundImageProcessor.for_image_size(config.image_size, do_fundus_crop=crop)

    monitor = Monitor.build(data_args, args, accelerator, objective, images, processor, untrained_loss)
    facts = {
        "objective": choice.objective, "seed": args.seed, **images.facts, "global_batch": order.global_batch,
    }  # fmt: skip
    checkpoints = Checkpoints(output_dir, accelerator, processor, args.save_total_limit or None)
    loop = Loop(accelerator, args, objective, images, checkpoints, monitor, facts)
    if checkpoint is not None:
        loop.resume(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        write_pretrained_card(Path(folder), output_dir.name, arguments, loop, None)
    return loop, reader


def _warn_of_modality(pixels: Tensor, modality: str | None) -> None:
    """Warn where images look like the other modality than the network's."""
    seen = modality_mismatch(pixels.permute(0, 2, 3, 1).numpy(), modality)
    if seen is not None:
        message = "%s, but the network is of %s: check `train_data` and `modality`"
        getLogger(__name__).warning(message, seen, str(modality).upper())


def check_batch(objective: type[Objective], args: PretrainingArguments, num_processes: int) -> None:
    """Raise where an objective that compares the images of a step gets them in several passes, or a single one."""
    name = objective.name
    if args.gradient_accumulation_steps > 1 and not objective.supports_accumulation:
        raise BadArgumentError(
            f"`gradient_accumulation_steps={args.gradient_accumulation_steps}`: {name} compares the images of a "
            "forward pass with each other, so that several small passes are not a large one; use more processes, or "
            "`gradient_checkpointing` for a larger `per_device_train_batch_size`",
            field="gradient_accumulation_steps", value=args.gradient_accumulation_steps,
        )  # fmt: skip
    if args.per_device_train_batch_size * num_processes < 2 and not objective.supports_accumulation:
        raise BadArgumentError(
            f"`per_device_train_batch_size={args.per_device_train_batch_size}`: {name} compares the images of a step "
            "with each other; pass at least 2, on one process or several",
            field="per_device_train_batch_size", value=args.per_device_train_batch_size,
        )  # fmt: skip


def save_memory_and_compile(objective: Objective, args: PretrainingArguments) -> None:
    """Checkpoint activations and compile blocks, where asked for.

    Raises:
        BadArgumentError: the network does not have it.
    """
    kind = objective.model.config.model_type
    if args.gradient_checkpointing:
        for network in objective.children():
            if isinstance(network, PreTrainedModel):
                if not network.supports_gradient_checkpointing:
                    raise BadArgumentError(
                        f"`gradient_checkpointing`: a {kind} model does not have it; leave it out",
                        field="gradient_checkpointing", value=True,
                    )  # fmt: skip
                network.gradient_checkpointing_enable({"use_reentrant": False})
    if args.torch_compile:
        # Block by block: all are alike and compile once, and gradients are shared while others are computed.
        blocks = [module for module in objective.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not blocks:
            raise BadArgumentError(
                f"`torch_compile`: a {kind} model has no transformer blocks; leave it out",
                field="torch_compile", value=True,
            )  # fmt: skip
        for block in blocks:
            block.compile()


def _train(loop: Loop, reader: ImageReader) -> str | None:
    """Train to the end; returns the signal that ended the run before it."""
    workers, on_device = loop.args.dataloader_num_workers, loop.accelerator.device.type != "cpu"
    loader = make_loader(reader, loop.objective.draw, loop.order, loop.position, workers, pin_memory=on_device)
    batches = iter(loader)
    try:
        return loop.train(batches)
    except OSError as error:
        if error.errno not in DISK_FULL:
            raise
        raise cannot_write(
            loop.checkpoints.output_dir, f"what follows step {loop.position.step}", str(error)
        ) from error
    finally:
        loop.monitor.log.close()
        # An error's traceback holds the iterator; collected with it, workers end late or stay.
        if hasattr(batches, "_shutdown_workers"):
            batches._shutdown_workers()
        del batches, loader
        reader.close()


def _write_result(loop: Loop, arguments: Arguments, result: PretrainingRun, seconds: float) -> None:
    output_dir = result.output_dir
    try:
        with move_into(output_dir) as partial:
            loop.objective.model.save_pretrained(partial)
            loop.checkpoints.processor.save_pretrained(partial)
            write_pretrained_card(partial, output_dir.name, arguments, loop, seconds)
    except (OSError, SafetensorError) as error:
        raise cannot_write(output_dir, "the model", one_line(error)) from error
    write_run_record(
        output_dir,
        "pretrain",
        [arguments.model, arguments.objective, arguments.data, loop.args],
        seconds=seconds,
        num_images=loop.order.num_images,
        steps=loop.position.step,
        num_processes=loop.accelerator.num_processes,
        mixed_precision=loop.accelerator.mixed_precision,
        rejected_images=len(loop.monitor.rejected.reasons),
        skipped_steps=loop.monitor.non_finite.skipped,
        untrained_loss=result.untrained_loss,
        has_learned=result.has_learned,
    )


def write_pretrained_card(folder: Path, name: str, arguments: Arguments, loop: Loop, seconds: float | None) -> Path:
    """Write the model card.

    Args:
        folder: where to write it.
        name: of the folder that it will be in.
        loop: the run.
        seconds: its time so far, if known.
    """
    order, args, config = loop.order, loop.args, loop.objective.model.config
    objective, base = arguments.objective.objective_class, arguments.model.model_name_or_path
    metadata: dict[str, Any] = {"pipeline_tag": "image-feature-extraction", **base_metadata(base)}
    start = f"{'the weights of ' if base else ''}{describe_start(base, arguments.model.config_name)}"
    on_hub = [source for source in arguments.data.train_data if not (Path(source).exists() or is_remote(source))]
    if on_hub:
        metadata["datasets"] = on_hub
    sources = [as_code(source if source in on_hub else Path(source).name) for source in arguments.data.train_data]
    images = "retinal images" if config.modality is None else MODALITIES[config.modality].title
    has_decoder = hasattr(loop.objective.model, "decoder")
    masked = f"mask ratio {config.mask_ratio}, " if has_decoder else ""
    return write_card(
        folder,
        "pretrained",
        metadata,
        folder_name=name,
        title=f"{as_text(name)}: RETFound pretrained on {images}",
        description=(
            f"Self-supervised pretraining by {objective.title} ({objective.citation}) on {order.num_images:,} "
            f"{images}, from {start}."
        ),
        has_decoder=has_decoder,
        training_data=(
            f"{order.num_images:,} {images} of {', '.join(sources)}, without labels. The shards say nothing of the "
            "age, sex or origin of the patients."
        ),
        preprocessing=describe_preprocessing(loop.checkpoints.processor),
        cost=cost_text(seconds, hardware()),
        provenance=(
            f"{order.total_steps:,} steps of {order.global_batch:,} images; {masked}peak learning rate "
            f"{args.peak_learning_rate(order.global_batch):.3g}, weight decay {args.weight_decay}, seed {args.seed}. "
            "`metrics.jsonl` holds the course of the loss; `run.json`, with every setting and version, stays with the "
            "owner when the folder is published."
        ),
    )
