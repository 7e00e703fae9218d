"""timm's ViT-L: the official names of the tensors, which are timm's own."""

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ..models.conversion.tables import encoder_rows, pair
from ..runs.errors import RetFoundError, missing_extra
from ..runs.files import write_json
from .exporting import check_equal, example, output_of

TIMM_NAME = "vit_large_patch16_224"


def write_timm(model: PreTrainedModel, is_classifier: bool, folder: Path) -> float:
    """Write `model.safetensors` and `timm.json`, the arguments of the `create_model` that loads it strictly.

    Returns:
        The largest difference of the two models' outputs.

    Raises:
        RetFoundError: another architecture, or a classifier that applies its norm twice.
    """
    check_expressible(model, is_classifier)
    state, arguments = timm_state(model, is_classifier), timm_arguments(model, is_classifier)
    difference = _compare(model, is_classifier, state, arguments)
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    write_json(folder / "timm.json", {"create_model": arguments, "largest_difference": difference})
    return difference


def check_expressible(model: PreTrainedModel, is_classifier: bool) -> None:
    if model.config.model_type != "retfound":
        raise RetFoundError(f"--format timm takes RETFound models, and this is {model.config.model_type}; try onnx")
    if is_classifier and model.config.head_norm == "double":
        raise RetFoundError(
            "this classifier applies its norm twice (head_norm: double, the official code since 2025), which timm's "
            "ViT does not; export with --format onnx"
        )


def timm_state(model: PreTrainedModel, is_classifier: bool) -> dict[str, Tensor]:
    """The weights under timm's names.

    An encoder gets an `fc_norm` that changes nothing but scale, as the official feature vector wants it.
    """
    config, tensors = model.config, model.state_dict()
    positions = (config.image_size // config.patch_size) ** 2 + 1
    prefix = "" if is_classifier else "vit."
    rows = list(
        encoder_rows(
            config.hidden_size, config.intermediate_size, config.num_hidden_layers, config.patch_size, positions
        )
    )
    if is_classifier:
        rows += [*pair("fc_norm", "fc_norm", config.hidden_size)]
        rows += [*pair("head", "classifier", config.num_labels, config.hidden_size)]
    # Fused tensors such as q, k, v are joined in the order of their row.
    state = {
        row.source: torch.cat([tensors[name.removeprefix(prefix)] for name in row.targets]).contiguous()
        for row in rows
    }
    if not is_classifier:
        state |= {"fc_norm.weight": torch.ones(config.hidden_size), "fc_norm.bias": torch.zeros(config.hidden_size)}
    return state


def timm_arguments(model: PreTrainedModel, is_classifier: bool) -> dict[str, Any]:
    """Arguments of `timm.create_model`; sizes are named only where they are not those of ViT-L."""
    config = model.config
    usual = {"img_size": 224, "patch_size": 16, "embed_dim": 1024, "depth": 24, "num_heads": 16, "mlp_ratio": 4}
    own = {
        "img_size": config.image_size,
        "patch_size": config.patch_size,
        "embed_dim": config.hidden_size,
        "depth": config.num_hidden_layers,
        "num_heads": config.num_attention_heads,
        "mlp_ratio": config.intermediate_size / config.hidden_size,
    }
    return {
        "model_name": TIMM_NAME,
        "num_classes": config.num_labels if is_classifier else 0,
        "global_pool": "avg",
        **{name: value for name, value in own.items() if value != usual[name]},
    }


def _compare(
    model: PreTrainedModel, is_classifier: bool, state: dict[str, Tensor], arguments: dict[str, Any]
) -> float:
    try:
        import timm
    except ImportError as error:
        raise missing_extra("timm", "timm") from error
    other = timm.create_model(**arguments).eval()
    other.load_state_dict(state, strict=True)
    pixels = example(2, model.config.image_size)
    with torch.no_grad():
        return check_equal(output_of(model, is_classifier, pixels), other(pixels), "timm")
