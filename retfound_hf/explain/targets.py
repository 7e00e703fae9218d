"""Which output of a classifier a map speaks of."""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from transformers import PreTrainedConfig

from ..runs.errors import RetFoundError, nearest

Target: TypeAlias = int | str | Sequence[int | str] | Tensor | None


def resolve_targets(target: Target, logits: Tensor, config: PreTrainedConfig) -> Tensor:
    """The index of the explained output for each image of a batch, int64 (batch,) on the logits' device.

    Args:
        target: None for the output of highest logit; a class index or name for all images; or one for each.
        logits: (batch, outputs).
        config: of the classifier, for the names of its classes.

    Raises:
        RetFoundError: an unknown class, another number of classes than images, or a regression of several values
            without a target, of which none is "predicted".
    """
    count, outputs = logits.shape
    if target is None:
        if config.problem_type == "regression" and outputs > 1:
            names = ", ".join(str(config.id2label[index]) for index in range(outputs))
            raise RetFoundError(f"the model predicts {outputs} values; choose the one to explain: {names}")
        return logits.argmax(dim=1)
    if isinstance(target, Tensor):
        target = target.tolist()
    each = [target] * count if isinstance(target, (int, str)) else list(target)
    if len(each) != count:
        raise RetFoundError(f"{len(each)} target classes for {count} images; give one class, or one per image")
    return torch.tensor([_index(one, outputs, config) for one in each], device=logits.device)


def _index(target: int | str, outputs: int, config: PreTrainedConfig) -> int:
    names = [str(config.id2label.get(index, index)) for index in range(outputs)]
    if isinstance(target, str):
        if target not in names:
            raise RetFoundError(f"class {target!r} is unknown{nearest(target, names)}; accepted: {', '.join(names)}")
        return names.index(target)
    if not 0 <= target < outputs:
        raise RetFoundError(f"class index {target} is out of range; the model has {outputs}: {', '.join(names)}")
    return int(target)
