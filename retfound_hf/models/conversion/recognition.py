"""What an official checkpoint is: its kind, its sizes, and the configuration that it needs."""

import math
import re
from collections.abc import Iterable
from typing import Any, Literal

from torch import Tensor
from transformers import Dinov2Config, PreTrainedConfig

from ...runs.errors import RetFoundError
from ..configuration import PRESETS, RetFoundConfig
from .reading import OfficialCheckpoint
from .tables import Row, decoder_rows, dinov2_rows, encoder_rows, pair

Kind = Literal["autoencoder", "encoder", "classifier", "dinov2"]
HEAD_WIDTH = 64  # of every encoder in use: ViT-L has 1024 / 64 = 16 heads
DECODER_HEADS = 16  # of every MAE decoder, whatever its width (He et al. 2022, released code)
# Which classifier a fine-tuned file was trained with: its own code saved the model's name.
HEAD_NORM_OF_MODEL = {"vit_large_patch16": "single", "RETFound_mae": "double"}
# A word of its own, or capitals after small letters.
MODALITY_WORD = r"(?<![A-Z])(?:CFP|OCT)(?![A-Za-z])|(?<![A-Za-z])(?:cfp|oct)(?![A-Za-z])"
# Projection heads that the DINOv2 teacher carries for its loss; no model that is used has them.
DINOV2_LOSS_HEADS = ("dino_head.", "ibot_head.")


def kind_of(checkpoint: OfficialCheckpoint) -> Kind:
    """Masked autoencoder, encoder alone, fine-tuned classifier, or DINOv2 teacher."""
    if checkpoint.origin == "teacher":
        return "dinov2"
    if any(name.startswith(("decoder_", "mask_token")) for name in checkpoint.state):
        return "autoencoder"
    if "head.weight" in checkpoint.state:
        if "fc_norm.weight" not in checkpoint.state:
            raise RetFoundError(
                f"checkpoint {checkpoint.path} is a classifier on the class token (it has no fc_norm); "
                "accepted: classifiers on the mean of the patches, the official default"
            )
        return "classifier"
    return "encoder"


def modality_of(name: str) -> str | None:
    """`cfp` or `oct` where a file's or repository's name tells, as in `RETFound_mae_natureCFP`; not from `doctor`."""
    found = {match.lower() for match in re.findall(MODALITY_WORD, name)}
    return found.pop() if len(found) == 1 else None


def head_norm_of(checkpoint: OfficialCheckpoint, asked: str) -> str:
    """`single` or `double`, as asked, or for `auto` as the saved training arguments tell."""
    if asked != "auto":
        return asked
    model = checkpoint.args.get("model")
    if model in HEAD_NORM_OF_MODEL:
        return HEAD_NORM_OF_MODEL[model]
    raise RetFoundError(
        f"checkpoint {checkpoint.path} does not tell which code fine-tuned it (args.model is {model!r}); pass "
        "--head_norm single for the code of 2023, --head_norm double for the code since February 2025"
    )


def dinov2_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The teacher's backbone under plain ViT names; its `mlp.w12` and `mlp.w3` are `mlp.fc1` and `mlp.fc2`."""
    plain = {}
    for name, tensor in state.items():
        if not name.startswith(DINOV2_LOSS_HEADS):
            plain[name.removeprefix("backbone.").replace("mlp.w12.", "mlp.fc1.").replace("mlp.w3.", "mlp.fc2.")] = (
                tensor
            )
    return plain


def configure(
    checkpoint: OfficialCheckpoint,
    kind: Kind,
    state: dict[str, Tensor],
    modality: str | None,
    head_norm: str = "single",
    class_names: Iterable[str] | None = None,
) -> tuple[PreTrainedConfig, list[Row]]:
    """The configuration and the key table for weights of this kind, sizes read from the tensors.

    `modality` is None for weights of natural images; `head_norm` and `class_names` are those of a classifier.
    """
    width, patch = size_of(state, "cls_token", -1), size_of(state, "patch_embed.proj.weight", -1)
    positions, mlp = size_of(state, "pos_embed", 1), size_of(state, "blocks.0.mlp.fc1.weight", 0)
    depth = depth_of(state, "blocks")
    sizes = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": width // HEAD_WIDTH,
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
    }
    encoder = {"width": width, "mlp": mlp, "depth": depth, "patch": patch, "positions": positions}
    if kind == "dinov2":
        return Dinov2Config(**sizes, mlp_ratio=mlp // width, layer_norm_eps=1e-6), list(dinov2_rows(**encoder))
    sizes |= {
        "intermediate_size": mlp,
        "modality": modality,
        "mask_ratio": checkpoint.args.get("mask_ratio", PRESETS[f"retfound-{modality or 'cfp'}"]["mask_ratio"]),
        "encoder_only": kind != "autoencoder",
    }
    rows = list(encoder_rows(**encoder))
    if kind == "classifier":
        classes = size_of(state, "head.weight", 0)
        rows += [*pair("fc_norm", "fc_norm", width), *pair("head", "classifier", classes, width)]
        return RetFoundConfig(**sizes, head_norm=head_norm, **_labels(classes, class_names)), rows
    rows += pair("norm", "vit.layernorm", width)
    if kind == "autoencoder":
        decoder, decoder_depth = size_of(state, "mask_token", -1), depth_of(state, "decoder_blocks")
        decoder_mlp = size_of(state, "decoder_blocks.0.mlp.fc1.weight", 0)
        rows += decoder_rows(width, decoder, decoder_mlp, decoder_depth, patch, positions)
        sizes |= {
            "decoder_hidden_size": decoder,
            "decoder_num_hidden_layers": decoder_depth,
            "decoder_num_attention_heads": DECODER_HEADS,
            "decoder_intermediate_size": decoder_mlp,
            "norm_pix_loss": bool(checkpoint.args.get("norm_pix_loss", True)),
        }
    return RetFoundConfig(**sizes), rows


def _labels(classes: int, names: Iterable[str] | None) -> dict[str, Any]:
    names = list(names) if names else [f"LABEL_{index}" for index in range(classes)]
    if len(names) != classes:
        raise RetFoundError(f"{len(names)} class names were given for a head of {classes} classes; give one per class")
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": "single_label_classification",
    }


def size_of(state: dict[str, Tensor], name: str, axis: int) -> int:
    if name not in state or state[name].ndim == 0:
        raise RetFoundError(f"checkpoint lacks {name}; it is no RETFound checkpoint, or an incomplete one")
    return state[name].shape[axis]


def depth_of(state: dict[str, Tensor], prefix: str) -> int:
    indices = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    return max(indices, default=-1) + 1
