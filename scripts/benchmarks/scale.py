"""Time of the paper's runs on GPUs that nobody had here: computed from counted operations, not measured.

    python scripts/benchmarks/scale.py

Prints the figures of README.md. A step computes `batch x operations / (peak x share)` seconds. The gradients, float32,
go around rings of all GPUs (2 (n - 1) / n of their bytes) while the backward pass, two thirds of the step, goes on;
what is left of that is waited for. Loading and checkpoints are taken to hide behind the step.
"""

from dataclasses import dataclass

import torch
from pretrain_throughput import flops_per_image
from torch.utils.flop_counter import FlopCounterMode

from retfound_hf import RetFoundConfig, RetFoundModel

EPOCHS, BATCH = 800, 1792
IMAGES = {"CFP": 904_170, "OCT": 736_442}
PARAMETERS = 329_541_888  # encoder and decoder
MACHINE = 8  # GPUs in one machine
SHARES = (0.35, 0.55)  # of the peak: of good plain code, and the goal of the table above


@dataclass(frozen=True)
class Gpu:
    """Peak in half precision without sparsity (FLOP/s), and bytes/s of the rings in a machine and between machines."""

    peak: float
    within: float
    beyond: float


# Data sheets of NVIDIA: NVLink one way; between machines all eight network cards of one, 400 Gb/s each beside H100 and
# H200, 200 beside A100.
GPUS = {
    "A100": Gpu(312e12, 300e9, 200e9),
    "H100": Gpu(989e12, 450e9, 400e9),
    "H200": Gpu(989e12, 450e9, 400e9),
}
T4_PEAK, T4_SHARES = 65e12, (0.2, 0.35)


def step_seconds(gpu: Gpu, gpus: int, batch: int, flops: float, share: float) -> float:
    """Seconds of an optimiser step.

    Args:
        gpus: how many, in machines of `MACHINE`.
        batch: images on all of them.
        flops: operations of an image, forward and backward.
        share: of the peak that is reached.
    """
    computing = batch / gpus * flops / (gpu.peak * share)
    link = gpu.within if gpus <= MACHINE else gpu.beyond
    sending = 2 * (gpus - 1) / gpus * 4 * PARAMETERS / link
    return computing + max(0.0, sending - computing * 2 / 3)


def run_hours(gpu: Gpu, gpus: int, images: int, flops: float, share: float) -> float:
    return EPOCHS * (images // BATCH) * step_seconds(gpu, gpus, BATCH, flops, share) / 3600


def finetuning_flops() -> float:
    """Operations of an image in full fine-tuning of ViT-L: the backward pass takes twice those of the forward pass."""
    with torch.device("meta"):
        model, pixels = RetFoundModel(RetFoundConfig.from_preset("retfound-cfp")), torch.empty(1, 3, 224, 224)
        with FlopCounterMode(display=False) as counter:
            model(pixels)
    return 3 * counter.get_total_flops()


def main() -> None:
    flops = flops_per_image(RetFoundConfig.from_preset("retfound-cfp"))
    print(f"Pretraining: {flops / 1e9:.0f} GFLOP an image, batch {BATCH}, {EPOCHS} epochs; hours at", SHARES)
    for name, gpu in GPUS.items():
        for gpus in (8, 64):
            found = [[run_hours(gpu, gpus, images, flops, share) for share in SHARES] for images in IMAGES.values()]
            cells = " | ".join(" to ".join(f"{hours:.1f}" for hours in sorted(each)) for each in found)
            cost = " to ".join(f"{gpus * hours:,.0f}" for hours in sorted(found[0]))
            speed = " to ".join(f"{BATCH / step_seconds(gpu, gpus, BATCH, flops, share):,.0f}" for share in SHARES)
            print(f"| {gpus} x {name} | {speed} | {cells} | {cost} |")
    own = finetuning_flops()
    minutes = sorted(1000 * 50 * own / (T4_PEAK * share) / 60 for share in T4_SHARES)
    print(f"Fine-tuning: {own / 1e9:.0f} GFLOP an image; 1,000 images x 50 epochs on a T4: "
          f"{minutes[0]:.0f} to {minutes[1]:.0f} minutes at {T4_SHARES} of its peak")  # fmt: skip


if __name__ == "__main__":
    main()
