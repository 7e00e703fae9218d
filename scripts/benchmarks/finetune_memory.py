"""Peak memory of fine-tuning ViT-L at batch 16 in half precision: measured on a GPU, computed where there is none.

    python scripts/benchmarks/finetune_memory.py --output_file scripts/benchmarks/results/finetune_memory.json

On a GPU two training steps run under a 15 GB cap, the part of a T4's 16 GB that a program gets. Elsewhere the bytes
that autograd keeps for the backward pass are counted on the CPU for one and two images, carried on to the batch, and
added to those of weights, gradients and AdamW's moments. That sum leaves out temporary buffers and fragmentation.
"""

import argparse
import platform
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn

from retfound_hf import RetFoundConfig, RetFoundForImageClassification
from retfound_hf.files import write_json
from retfound_hf.finetuning.methods import add_lora
from retfound_hf.record import git_revision, versions

CAP_GB = 15
OFFICIAL = partial(RetFoundConfig.from_preset, "retfound-cfp")
GB = 1e9


def build(method: str, checkpointing: bool, config_of: Callable[..., RetFoundConfig] = OFFICIAL) -> nn.Module:
    """The classifier as `finetune` trains it, of the official sizes or those that `config_of` gives."""
    model = RetFoundForImageClassification(config_of(num_labels=5, drop_path_rate=0.2 if method == "full" else 0.0))
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if method == "lora":
        model = add_lora(model, rank=16, alpha=16, targets=("query", "value"))
    return model.train()


def trainable(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def measured(method: str, checkpointing: bool, batch: int) -> float:
    """Peak GB that two steps with AdamW and fp16 autocast allocate."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    model = build(method, checkpointing).cuda()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    scaler = torch.amp.GradScaler("cuda")
    pixels = torch.randn(batch, 3, 224, 224, device="cuda")
    labels = torch.randint(0, 5, (batch,), device="cuda")
    for _ in range(2):
        with torch.autocast("cuda", torch.float16):
            loss = model(pixel_values=pixels, labels=labels).loss
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() / GB


def kept_for_backward(model: nn.Module, batch: int) -> int:
    """Bytes that autograd keeps between forward and backward, weights not counted, their half copies counted."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    # bfloat16 stands for float16, which has as many bytes and which the CPU lacks for some operations.
    with torch.autocast("cpu", torch.bfloat16), torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        model(pixel_values=torch.randn(batch, 3, 224, 224), labels=torch.zeros(batch, dtype=torch.long))
    return sum(storage.nbytes() for storage in kept.values())


def computed(method: str, checkpointing: bool, batch: int) -> dict[str, float]:
    """GB of each part; what a batch needs is a line through one and two images."""
    model = build(method, checkpointing)
    one, two = kept_for_backward(model, 1), kept_for_backward(model, 2)
    parts = {
        "weights": 4 * sum(parameter.numel() for parameter in model.parameters()) / GB,
        "gradients": 4 * trainable(model) / GB,
        "optimizer": 8 * trainable(model) / GB,
        "activations": (one + (batch - 1) * (two - one)) / GB,
    }
    return {name: round(value, 2) for name, value in {**parts, "sum": sum(parts.values())}.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description="Peak memory of fine-tuning ViT-L in half precision.")
    parser.add_argument("--output_file", "--out", required=True, help="JSON file to write")
    parser.add_argument("--batch_size", type=int, default=16)
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, CAP_GB * GB / total))
    rows: list[dict[str, Any]] = []
    for method in ("full", "lora"):
        for checkpointing in (False, True):
            row: dict[str, Any] = {"method": method, "gradient_checkpointing": checkpointing}
            try:
                size = measured(method, checkpointing, arguments.batch_size) if on_gpu else None
                row |= {"peak_gb": size} if on_gpu else {"gb": computed(method, checkpointing, arguments.batch_size)}
            except torch.cuda.OutOfMemoryError:
                row["peak_gb"] = f"above the cap of {CAP_GB} GB"
            rows.append(row)
            print(row)
    how = "measured" if on_gpu else "computed: bytes kept for backward at 1 and 2 images on the CPU, extrapolated"
    machine = torch.cuda.get_device_name(0) if on_gpu else platform.machine()
    write_json(
        arguments.output_file,
        {
            "what": f"fine-tuning ViT-L, 224 px, batch {arguments.batch_size}, half precision, AdamW",
            "how": how,
            "machine": machine,
            "versions": versions(),
            "git_revision": git_revision(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
