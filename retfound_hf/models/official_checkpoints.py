"""Official `.pth` checkpoints: safe reading, recognition of their kind, and key tables."""

import argparse
import hashlib
import math
import pickle
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import Dinov2Config, PreTrainedConfig

from ..errors import RetFoundError
from .configuration_retfound import PRESETS, RetFoundConfig

# Where the official codes keep the weights: MAE and fine-tuning under `model`, DINO and DINOv2 under `teacher`,
# MoCo v3 and most copies of SimCLR under `state_dict`.
STATE_KEYS = ("model", "teacher", "state_dict")
# And the library VISSL, which published SimCLR's for PyTorch, four dicts down.
VISSL_KEYS = ("classy_state_dict", "base_model", "model", "trunk")


@dataclass(frozen=True)
class OfficialCheckpoint:
    """What an official file holds.

    Args:
        path: the file.
        state: weights by their official names.
        origin: the key that held them, such as `model` or `teacher`, or None for a bare state dict.
        args: the training arguments saved beside them, empty when there were none.
    """

    path: Path
    state: dict[str, Tensor]
    origin: str | None
    args: dict[str, Any]

    @cached_property
    def sha256(self) -> str:
        """Hash of the file: seconds of reading, which no refusal should cost."""
        return sha256_of(self.path)


def read_checkpoint(path: str | Path) -> OfficialCheckpoint:
    """Read a `.pth` file of RETFound or of another method.

    Only tensors, plain containers and `argparse.Namespace` are unpickled; anything else is refused before it runs.

    Raises:
        RetFoundError: no such file, not a checkpoint, a pickle with other objects, or no weights in it.
    """
    path = Path(path)
    if not path.is_file():
        raise RetFoundError(f"checkpoint {path} does not exist; give a .pth file or a Hub id such as ORG/NAME")
    content = _load(path)
    if not isinstance(content, dict):
        raise RetFoundError(f"checkpoint {path} holds a {type(content).__name__}; accepted: a dict of tensors")
    origin = next((key for key in STATE_KEYS if isinstance(content.get(key), dict)), None)
    state = content[origin] if origin else content
    if trunk := _down(content, VISSL_KEYS):
        origin, state = VISSL_KEYS[-1], trunk
    others = [str(name) for name, value in state.items() if not isinstance(value, Tensor)]
    if others or not state:
        found = f"{', '.join(others[:5])} instead" if others else "nothing"
        raise RetFoundError(
            f"checkpoint {path} has no weights under {' or '.join(map(repr, STATE_KEYS))} and is no state dict: "
            f"found {found}"
        )
    args = content.get("args") if origin else None
    if isinstance(args, argparse.Namespace):
        args = vars(args)
    return OfficialCheckpoint(path, state, origin, args if isinstance(args, dict) else {})


def _down(content: dict[str, Any], keys: tuple[str, ...]) -> dict[str, Any] | None:
    """The dict at the end of nested keys, None where there is none."""
    for key in keys:
        content = content.get(key) if isinstance(content, dict) else None
    return content if isinstance(content, dict) else None


def _load(path: Path) -> Any:
    with torch.serialization.safe_globals([argparse.Namespace]):
        try:
            # Memory-mapped, so that the optimiser state of a 4 GB file is never read.
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
        except pickle.UnpicklingError as error:
            # The name alone: torch goes on to advise how to let it through.
            asked = re.search(r"GLOBAL (\S+)", str(error))
            reason = f"it asks for {asked[1]}" if asked else "it is no PyTorch file"
            raise RetFoundError(
                f"checkpoint {path} is refused, nothing in it was run: {reason}, and only tensors, plain containers "
                "and argparse.Namespace are read"
            ) from error
        except (RuntimeError, EOFError, ValueError, KeyError, UnicodeDecodeError) as error:
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise RetFoundError(
                f"checkpoint {path} cannot be read, it may be cut short or no PyTorch file: {first}"
            ) from error


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _digest(file)


def _digest(file: Any) -> str:
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


SHOWN = 5  # names in a message before "and N more"


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

    Raises:
        RetFoundError: a missing, an unexpected or a mis-shaped tensor, by name.
    """
    table = {row.source: row for row in rows}
    if missing := [name for name in table if name not in state]:
        raise RetFoundError(f"checkpoint lacks {_listed(missing)}; it is incomplete or of another architecture")
    if unexpected := [name for name in state if name not in table]:
        raise RetFoundError(f"checkpoint has tensors of no known use: {_listed(unexpected)}")
    renamed: dict[str, Tensor] = {}
    for name, row in table.items():
        if tuple(state[name].shape) != row.shape:
            raise RetFoundError(f"tensor {name} has shape {tuple(state[name].shape)}; expected {row.shape}")
        whole = state[name].detach()
        parts = whole.chunk(len(row.targets)) if len(row.targets) > 1 else (whole,)
        for target, part in zip(row.targets, parts, strict=True):
            # A contiguous copy: safetensors refuses tensors that share memory. Float32, but for the counters of steps.
            dtype = torch.float32 if part.is_floating_point() else part.dtype
            renamed[target] = part.to(dtype, copy=True).contiguous()
    return renamed


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


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
