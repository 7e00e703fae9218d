"""Key tables: every tensor of an official checkpoint, its shape and its name on disk."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ...runs.errors import RetFoundError

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
