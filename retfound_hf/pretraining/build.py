"""Networks that pretraining starts from: presets, RETFound or ViT-MAE folders, encoders for the other objectives."""

from typing import Any

from transformers import AutoModel, PreTrainedConfig, PreTrainedModel, ResNetConfig, ResNetModel
from transformers.modeling_layers import GradientCheckpointingLayer

from ..errors import BadModelError, RetFoundError
from ..models.backbones import BACKBONES
from ..models.configuration_retfound import PRESETS, RetFoundConfig
from ..models.loading import check_has_decoder, is_adapter, load_autoencoder, load_network, network_config, read_config
from ..models.modeling_retfound import RetFoundForPreTraining, RetFoundModel
from ..models.starting_points import resolve
from .arguments import RESNET, ModelArguments, PretrainingArguments
from .objectives import find_objective
from .objectives.base import Objective
from .objectives.distributed import num_processes

MASK_RATIOS = {"cfp": 0.75, "oct": 0.85}
# What weights dictate; all else is a setting of the run.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
    "num_channels", "qkv_bias", "hidden_act", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip


def build_model(args: ModelArguments) -> RetFoundForPreTraining:
    """The masked autoencoder in training mode, float32.

    Raises:
        RetFoundError: weights without decoder, of another architecture or of other sizes than the preset.
    """
    if args.model_name_or_path is None:
        size = {} if args.image_size is None else {"image_size": args.image_size}
        config = RetFoundConfig.from_preset(args.config_name, **{**_settings(args), **size})
        return RetFoundForPreTraining(config).train()
    name = resolve(args.model_name_or_path)
    stored = check_has_decoder(name)
    _check(name, stored, args)
    sizes = {key: getattr(stored, key) for key in SIZES}
    own = stored.to_dict() if stored.model_type == "retfound" else {}
    own = {key: value for key, value in own.items() if key not in ("model_type", "transformers_version")}
    preset = {} if args.config_name is None else PRESETS[args.config_name]
    config = RetFoundConfig(**{**own, **preset, **sizes, **_settings(args)})
    return load_autoencoder(name, config).float().train()


def _settings(args: ModelArguments) -> dict[str, Any]:
    """What the command line says of the task; the modality alone sets the paper's mask ratio."""
    settings: dict[str, Any] = {"drop_path_rate": 0.0}
    if args.modality is not None:
        settings |= {"modality": args.modality, "mask_ratio": MASK_RATIOS[args.modality]}
    if args.mask_ratio is not None:
        settings["mask_ratio"] = args.mask_ratio
    return settings


def _check(name: str, stored: PreTrainedConfig, args: ModelArguments) -> None:
    if args.image_size is not None and args.image_size != stored.image_size:
        raise RetFoundError(f"--image_size {args.image_size} differs from the {stored.image_size} of {name}; leave it")
    preset = RetFoundConfig.from_preset(args.config_name) if args.config_name else stored
    differ = [key for key in SIZES if getattr(preset, key) != getattr(stored, key)]
    if differ:
        raise RetFoundError(
            f"--config_name {args.config_name} has {differ[0]} {getattr(preset, differ[0])}, and {name} has "
            f"{getattr(stored, differ[0])}; leave --config_name out, and give --modality"
        )


IMAGE_SIZE = 224


def build_encoder(args: ModelArguments) -> PreTrainedModel:
    """The encoder in training mode, float32.

    A ViT becomes a `RetFoundModel`, whose positions do not train: those that a stock ViT learned stay as they come.

    Raises:
        RetFoundError: weights of another architecture, or without some of the encoder's.
    """
    if args.mask_ratio is not None:
        raise RetFoundError(f"--mask_ratio is not an option of --objective {args.objective}; leave it out")
    if args.model_name_or_path is None:
        return _from_preset(args).train()
    if args.config_name is not None:
        raise RetFoundError(
            f"--config_name {args.config_name} and --model_name_or_path exclude each other with --objective "
            f"{args.objective}: weights bring their sizes; give --modality for the kind of images"
        )
    name = resolve(args.model_name_or_path)
    if is_adapter(name):
        raise RetFoundError(f"--model_name_or_path {name} is a LoRA adapter; pretraining needs a whole model folder")
    stored = read_config(name)
    row = BACKBONES.get(stored.model_type)
    if row is None or not row.pretrains:
        raise BadModelError(
            f"model {name} is a {stored.model_type} model; `objective={args.objective}` goes on from one of: "
            f"{', '.join(row.title for row in BACKBONES.values() if row.pretrains)}",
            model=name,
        )
    size = getattr(stored, "image_size", None)
    if args.image_size is not None and size is not None and args.image_size != size:
        raise RetFoundError(f"--image_size {args.image_size} differs from the {size} of {name}; leave it")
    if row.retfound_options is None:
        return _load_stock(name, stored, args).float().train()
    modality = args.modality or getattr(stored, "modality", None)
    config = network_config(stored, modality=modality, drop_path_rate=0.0)
    model, _ = load_network(name, stored, config, classifier=False)
    return model.float().train()


def _from_preset(args: ModelArguments) -> PreTrainedModel:
    if args.config_name == RESNET:
        return ResNetModel(_with_input(ResNetConfig(), args))  # its defaults are ResNet-50
    given = {"image_size": args.image_size, "modality": args.modality}
    given = {name: value for name, value in given.items() if value is not None}
    return RetFoundModel(RetFoundConfig.from_preset(args.config_name, **given))


def _load_stock(name: str, stored: PreTrainedConfig, args: ModelArguments) -> PreTrainedModel:
    """Encoder of the stock class, such as a ResNet, without a classifier that may come with it."""
    load_network(name, stored, network_config(stored), classifier=False)  # for what it says of damaged weights
    return AutoModel.from_pretrained(name, config=_with_input(stored, args))


def _with_input(config: PreTrainedConfig, args: ModelArguments) -> PreTrainedConfig:
    """Input size and modality, which a ResNet's own configuration lacks."""
    config.image_size = args.image_size or getattr(config, "image_size", None) or IMAGE_SIZE
    config.modality = args.modality or getattr(config, "modality", None)
    return config


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
