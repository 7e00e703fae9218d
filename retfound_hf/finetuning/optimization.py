"""Layer-wise learning-rate decay (Clark et al. 2020; Bao et al. 2022) as real learning rates in parameter groups."""

import re
from typing import Any

from torch import nn

# Block numbers in the names of every transformers vision model: `encoder.layer.3.`, `layers.3.`, `blocks.3.`; the
# stages of a ResNet count as one block each.
BLOCK = re.compile(r"(?:^|\.)(?:layer|layers|blocks|stages)\.(\d+)\.")
# Not decayed although they are no vectors, as in the official code.
POSITIONS_AND_TOKENS = ("position_embeddings", "cls_token", "mask_token", "register_tokens")


def layer_index(name: str, num_blocks: int) -> int:
    """0 for the embeddings, i + 1 for block i, `num_blocks` + 1 for everything after the last block."""
    if found := BLOCK.search(name):
        return int(found[1]) + 1
    return 0 if "embedd" in name else num_blocks + 1


def layer_decay_groups(
    model: nn.Module, learning_rate: float, weight_decay: float, layer_decay: float
) -> list[dict[str, Any]]:
    """Parameter groups with their learning rates, from the embeddings up.

    The rate of layer i of L + 1 is `learning_rate` x `layer_decay`^(L + 1 - i), where L is the number of blocks;
    vectors (biases, norms, layer scales), positions and tokens have no weight decay.

    Returns:
        One dict per layer and decay, with `params`, `lr`, `weight_decay` and, for reading, `layer`.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    blocks = [int(found[1]) for name, _ in model.named_parameters() if (found := BLOCK.search(name))]
    num_blocks = max(blocks, default=-1) + 1
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in named:
        layer = layer_index(name, num_blocks)
        decays = parameter.ndim > 1 and not any(token in name for token in POSITIONS_AND_TOKENS)
        group = groups.setdefault(
            (layer, decays),
            {
                "params": [],
                "lr": learning_rate * layer_decay ** (num_blocks + 1 - layer),
                "weight_decay": weight_decay if decays else 0.0,
                "layer": layer,
            },
        )
        group["params"].append(parameter)
    return [groups[key] for key in sorted(groups)]
