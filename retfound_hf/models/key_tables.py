"""Key tables of checkpoints: every tensor of a source under its name on disk, and the configuration from sizes."""

import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Dinov2Config, PreTrainedConfig, ResNetConfig

from ..errors import BadArgumentError, BadModelError, join_names
from ..vocabulary import MODALITIES, SINGLE_LABEL
from .configuration_retfound import ADAPTER_FILE, RetFoundConfig

HEAD_WIDTH = 64  # of every encoder in use: ViT-L has 1024 / 64 = 16 heads
DECODER_HEADS = 16  # of every MAE decoder, whatever its width (He et al. 2022, released code)
# MoCo v3 differs from everyone's heads of width 64 in its smallest and its largest ViT.
MOCO_HEADS = {384: 12, 1280: 16}
STAGES = 4  # of a ResNet
REDUCTION = 4  # of the channels within a bottleneck
IMAGE_SIZE = 224  # of ResNets, whose tensors do not tell it
COUNTER = "num_batches_tracked"
# Bounds on what a foreign configuration may ask for.
SIZES = ("_size", "_sizes", "_layers", "_heads", "_channels", "depths", "mlp_ratio")
MOST_LAYERS, WIDEST, MOST_PARAMETERS = 1000, 2**16, 10**10
SPARE = 10**8  # parameters that a folder may leave out, such as a decoder
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Row:
    """One tensor of the source; with several targets it is split evenly along its first axis (fused q, k, v)."""

    source: str
    targets: tuple[str, ...]
    shape: tuple[int, ...]


def pair(source: str, target: str, out: int, into: int | None = None) -> Iterator[Row]:
    """The weight and the bias of a linear layer (`into` given) or of a norm."""
    yield Row(f"{source}.weight", (f"{target}.weight",), (out,) if into is None else (out, into))
    yield Row(f"{source}.bias", (f"{target}.bias",), (out,))


def block_rows(source: str, target: str, width: int, mlp: int, dinov2: bool = False) -> Iterator[Row]:
    """A transformer block: official name prefix, prefix on disk, widths."""
    queries = tuple(f"{target}.attention.attention.{name}" for name in ("query", "key", "value"))
    yield Row(f"{source}.attn.qkv.weight", tuple(f"{name}.weight" for name in queries), (3 * width, width))
    yield Row(f"{source}.attn.qkv.bias", tuple(f"{name}.bias" for name in queries), (3 * width,))
    yield from pair(f"{source}.attn.proj", f"{target}.attention.output.dense", width, width)
    if dinov2:
        names = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")
        yield Row(f"{source}.ls1.gamma", (f"{target}.layer_scale1.lambda1",), (width,))
        yield Row(f"{source}.ls2.gamma", (f"{target}.layer_scale2.lambda1",), (width,))
    else:
        names = ("layernorm_before", "layernorm_after", "intermediate.dense", "output.dense")
    yield from pair(f"{source}.norm1", f"{target}.{names[0]}", width)
    yield from pair(f"{source}.norm2", f"{target}.{names[1]}", width)
    yield from pair(f"{source}.mlp.fc1", f"{target}.{names[2]}", mlp, width)
    yield from pair(f"{source}.mlp.fc2", f"{target}.{names[3]}", width, mlp)


def embedding_rows(prefix: str, width: int, patch: int, positions: int) -> Iterator[Row]:
    """Class token, positions and patch projection."""
    yield Row("cls_token", (f"{prefix}embeddings.cls_token",), (1, 1, width))
    yield Row("pos_embed", (f"{prefix}embeddings.position_embeddings",), (1, positions, width))
    projection = f"{prefix}embeddings.patch_embeddings.projection"
    yield Row("patch_embed.proj.weight", (f"{projection}.weight",), (width, 3, patch, patch))
    yield Row("patch_embed.proj.bias", (f"{projection}.bias",), (width,))


def encoder_rows(width: int, mlp: int, depth: int, patch: int, positions: int) -> Iterator[Row]:
    """The encoder of the masked autoencoder and of the classifier, without any final norm."""
    yield from embedding_rows("vit.", width, patch, positions)
    for index in range(depth):
        yield from block_rows(f"blocks.{index}", f"vit.encoder.layer.{index}", width, mlp)


def decoder_rows(width: int, decoder: int, mlp: int, depth: int, patch: int, positions: int) -> Iterator[Row]:
    """The decoder of the masked autoencoder; `width` is the encoder's, `decoder` its own."""
    yield Row("mask_token", ("decoder.mask_token",), (1, 1, decoder))
    yield Row("decoder_pos_embed", ("decoder.decoder_pos_embed",), (1, positions, decoder))
    yield from pair("decoder_embed", "decoder.decoder_embed", decoder, width)
    for index in range(depth):
        yield from block_rows(f"decoder_blocks.{index}", f"decoder.decoder_layers.{index}", decoder, mlp)
    yield from pair("decoder_norm", "decoder.decoder_norm", decoder)
    yield from pair("decoder_pred", "decoder.decoder_pred", patch * patch * 3, decoder)


def dinov2_rows(width: int, mlp: int, depth: int, patch: int, positions: int) -> Iterator[Row]:
    """The backbone of the DINOv2 teacher under the names of `Dinov2Model`."""
    yield from embedding_rows("", width, patch, positions)
    yield Row("mask_token", ("embeddings.mask_token",), (1, width))
    for index in range(depth):
        yield from block_rows(f"blocks.{index}", f"encoder.layer.{index}", width, mlp, dinov2=True)
    yield from pair("norm", "layernorm", width)


def rename(state: Mapping[str, Tensor], rows: Iterable[Row]) -> dict[str, Tensor]:
    """The tensors of `state` under their names on disk, every one used exactly once.

    Memory is shared with `state` where nothing forbids it: a mapped file is written without a copy of it.

    Raises:
        BadModelError: a missing, an unexpected or a mis-shaped tensor, by name.
    """
    table = {row.source: row for row in rows}
    if missing := [name for name in table if name not in state]:
        raise BadModelError(f"checkpoint lacks {join_names(missing)}; it is incomplete or of another architecture")
    if unexpected := [name for name in state if name not in table]:
        raise BadModelError(f"checkpoint has unexpected tensors: {join_names(unexpected)}")
    renamed: dict[str, Tensor] = {}
    users = Counter(state[name].untyped_storage().data_ptr() for name in table)
    for name, row in table.items():
        if tuple(state[name].shape) != row.shape:
            raise BadModelError(f"tensor {name} has shape {tuple(state[name].shape)}; expected {row.shape}")
        whole = state[name].detach()
        parts = whole.chunk(len(row.targets)) if len(row.targets) > 1 else (whole,)
        for target, part in zip(row.targets, parts, strict=True):
            # Float32, but for the counters of steps. A copy where two names use one memory: safetensors refuses that.
            dtype = torch.float32 if part.is_floating_point() else part.dtype
            shared = users[whole.untyped_storage().data_ptr()] > 1
            renamed[target] = part.to(dtype, copy=shared).contiguous()
    return renamed


def configure(
    kind: str,
    state: Mapping[str, Tensor],
    modality: str | None,
    args: Mapping[str, Any],
    head_norm: str = "single",
    class_names: Iterable[str] | None = None,
    method: str | None = None,
) -> tuple[PreTrainedConfig, list[Row]]:
    """Configuration and key table of the weights of a checkpoint, sizes read from the tensors.

    Args:
        kind: `autoencoder`, `encoder`, `classifier`, `dinov2`, `vit` (of another method) or `resnet`.
        state: tensors of the network alone.
        modality: None for weights of natural images.
        args: arguments of training, where the file has them.
        head_norm, class_names: of a classifier.
        method: that trained a `vit`.
    """
    if kind == "resnet":
        return resnet_config(state, modality), list(resnet_rows(state))
    width, patch = size_of(state, "cls_token", -1), size_of(state, "patch_embed.proj.weight", -1)
    positions, mlp = size_of(state, "pos_embed", 1), size_of(state, "blocks.0.mlp.fc1.weight", 0)
    depth = depth_of(state, "blocks")
    sizes: dict[str, Any] = {
        "hidden_size": width,
        "num_hidden_layers": depth,
        "num_attention_heads": MOCO_HEADS.get(width, width // HEAD_WIDTH)
        if method == "MoCo v3"
        else width // HEAD_WIDTH,
        "image_size": math.isqrt(positions - 1) * patch,
        "patch_size": patch,
    }
    encoder = {"width": width, "mlp": mlp, "depth": depth, "patch": patch, "positions": positions}
    if kind == "dinov2":
        return Dinov2Config(**sizes, mlp_ratio=mlp // width, layer_norm_eps=1e-6), list(dinov2_rows(**encoder))
    sizes |= {
        "intermediate_size": mlp,
        "modality": modality,
        "mask_ratio": args.get("mask_ratio", MODALITIES[modality or "cfp"].mask_ratio),
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
            "norm_pix_loss": bool(args.get("norm_pix_loss", True)),
        }
    return RetFoundConfig(**sizes), rows


def _labels(classes: int, names: Iterable[str] | None) -> dict[str, Any]:
    names = list(names) if names else [f"LABEL_{index}" for index in range(classes)]
    if len(names) != classes:
        message = f"`class_names` has {len(names)} names for a head of {classes} classes; give one per class"
        raise BadArgumentError(message, field="class_names", value=names)
    return {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "problem_type": SINGLE_LABEL,
    }


def size_of(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    """Size of a tensor along an axis."""
    if name not in state or not -state[name].ndim <= axis < state[name].ndim or not state[name].numel():
        raise BadModelError(f"checkpoint lacks {name}; it is not a RETFound checkpoint, or an incomplete one")
    return state[name].shape[axis]


def depth_of(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of blocks `<prefix>.0`, `<prefix>.1` and so on."""
    indices = {int(match[1]) for name in state if (match := re.match(rf"{prefix}\.(\d+)\.", name))}
    depth = max(indices, default=-1) + 1
    if depth > len(state):
        raise BadModelError(f"checkpoint names {prefix}.{depth - 1}, and has {len(state)} tensors in all")
    return depth


def resnet_config(state: Mapping[str, Tensor], modality: str | None) -> ResNetConfig:
    """Depths and widths as in the tensors: ResNet-50, deeper ones, and SwAV's wider ones."""
    config = ResNetConfig(
        embedding_size=size_of(state, "conv1.weight", 0),
        hidden_sizes=[size_of(state, f"layer{stage + 1}.0.conv3.weight", 0) for stage in range(STAGES)],
        depths=[depth_of(state, f"layer{stage + 1}") for stage in range(STAGES)],
    )
    # Not attributes of a ResNet's own configuration; runs with it read them.
    config.image_size, config.modality = IMAGE_SIZE, modality
    return config


def resnet_rows(state: Mapping[str, Tensor]) -> Iterator[Row]:
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


def check_sizes(settings: Mapping[str, Any], name_or_path: str) -> None:
    """Refuse a configuration far larger than its weights: the network would fill the memory before they are read."""
    sizes: dict[str, list[int]] = {}
    for part in (settings, settings.get("encoder_config")):
        for name, value in part.items() if isinstance(part, dict) else ():
            if name.endswith(SIZES) and value is not None:
                sizes[name] = list(value) if isinstance(value, (list, tuple)) else [value]
                most = MOST_LAYERS if name.endswith(("layers", "depths")) else WIDEST
                if not all(isinstance(size, (int, float)) and 0 < size <= most for size in sizes[name]):
                    reason = f"config.json has {name} {join_names(sizes[name])}; accepted: 1 to {most:,}"
                    raise BadModelError(f"model {name_or_path}: {reason}", model=name_or_path)
    first = {name: values[0] for name, values in sizes.items() if values}
    stages = zip(sizes.get("depths", ()), sizes.get("hidden_sizes", ()), strict=False)
    parameters = sum(depth * width**2 for depth, width in stages)
    patch = max(1, first.get("patch_size", 1))
    for part in ("", "decoder_"):
        width, layers = first.get(f"{part}hidden_size", 0), first.get(f"{part}num_hidden_layers", 0)
        inner = first.get(f"{part}intermediate_size", 0) + width * first.get("mlp_ratio", 0)
        positions = (first.get("image_size", 0) // patch) ** 2
        parameters += width * (layers * (4 * width + 2 * inner) + positions + patch**2)
    folder = Path(name_or_path)  # of an adapter the weights are elsewhere
    files = () if (folder / ADAPTER_FILE).exists() else (path for each in WEIGHTS for path in folder.glob(each))
    stored = sum(path.stat().st_size for path in files)
    most = stored + SPARE if stored else MOST_PARAMETERS
    if parameters > most:
        beside = f" beside weights of {stored:,} bytes" if stored else ""
        raise BadModelError(
            f"model {name_or_path}: config.json describes a network of some {parameters:,} parameters; accepted"
            f"{beside}: up to {most:,}; restore the file",
            model=name_or_path,
        )
