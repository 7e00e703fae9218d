"""Checkpoints of SimCLR, SwAV, MoCo v3 and DINO, as their own codes save them, with ViTs and ResNets."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from transformers import PreTrainedConfig, ResNetConfig

from ..errors import RetFoundError
from .official_checkpoints import OfficialCheckpoint, Row, configure, depth_of, pair, size_of

STAGES = 4
REDUCTION = 4  # of the channels within a bottleneck
IMAGE_SIZE = 224  # no tensor tells it
COUNTER = "num_batches_tracked"


def complete(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the counters of its batch norms, absent in files of old PyTorch; nothing uses them."""
    norms = [name.removesuffix("running_var") for name in state if name.endswith(".running_var")]
    return {f"{norm}{COUNTER}": torch.tensor(0) for norm in norms} | state


def resnet_config(state: dict[str, Tensor], modality: str | None) -> ResNetConfig:
    """Depths and widths as the tensors have them: ResNet-50, deeper ones, and SwAV's wider ones."""
    config = ResNetConfig(
        embedding_size=size_of(state, "conv1.weight", 0),
        hidden_sizes=[size_of(state, f"layer{stage + 1}.0.conv3.weight", 0) for stage in range(STAGES)],
        depths=[depth_of(state, f"layer{stage + 1}") for stage in range(STAGES)],
    )
    # What a ResNet itself need not know of its images, but the runs with it.
    config.image_size, config.modality = IMAGE_SIZE, modality
    return config


def resnet_rows(state: dict[str, Tensor]) -> Iterator[Row]:
    """Every tensor of the encoder, running statistics and counters too."""
    config = resnet_config(state, None)
    width = config.embedding_size
    yield Row("conv1.weight", ("embedder.embedder.convolution.weight",), (width, 3, 7, 7))
    yield from _norm("bn1", "embedder.embedder.normalization", width)
    for stage, (out, depth) in enumerate(zip(config.hidden_sizes, config.depths, strict=True)):
        inner = out // REDUCTION
        for index in range(depth):
            source, target = f"layer{stage + 1}.{index}", f"encoder.stages.{stage}.layers.{index}"
            shapes = ((inner, width, 1, 1), (inner, inner, 3, 3), (out, inner, 1, 1))
            for layer, shape in enumerate(shapes):
                place = f"{target}.layer.{layer}"
                yield Row(f"{source}.conv{layer + 1}.weight", (f"{place}.convolution.weight",), shape)
                yield from _norm(f"{source}.bn{layer + 1}", f"{place}.normalization", shape[0])
            if index == 0:
                shortcut = f"{target}.shortcut"
                yield Row(f"{source}.downsample.0.weight", (f"{shortcut}.convolution.weight",), (out, width, 1, 1))
                yield from _norm(f"{source}.downsample.1", f"{shortcut}.normalization", out)
            width = out


def _norm(source: str, target: str, width: int) -> Iterator[Row]:
    yield from pair(source, target, width)
    for name, shape in (("running_mean", (width,)), ("running_var", (width,)), (COUNTER, ())):
        yield Row(f"{source}.{name}", (f"{target}.{name}",), shape)


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
