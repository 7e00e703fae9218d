"""Weights of any accepted class into our networks: what becomes RetFound, what keeps its encoder, what is left out.

Stock ViT and ViT-MAE are RetFound's architecture, and their tensors bear the same names on disk; they become RetFound
models. DINOv2, DINOv3 and ResNet keep their encoders (`stock`).
"""

import copy
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from safetensors import SafetensorError
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from ..runs.errors import RetFoundError
from .configuration import RetFoundConfig
from .modeling import RetFoundForImageClassification, RetFoundModel
from .stock import STOCK_ENCODERS, StockEncoderConfig, StockEncoderForImageClassification, StockEncoderModel

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
