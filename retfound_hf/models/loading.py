"""Loading of any accepted weights: classifiers, encoders, autoencoders, adapters, and their image processor."""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    PreTrainedConfig,
    PreTrainedModel,
)

from ..errors import RetFoundError
from .backbones import STOCK_ENCODERS, StockEncoderConfig, StockEncoderForImageClassification, StockEncoderModel
from .configuration_retfound import RetFoundConfig
from .image_processing_retfound import RetFoundImageProcessor
from .modeling_retfound import RetFoundForImageClassification, RetFoundModel
from .starting_points import how_to_bring, resolve

# What a stock ViT configuration says of the encoder; all else in it is of heads that are left out.
VIT_KEYS = (
    "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
    "hidden_dropout_prob", "attention_probs_dropout_prob", "initializer_range", "layer_norm_eps", "image_size",
    "patch_size", "num_channels", "qkv_bias",
)  # fmt: skip
HEAD = ("fc_norm.", "classifier.")
# The only tensors that may be left out, by their names without the encoder's prefix.
LEFT_OUT = (*HEAD, "decoder.", "pooler.", "embeddings.mask_token", "mask_token")


# Encoder and classifier of each of our model types.
NETWORKS = {
    RetFoundConfig.model_type: (RetFoundModel, RetFoundForImageClassification),
    StockEncoderConfig.model_type: (StockEncoderModel, StockEncoderForImageClassification),
}


def network_config(stored: PreTrainedConfig, **options: Any) -> RetFoundConfig | StockEncoderConfig:
    """The configuration of our network for weights with the configuration `stored`.

    Args:
        options: labels, `drop_path_rate` and the like, on top.

    Raises:
        RetFoundError: a model type that has no place here.
    """
    kind = stored.model_type
    if kind in STOCK_ENCODERS:
        encoder = copy.deepcopy(stored)
        encoder.name_or_path = ""  # a path of this machine, which a nested configuration would be saved with
        return StockEncoderConfig(encoder_config=encoder, **options)
    if kind == "vit":
        own = {key: getattr(stored, key) for key in VIT_KEYS} | {"encoder_only": True}
    elif kind in ("retfound", "vit_mae", StockEncoderConfig.model_type):
        own = {key: value for key, value in stored.to_dict().items() if key not in ("model_type", "architectures")}
    else:
        accepted = ("retfound", "vit_mae", "vit", *STOCK_ENCODERS)
        raise RetFoundError(f"model type {kind!r} is not known here; accepted: {', '.join(accepted)}")
    own.pop("transformers_version", None)
    if kind == StockEncoderConfig.model_type:
        return StockEncoderConfig(**{**own, **options})
    return RetFoundConfig(**{**own, **options})


def load_network(
    name_or_path: str, stored: PreTrainedConfig, config: PreTrainedConfig, classifier: bool
) -> tuple[PreTrainedModel, bool]:
    """Build the network of `config`, with the weights of a folder or Hub id.

    Args:
        stored: the configuration that lies beside the weights.
        config: as `network_config` makes it.
        classifier: with a head; otherwise the encoder alone.

    Returns:
        The network, and whether its head came with it whole.

    Raises:
        RetFoundError: weights that cannot be read, that lack a part of the encoder, or hold what has no known use.
    """
    network_class = NETWORKS[config.model_type][classifier]
    try:
        with _without_report():
            network, info = _read(network_class, name_or_path, stored, config)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise RetFoundError(f"model {name_or_path} cannot be loaded: {first}") from error
    mismatched = {name for name, *_ in info["mismatched_keys"]}
    absent = {*info["missing_keys"], *mismatched}
    missing = sorted(name for name in absent if not name.startswith((*HEAD, "pooler.")))
    if missing:
        raise RetFoundError(
            f"model {name_or_path} lacks {len(missing)} tensors of its encoder, such as {missing[0]}; it would start "
            "from random weights"
        )
    unknown = sorted(name for name in info["unexpected_keys"] if not name.removeprefix("vit.").startswith(LEFT_OUT))
    if unknown:
        raise RetFoundError(f"model {name_or_path} holds {len(unknown)} tensors of no known use, such as {unknown[0]}")
    return network, not absent


def _read(
    network_class: type[PreTrainedModel], name_or_path: str, stored: PreTrainedConfig, config: PreTrainedConfig
) -> tuple[PreTrainedModel, dict[str, Any]]:
    if stored.model_type not in STOCK_ENCODERS:
        return network_class.from_pretrained(
            name_or_path, config=config, output_loading_info=True, ignore_mismatched_sizes=True
        )
    encoder, info = AutoModel.from_pretrained(name_or_path, output_loading_info=True)
    network = network_class(config, encoder)
    network.name_or_path = str(name_or_path)  # where an adapter finds its base
    head = {name for name in network.state_dict() if name.startswith(HEAD)}
    return network, {**info, "missing_keys": head | set(info["missing_keys"])}


@contextmanager
def _without_report() -> Iterator[None]:
    """Silence the table of missing and left-out tensors: what matters in it is checked here, and said in one line."""
    logger = logging.getLogger("transformers.modeling_utils")
    # Not its level, which transformers 5 asks whether to report on tensor parallelism.
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before


ADAPTER_FILE = "adapter_config.json"


def read_config(name_or_path: str) -> PreTrainedConfig:
    """The configuration of a model folder, Hub id or starting point, or one line about why there is none."""
    name_or_path = resolve(name_or_path)
    if Path(name_or_path).is_dir() and not (Path(name_or_path) / "config.json").is_file():
        raise RetFoundError(
            f"model folder {name_or_path} has no config.json; give a folder made by convert or finetune"
        )
    try:
        return AutoConfig.from_pretrained(name_or_path)
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        if Path(name_or_path).exists():
            raise RetFoundError(f"model {name_or_path} cannot be read: {first}") from error
        raise RetFoundError(
            f"model {name_or_path} is neither a model folder here nor one that the Hub or its cache gives"
            f"{how_to_bring(name_or_path)} ({first})"
        ) from error


def is_adapter(name_or_path: str) -> bool:
    """Whether a folder or Hub repository holds a peft adapter instead of whole weights."""
    if Path(name_or_path).exists():
        return (Path(name_or_path) / ADAPTER_FILE).is_file()
    from transformers.utils.peft_utils import find_adapter_config_file

    try:
        return find_adapter_config_file(name_or_path) is not None
    except OSError:
        return False


def load_classifier(name_or_path: str) -> PreTrainedModel:
    """A fine-tuned classifier, in evaluation mode; an adapter comes merged into the base that it names.

    Raises:
        RetFoundError: a folder without a trained head, or an adapter whose base is gone.
    """
    name_or_path = resolve(name_or_path)
    config = read_config(name_or_path)
    if is_adapter(name_or_path):
        from peft import PeftConfig, PeftModel

        base = PeftConfig.from_pretrained(name_or_path).base_model_name_or_path
        # The adapter brings its own head; what the base lacks of one is no loss.
        model, _ = load_network(base, read_config(base), config, classifier=True)
        return PeftModel.from_pretrained(model, name_or_path).merge_and_unload().eval()
    model, info = _load(AutoModelForImageClassification, name_or_path, config=config)
    if info["missing_keys"]:
        raise RetFoundError(
            f"model {name_or_path} has no trained classifier (it lacks {sorted(info['missing_keys'])[0]}); "
            "fine-tune it first with the command finetune"
        )
    return model.eval()


def load_encoder(name_or_path: str) -> PreTrainedModel:
    """The encoder of any model folder, in evaluation mode; of an adapter, with the adapter merged in.

    Whatever the weights, its `pooler_output` is RETFound's feature vector: the mean of the patch tokens, normalised.
    """
    name_or_path = resolve(name_or_path)
    if is_adapter(name_or_path):
        return load_classifier(name_or_path).base_model
    stored = read_config(name_or_path)
    model, _ = load_network(name_or_path, stored, network_config(stored), classifier=False)
    return model.eval()


def load_autoencoder(name_or_path: str) -> PreTrainedModel:
    """A masked autoencoder with its trained decoder, RetFound or stock ViT-MAE, in evaluation mode.

    Raises:
        RetFoundError: a folder without decoder: an encoder, a classifier, an adapter, another architecture.
    """
    config = None if is_adapter(name_or_path) else read_config(name_or_path)
    if config is None or config.model_type not in ("retfound", "vit_mae"):
        what = "a LoRA adapter" if config is None else f"of type {config.model_type}"
        raise RetFoundError(
            f"model {name_or_path} is {what}, which has no decoder to paint with; give a folder of pretraining"
        )
    lacks = (
        f"model {name_or_path} holds an encoder without decoder, as classifiers and some of the official files do; "
        "give the folder of pretraining, or convert a checkpoint that has its decoder"
    )
    if getattr(config, "encoder_only", False):
        raise RetFoundError(lacks)
    model, info = _load(AutoModelForPreTraining, name_or_path)
    if info["missing_keys"]:
        raise RetFoundError(f"{lacks} (it lacks {sorted(info['missing_keys'])[0]})")
    return model.eval()


def _load(auto_class: Any, name_or_path: str, **kwargs: Any) -> tuple[PreTrainedModel, dict[str, Any]]:
    try:
        return auto_class.from_pretrained(name_or_path, output_loading_info=True, **kwargs)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        first = str(error).strip().splitlines()[0]
        raise RetFoundError(f"model {name_or_path} cannot be loaded: {first}") from error


def load_processor(
    name_or_path: str, image_size: int | None = None, crop: bool | None = None
) -> RetFoundImageProcessor:
    """The preprocessing of a model folder as a `RetFoundImageProcessor`.

    Args:
        image_size: another input size of the network than the folder's.
        crop: crop to the field of view, whatever the folder says.
    """
    name_or_path = resolve(name_or_path)
    try:
        stored = AutoImageProcessor.from_pretrained(name_or_path)
    except (OSError, ValueError):
        stored = RetFoundImageProcessor.for_image_size(getattr(read_config(name_or_path), "image_size", 224))
    if isinstance(stored, RetFoundImageProcessor) and image_size is None:
        processor = stored
    else:
        # Of another processor only the normalisation belongs to the weights.
        own = dict(getattr(stored, "crop_size", None) or getattr(stored, "size", None) or {})
        processor = RetFoundImageProcessor.for_image_size(
            image_size or own.get("height") or own.get("shortest_edge") or 224,
            image_mean=list(stored.image_mean),
            image_std=list(stored.image_std),
            do_fundus_crop=getattr(stored, "do_fundus_crop", True),
        )
    if crop is not None:
        processor.do_fundus_crop = crop
    return processor
