"""Encoders that other methods trained (SimCLR, SwAV, MoCo v3, DINO), mostly on ImageNet, as their own codes save them.

Sources: facebookresearch/swav (`src/resnet50.py`), moco-v3 (`vits.py`, `main_lincls.py`), dino (`utils.py`).
"""

import re
from dataclasses import dataclass
from typing import Literal

from torch import Tensor
from transformers import PreTrainedConfig

from ...runs.errors import RetFoundError
from .reading import OfficialCheckpoint
from .recognition import configure
from .resnet import complete, resnet_config, resnet_rows
from .tables import Row

NATURAL = "none"  # the modality of weights of no retinal images, where a user has to say it
# A tensor that tells an architecture, and whose name tells the prefix of the encoder.
MARKS: dict[str, str] = {"resnet": "layer1.0.conv1.weight", "vit": "blocks.0.attn.qkv.weight"}
# Of a file's two encoders the one that the released evaluation takes; the other is its moving average.
EVALUATED = ("base_encoder.", "encoder_q.")
# What hangs on an encoder, or beside it, for a loss; no model that is used has them.
HEADS = (
    "fc", "head", "heads", "classifier", "projection_head", "projection", "projector", "predictor", "prototypes",
    "queue", "queue_ptr",
)  # fmt: skip
# MoCo v3 differs from everyone's heads of width 64 in its smallest and its largest ViT.
MOCO_HEADS = {384: 12, 1280: 16}
DINO_NAME = r"(?<![a-z])dino(?![a-z0-9])"  # dino_vitbase16_pretrain.pth, and not DINOv2
LICENSES = {"SwAV": "cc-by-nc-4.0", "MoCo v3": "cc-by-nc-4.0", "DINO": "apache-2.0"}  # of the released files


@dataclass(frozen=True)
class OtherEncoder:
    """An encoder that is none of RETFound's.

    Args:
        kind: `resnet`, whose names are torchvision's, or `vit`, whose names are timm's.
        state: its tensors alone.
        method: that trained it, None where the file does not tell.
    """

    kind: Literal["resnet", "vit"]
    state: dict[str, Tensor]
    method: str | None

    @property
    def license(self) -> str | None:
        """Of the released weights of the method, in the Hub's words; None where the file does not tell."""
        return LICENSES.get(self.method)


def other_encoder(checkpoint: OfficialCheckpoint, modality: str | None) -> OtherEncoder | None:
    """The encoder of another method, None for RETFound's formats.

    A bare ViT could be either; DINO's is known by the file's name, others by `modality` being `NATURAL`.

    Raises:
        RetFoundError: neither RETFound's nor an encoder that is known, or several of them.
    """
    state, origin = checkpoint.state, checkpoint.origin
    for kind, mark in MARKS.items():
        prefixes = sorted({name.removesuffix(mark) for name in state if f".{name}".endswith(f".{mark}")})
        if not prefixes:
            continue
        prefix = _chosen(prefixes, checkpoint)
        if kind == "resnet":
            swav = any("prototypes" in name.split(".") for name in state)
            return OtherEncoder(kind, _below(state, prefix, prefixes), "SwAV" if swav else None)
        if origin == "teacher" and not any(name.endswith((".ls1.gamma", "mask_token")) for name in state):
            return OtherEncoder(kind, _below(state, prefix, prefixes), "DINO")
        if prefix.removeprefix("module.") in ("base_encoder.", "momentum_encoder."):
            return OtherEncoder(kind, _below(state, prefix, prefixes), "MoCo v3")
        by_name = re.search(DINO_NAME, checkpoint.path.name)
        if origin is None and (by_name or prefix.endswith("backbone.")):
            return OtherEncoder(kind, _below(state, prefix, prefixes), "DINO")
        if not prefix and origin in ("model", None) and modality == NATURAL and "head.weight" not in state:
            return OtherEncoder(kind, state, None)
    if origin == "state_dict" or not any(re.match(r"(backbone\.)?blocks\.", name) for name in state):
        raise RetFoundError(
            f"checkpoint {checkpoint.path} holds no encoder that is known here (its tensors are such as "
            f"{', '.join(list(state)[:2])}); accepted: RETFound's files, ResNets under torchvision's names (SimCLR, "
            "SwAV), ViTs under timm's as MoCo v3 and DINO save them"
        )
    return None


def configure_other(
    checkpoint: OfficialCheckpoint, encoder: OtherEncoder, modality: str | None
) -> tuple[PreTrainedConfig, dict[str, Tensor], list[Row]]:
    """The configuration, the tensors and their key table; sizes are read from the tensors."""
    if encoder.kind == "resnet":
        state = complete(encoder.state)
        return resnet_config(state, modality), state, list(resnet_rows(state))
    config, rows = configure(checkpoint, "encoder", encoder.state, modality)
    if encoder.method == "MoCo v3":
        config.num_attention_heads = MOCO_HEADS.get(config.hidden_size, config.num_attention_heads)
    return config, encoder.state, rows


def _chosen(prefixes: list[str], checkpoint: OfficialCheckpoint) -> str:
    evaluated = [prefix for prefix in prefixes if prefix.endswith(EVALUATED)] if len(prefixes) > 1 else prefixes
    if len(evaluated) != 1:
        raise RetFoundError(
            f"checkpoint {checkpoint.path} holds several encoders, under {', '.join(map(repr, prefixes))}; save the "
            "tensors of one of them"
        )
    return evaluated[0]


def _below(state: dict[str, Tensor], prefix: str, prefixes: list[str]) -> dict[str, Tensor]:
    """The tensors below a prefix without it; what is no head and in no other encoder stays too, to be refused."""
    others = tuple(other for other in prefixes if other != prefix)
    kept = {}
    for name, tensor in state.items():
        plain = name.removeprefix(prefix)
        is_head = plain.removeprefix("module.").split(".")[0] in HEADS
        if not is_head and not (others and name.startswith(others)):
            kept[plain] = tensor
    return kept
