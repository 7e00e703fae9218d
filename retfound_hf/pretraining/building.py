"""The objective of a run, on the network that it starts from."""

from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..runs.errors import RetFoundError
from .arguments import ModelArguments, PretrainingArguments
from .encoders import build_encoder
from .objectives import find_objective
from .objectives.across import num_processes
from .objectives.base import Objective
from .start import build_model


def build_network(model_args: ModelArguments, args: PretrainingArguments) -> PreTrainedModel:
    """The network that the objective of a run trains; needs no image, so that mistakes show before any is read.

    Raises:
        RetFoundError: an option that the objective does not have, one image a step where images are compared, or
            weights that it cannot start from.
    """
    name = model_args.objective
    objective_class = find_objective(name)
    model_args.refuse_others(name, objective_class.option_names)
    if args.gradient_accumulation_steps > 1 and not objective_class.adds_up:
        raise RetFoundError(
            f"--gradient_accumulation_steps {args.gradient_accumulation_steps}: {name} compares the images of a "
            "forward pass with each other, so that several small passes are not a large one; use more processes, or "
            "--gradient_checkpointing for a larger --per_device_train_batch_size"
        )
    if args.per_device_train_batch_size * num_processes() < 2 and not objective_class.adds_up:
        raise RetFoundError(
            f"--per_device_train_batch_size {args.per_device_train_batch_size}: {name} compares the images of a step "
            "with each other, so that one alone teaches nothing; give at least 2, on one process or several"
        )
    return (build_model if objective_class.has_decoder else build_encoder)(model_args)


def build_objective(
    network: PreTrainedModel, model_args: ModelArguments, args: PretrainingArguments, side: int
) -> Objective:
    """The objective of a network, prepared for checkpointing of activations and compilation where asked for.

    Args:
        side: of the stored images in pixels.

    Raises:
        RetFoundError: a preparation that the network does not have.
    """
    objective = find_objective(model_args.objective)(network, side, model_args)
    if args.gradient_checkpointing:
        _checkpoint_activations(objective)
    if args.torch_compile:
        # Block by block: all are alike and compile once, and gradients are shared while others are computed.
        blocks = [module for module in objective.modules() if isinstance(module, GradientCheckpointingLayer)]
        if not blocks:
            kind = objective.model.config.model_type
            raise RetFoundError(f"--torch_compile: a {kind} model has no transformer blocks; leave it out")
        for block in blocks:
            block.compile()
    return objective


def _checkpoint_activations(objective: Objective) -> None:
    for network in objective.children():
        if not isinstance(network, PreTrainedModel):
            continue
        if not network.supports_gradient_checkpointing:
            raise RetFoundError(
                f"--gradient_checkpointing: a {network.config.model_type} model does not have it; leave it out"
            )
        network.gradient_checkpointing_enable({"use_reentrant": False})
