"""Images per second, model FLOP utilisation and memory of ViT-L pretraining, on the code path of `pretrain`.

    python scripts/benchmarks/pretrain_throughput.py --out scripts/benchmarks/results/pretrain_throughput.json

Uint8 batches that lie on the device already pass through augmentation, network, backward and optimiser, so that the
figure is the device's own. The loader's figure stands beside it: images that one process decodes per second. FLOPs are
counted by torch in one forward and backward pass; utilisation is per `--peak_tflops`, the dense bf16 peak of the GPU
(A100 312, H100 and H200 989, T4 65 in fp16).
"""

import argparse
import io
import os
import platform
import time
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers.modeling_layers import GradientCheckpointingLayer

from retfound_hf import RetFoundConfig, RetFoundForPreTraining
from retfound_hf.files import write_json
from retfound_hf.images.synthetic import draw_patient, render
from retfound_hf.pretraining.data import decode, step_generator
from retfound_hf.pretraining.loop import gradient_norm, guarded_step, make_optimizer
from retfound_hf.pretraining.objectives.mae import MaskedAutoencoding
from retfound_hf.record import git_revision, versions

GB = 1e9
SIDE = 256


def flops_per_image(preset: str) -> float:
    """Of a training step, forward and backward, counted on two images."""
    objective = MaskedAutoencoding(RetFoundForPreTraining(RetFoundConfig.from_preset(preset)), SIDE)
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    views = objective.views(images, objective.draw(2, step_generator(0, 0)))
    with FlopCounterMode(display=False) as counter:
        loss, _ = objective(views)
        loss.backward()
    return counter.get_total_flops() / 2


def throughput(preset: str, batch: int, steps: int, compiled: bool, checkpointing: bool, cap: float | None) -> Any:
    """Images per second of the device and its peak memory, over `steps` steps after a warm-up."""
    on_gpu = torch.cuda.is_available()
    accelerator = Accelerator(mixed_precision="bf16" if on_gpu else "no", cpu=not on_gpu)
    if on_gpu:
        torch.set_float32_matmul_precision("high")
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        if cap:
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, cap * GB / total))
    objective = MaskedAutoencoding(RetFoundForPreTraining(RetFoundConfig.from_preset(preset)), SIDE)
    if checkpointing:
        objective.model.gradient_checkpointing_enable({"use_reentrant": False})
    if compiled:
        for module in objective.modules():
            if isinstance(module, GradientCheckpointingLayer):
                module.compile()
    network, optimizer = accelerator.prepare(objective, make_optimizer(objective, 1e-4, 0.05, (0.9, 0.95)))
    network.train()
    images = torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=accelerator.device)
    draws = {name: value.to(accelerator.device) for name, value in objective.draw(batch, step_generator(0, 0)).items()}

    def step() -> None:
        with torch.no_grad():
            views = objective.views(images, draws)
        loss, _ = network(views)
        accelerator.backward(loss)
        norm = gradient_norm(accelerator, network, 0.0)
        guarded_step(accelerator, optimizer, norm.isfinite())
        optimizer.zero_grad()

    def wait() -> None:
        if on_gpu:
            torch.cuda.convert_sync_batchnorm()

    for _ in range(3):
        step()
    wait()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    wait()
    speed = steps * batch / (time.perf_counter() - started)
    memory = torch.cuda.max_memory_allocated() / GB if on_gpu else None
    return {"images_per_second": round(speed, 1), "peak_gb": None if memory is None else round(memory, 2)}


def decoded_per_second(count: int = 300) -> float:
    """JPEG images of 256 x 256 that one loader process decodes per second."""
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    encoded = io.BytesIO()
    pixels = render(draw_patient(rng, "cfp")[0], "normal", 0.0, 400, rng).image
    Image.fromarray(pixels).resize((SIDE, SIDE)).save(encoded, "JPEG", quality=95, subsampling=0)
    started = time.perf_counter()
    for _ in range(count):
        decode(encoded.getvalue())
    return round(count / (time.perf_counter() - started), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description="Throughput of pretraining.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--preset", default="retfound-cfp")
    parser.add_argument("--batch_size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--peak_tflops", type=float, default=None, help="dense peak of the device, for utilisation")
    parser.add_argument("--cap_gb", type=float, default=None, help="memory that the process may use")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    flops = flops_per_image(arguments.preset)
    rows = []
    for compiled, checkpointing in ((False, False), (True, False), (False, True)):
        if compiled and not on_gpu:
            continue
        row = {"torch_compile": compiled, "gradient_checkpointing": checkpointing}
        row |= throughput(
            arguments.preset, arguments.batch_size, arguments.steps, compiled, checkpointing, arguments.cap_gb
        )
        if arguments.peak_tflops:
            row["utilisation"] = round(row["images_per_second"] * flops / (arguments.peak_tflops * 1e12), 3)
        rows.append(row)
        print(row)
    write_json(
        arguments.out,
        {
            "what": f"pretraining {arguments.preset}, batch {arguments.batch_size}, {'bf16' if on_gpu else 'float32'}",
            "machine": torch.cuda.get_device_name(0) if on_gpu else f"{platform.machine()}, {os.cpu_count()} cores",
            "versions": versions(),
            "git_revision": git_revision(),
            "gflop_per_image": round(flops / 1e9, 2),
            "peak_tflops": arguments.peak_tflops,
            "decoded_per_second_and_process": decoded_per_second(),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    main()
