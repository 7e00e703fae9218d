"""LoRA (Hu et al. 2021) through peft: adapters on the attention projections, the head trained beside them."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn
from transformers import PreTrainedModel

from ..models.image_processing import RetFoundImageProcessor
from ..runs.errors import RetFoundError


def add_lora(
    model: PreTrainedModel, rank: int = 16, alpha: int = 16, dropout: float = 0.0, targets: Sequence[str] = ()
) -> nn.Module:
    """Wrap `model` so that only the adapters and the head are trained, and saved together.

    Raises:
        RetFoundError: no linear layer bears one of the names in `targets`.
    """
    from peft import LoraConfig, get_peft_model

    linear = {name.rsplit(".", 1)[-1] for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    targets = [_own_name(target, linear) for target in targets]
    head = ["fc_norm", "classifier"]
    return get_peft_model(
        model,
        LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, modules_to_save=head),
    )


def trained_head(model: nn.Module) -> nn.Linear:
    """The last linear layer: of a network, or that which an adapter trains."""
    head = model.base_model.model.classifier if hasattr(model, "peft_config") else model.classifier
    return head.modules_to_save[model.active_adapter] if hasattr(head, "modules_to_save") else head


def save_adapter(model: nn.Module, processor: RetFoundImageProcessor, folder: str | Path) -> None:
    """Write the adapter with its head, the labels' configuration and the preprocessing."""
    config = model.peft_config[model.active_adapter]
    if Path(config.base_model_name_or_path).is_dir():
        # The adapter finds its base from wherever it is loaded.
        config.base_model_name_or_path = str(Path(config.base_model_name_or_path).resolve())
    model.save_pretrained(folder)
    model.base_model.model.config.save_pretrained(folder)
    processor.save_pretrained(folder)


def _own_name(target: str, linear: set[str]) -> str:
    # Stock models of transformers 5 call the same projections q_proj and v_proj.
    for name in (target, f"{target[0]}_proj"):
        if name in linear:
            return name
    raise RetFoundError(f"--lora_targets {target!r} names no linear layer; accepted: {', '.join(sorted(linear))}")
