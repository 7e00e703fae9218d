"""The network that pretraining starts from: a preset's random weights, or those of a RETFound or ViT-MAE folder."""

from typing import Any

from transformers import PreTrainedConfig

from ..inference.loading import is_adapter, read_config
from ..models.configuration import PRESETS, RetFoundConfig
from ..models.modeling import RetFoundForPreTraining
from ..models.starting_points import resolve
from ..runs.errors import RetFoundError
from .arguments import ModelArguments

MASK_RATIOS = {"cfp": 0.75, "oct": 0.85}
# What weights dictate; all else is a setting of the run.
SIZES = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
    "num_channels", "qkv_bias", "hidden_act", "decoder_hidden_size", "decoder_num_hidden_layers",
    "decoder_num_attention_heads", "decoder_intermediate_size",
)  # fmt: skip
# transformers 5 stores the decoder of the stock class under another name than 4.x and this package.
STOCK_NAMES = {r"^decoder\.decoder_encoder\.layer\.": "decoder.decoder_layers."}


def build_model(args: ModelArguments) -> RetFoundForPreTraining:
    """The masked autoencoder in training mode, float32.

    Raises:
        RetFoundError: weights without decoder, of another architecture or of other sizes than the preset.
    """
    if args.model_name_or_path is None:
        size = {} if args.image_size is None else {"image_size": args.image_size}
        try:
            config = RetFoundConfig.from_preset(args.config_name, **{**_settings(args), **size})
        except ValueError as error:
            raise RetFoundError(f"--config_name {args.config_name}: {error}") from error
        return RetFoundForPreTraining(config).train()
    name = resolve(args.model_name_or_path)
    if is_adapter(name):
        raise RetFoundError(f"--model_name_or_path {name} is a LoRA adapter; pretraining needs a whole model folder")
    stored = read_config(name)
    _check(name, stored, args)
    sizes = {key: getattr(stored, key) for key in SIZES}
    own = stored.to_dict() if stored.model_type == "retfound" else {}
    own = {key: value for key, value in own.items() if key not in ("model_type", "transformers_version")}
    preset = {} if args.config_name is None else PRESETS[args.config_name]
    config = RetFoundConfig(**{**own, **preset, **sizes, **_settings(args)})
    try:
        model, info = RetFoundForPreTraining.from_pretrained(
            name, config=config, key_mapping=STOCK_NAMES, output_loading_info=True
        )
    except Exception as error:  # missing, damaged and misshapen weights have errors of a type each
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise RetFoundError(f"model {name} cannot be loaded: {reason[0]}") from error
    if info["missing_keys"]:
        raise RetFoundError(
            f"model {name} lacks {len(info['missing_keys'])} tensors, such as {sorted(info['missing_keys'])[0]}; "
            "pretraining goes on from an autoencoder with its decoder"
        )
    return model.float().train()


def _settings(args: ModelArguments) -> dict[str, Any]:
    """What the command line says of the task; the modality alone sets the paper's mask ratio."""
    settings: dict[str, Any] = {"drop_path_rate": 0.0}
    if args.modality is not None:
        settings |= {"modality": args.modality, "mask_ratio": MASK_RATIOS[args.modality]}
    if args.mask_ratio is not None:
        settings["mask_ratio"] = args.mask_ratio
    return settings


def _check(name: str, stored: PreTrainedConfig, args: ModelArguments) -> None:
    if stored.model_type not in ("retfound", "vit_mae"):
        raise RetFoundError(
            f"--model_name_or_path {name} is a {stored.model_type} model; masked autoencoding goes on from a RETFound "
            "or ViT-MAE folder"
        )
    if getattr(stored, "encoder_only", False):
        raise RetFoundError(
            f"--model_name_or_path {name} holds an encoder without its decoder; pretraining cannot go on from it"
        )
    if args.image_size is not None and args.image_size != stored.image_size:
        raise RetFoundError(f"--image_size {args.image_size} differs from the {stored.image_size} of {name}; leave it")
    preset = RetFoundConfig.from_preset(args.config_name) if args.config_name else stored
    differ = [key for key in SIZES if getattr(preset, key) != getattr(stored, key)]
    if differ:
        raise RetFoundError(
            f"--config_name {args.config_name} has {differ[0]} {getattr(preset, differ[0])}, and {name} has "
            f"{getattr(stored, differ[0])}; leave --config_name out, and give --modality"
        )
