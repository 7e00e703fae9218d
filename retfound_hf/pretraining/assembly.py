"""The parts of a run, built from its arguments."""

from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from accelerate.utils import GradientAccumulationPlugin, ProjectConfiguration, set_seed

from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError
from .arguments import DataArguments, ModelArguments, PretrainingArguments
from .building import build_network, build_objective
from .checkpoints import Checkpoints, read_state
from .faults import NonFinite, Rejected
from .images import ImageReader
from .loop import Loop
from .monitor import LinearProbeMonitor, Previews
from .objectives.batch_norm import synchronize
from .opening import open_training_images
from .optimization import make_optimizer
from .order import Position
from .report import Report
from .resuming import check_resumable
from .window import Window


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
