"""One step of the figures that need a GPU; `gpu.sh` runs all of them. TOY=1: at toy size on a CPU.

    python scripts/benchmarks/gpu.py mae --output_dir gpu-results

appends lines of JSON to `results.jsonl` there. Steps: correct (half precision, attention, compilation, checkpointing
against float32, and two loss curves), mae, finetune, loop, embed, objectives, maps. Ways of one question take turns; a
ratio above 1 is faster than the peer.
"""

import argparse
import gc
import importlib.util
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import finetune_memory
import numpy as np
import peers
import pretrain_throughput as pretraining
import torch
from accelerate.state import AcceleratorState
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundModel
from retfound_hf.images.batch_transforms import crop_resize, draw_crops
from retfound_hf.pretraining.data import step_generator
from retfound_hf.record import git_revision, versions

TOY = bool(os.environ.get("TOY"))
DEVICE = "cpu" if TOY else "cuda"
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "T4": 65e12}  # dense, in half precision
ROUNDS, WARMUP = (1, 1) if TOY else (10, 3)
HALF = torch.bfloat16 if TOY else torch.float16
CAP_GB, GB = finetune_memory.CAP_GB, 1e9
TOY_SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 64,
    "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 64, "modality": "cfp",
}  # fmt: skip
Ways = dict[str, Callable[[], peers.Step]]


def config_of(**overrides: Any) -> RetFoundConfig:
    return (
        RetFoundConfig(**{**TOY_SIZES, **overrides})
        if TOY
        else RetFoundConfig.from_preset("retfound-cfp", **overrides)
    )


class Results:
    """Lines of one step, written as they come."""

    def __init__(self, step: str, folder: Path):
        self.step, self.folder = step, folder
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, what: str, **facts: Any) -> None:
        line = json.dumps({"step": self.step, "what": what, **facts})
        print(line, flush=True)
        with (self.folder / "results.jsonl").open("a") as file:
            file.write(line + "\n")

    def check(self, what: str, found: float, limit: float) -> None:
        self.say(what, found=found, limit=limit, holds=bool(found <= limit))


def free() -> None:
    """Forget what came before, with the precision that Accelerate keeps for the life of a process."""
    AcceleratorState._reset_state(reset_partial_state=True)
    gc.collect()
    if not TOY:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def turns(results: Results, ways: Ways, images: int, flops: float | None = None, passes: int = 2) -> dict[str, float]:
    """Images per second of each way, which is built, timed and freed before the next; all of it `passes` times."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    peak = (
        None if TOY else next((value for name, value in PEAKS.items() if name in torch.cuda.get_device_name(0)), None)
    )
    for number in range(passes):
        for name, build in ways.items():
            free()
            try:
                with torch.device(DEVICE):
                    step = build()
                times = peers.alternate({name: step}, ROUNDS, WARMUP, DEVICE)[name]
            except Exception as error:  # one way that fails, out of memory or for lack of a compiler, is a finding
                results.say(name, turn=number, error=f"{type(error).__name__}: {error}"[:300])
                continue
            finally:
                step = None
            speed = images / times["seconds"]
            found[name].append(speed)
            facts = {"peak_gb": None if TOY else round(torch.cuda.max_memory_allocated() / GB, 2)}
            if flops and peak:
                facts["of_half_precision_peak"] = round(speed * flops / peak, 3)
            ms = round(1e3 * times["seconds"], 2)
            results.say(name, turn=number, images_per_second=round(speed, 1), ms=ms, batch=images, **facts)
            if not TOY:
                torch.compiler.reset()
    return {name: statistics.median(speeds) for name, speeds in found.items() if speeds}


def ratios(results: Results, speeds: dict[str, float], **pairs: tuple[str, str]) -> None:
    for name, (ours, peer) in pairs.items():
        if ours in speeds and peer in speeds:
            results.say(name, ratio=round(speeds[ours] / speeds[peer], 3))


def gradient(model: torch.nn.Module, loss: Tensor) -> Tensor:
    model.zero_grad()
    loss.float().backward()
    return torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None])


def apart(found: Tensor, exact: Tensor) -> float:
    return float((found.float() - exact.float()).norm() / exact.float().norm())


def correct(results: Results) -> None:
    """Every fast path against float32 without TF32; each line has its limit, of the relative error of all numbers."""
    torch.manual_seed(0)
    config, batch = config_of(num_labels=5), 4 if TOY else 16
    x = torch.randn(batch, 3, config.image_size, config.image_size, device=DEVICE)
    classifier = RetFoundForImageClassification(config).to(DEVICE).eval()
    classifier.classifier.weight.data.normal_(0, 0.2)
    with torch.inference_mode():
        exact = classifier(x).logits
        for dtype, limit in {torch.bfloat16: 2e-2, HALF: 2e-2 if TOY else 3e-3}.items():
            with torch.autocast(DEVICE, dtype):
                results.check(f"logits, {dtype} autocast", apart(classifier(x).logits, exact), limit)
        for name, backends in {"flash attention": [SDPBackend.FLASH_ATTENTION], "math": [SDPBackend.MATH]}.items():
            with torch.autocast(DEVICE, torch.bfloat16), sdpa_kernel(backends):
                results.check(f"logits, {name} in bfloat16", apart(classifier(x).logits, exact), 2e-2)
        classifier.set_attn_implementation("eager")
        results.check("logits, eager attention in float32", apart(classifier(x).logits, exact), 1e-4)
    network = RetFoundForPreTraining(config_of()).to(DEVICE).train()
    noise = torch.rand(batch, (config.image_size // config.patch_size) ** 2, device=DEVICE)

    def found(dtype: torch.dtype | None = None, **options: Any) -> tuple[float, Tensor]:
        with torch.autocast(DEVICE, dtype or torch.bfloat16, enabled=dtype is not None):
            loss = network(x, noise=noise, **options).loss
        return float(loss), gradient(network, loss)

    plain = found()

    def compare(what: str, other: tuple[float, Tensor], of_loss: float, of_gradient: float) -> None:
        results.check(f"loss, {what}", abs(other[0] - plain[0]) / plain[0], of_loss)
        results.check(f"gradient, {what}", apart(other[1], plain[1]), of_gradient)

    compare("hidden patches alone", found(predict_all=False), 1e-6, 1e-5)
    compare("bfloat16 autocast", found(torch.bfloat16), 5e-3, 6e-2)
    if not TOY:
        compare("float16 autocast", found(torch.float16), 1e-3, 1e-2)
    network.gradient_checkpointing_enable({"use_reentrant": False})
    compare("checkpointed", found(), 1e-6, 1e-5)
    network.gradient_checkpointing_disable()
    if not TOY:  # a toy needs no compiler
        for block in (*network.vit.encoder.layer, *network.decoder.decoder_layers):
            block.compile()
        compare("compiled", found(), 1e-5, 1e-4)
    images = pretraining.random_images(8, "cpu")
    crops = draw_crops(8, pretraining.SIDE, pretraining.SIDE, step_generator(0, 0))
    difference = crop_resize(images.to(DEVICE), crops, 224).cpu() - crop_resize(images, crops, 224)
    results.check("crops, levels of 255 from those of a CPU", float(difference.abs().mean()), 0.5)
    curves(results)


def curves(results: Results) -> None:
    """Loss of the path of `pretrain` in bfloat16, compiled, with TF32, beside that of plain float32."""
    steps, batch = (4, 4) if TOY else (40, 64)
    lines: dict[str, list[float]] = {}
    for name, precision, options in (("plain", "no", {}), ("fast", "bf16", {} if TOY else {"torch_compile": True})):
        torch.set_float32_matmul_precision("highest" if name == "plain" else "high")
        torch.manual_seed(0)
        objective = pretraining.make_objective(config_of()).to(DEVICE)
        images = pretraining.random_images(batch, "cpu").to(DEVICE)
        step = pretraining.pretraining_step(objective, images, True, precision, **options)
        lines[name] = [float(step()) for _ in range(steps)]
        results.say(f"loss curve, {name}", loss=[round(value, 4) for value in lines[name][:: max(1, steps // 8)]])
        free()
    ends = {name: statistics.mean(values[-3:]) for name, values in lines.items()}
    results.check("end of the loss curves", abs(ends["fast"] - ends["plain"]) / ends["plain"], 2e-2)


def mae(results: Results) -> None:
    """A step of masked autoencoding: 3x the released code, 1.5x Trainer, 55% of the peak."""
    torch.set_float32_matmul_precision("high")
    config, batch = config_of(), 4 if TOY else 256
    flops = pretraining.flops_per_image(config)
    images = pretraining.random_images(batch, DEVICE)
    pixels = pretraining.normalised(batch, config.image_size, DEVICE)
    precision = "no" if TOY else "bf16"

    def ours(augment: bool = False, **options: Any) -> peers.Step:
        return pretraining.pretraining_step(pretraining.make_objective(config), images, augment, precision, **options)

    def trainer() -> peers.Step:
        return peers.trainer_step(
            peers.stock_autoencoder(config), {"pixel_values": pixels}, results.folder / "trainer"
        )

    ways: Ways = {
        "official": lambda: peers.official_pretraining(config, pixels),
        "stock Trainer": trainer,
        "ours": ours,
    }
    if not TOY:
        ways["ours, compiled"] = lambda: ours(torch_compile=True)
        ways["ours, compiled, with augmentation"] = lambda: ours(augment=True, torch_compile=True)
    speeds = turns(results, ways, batch, flops)
    best = "ours" if TOY else "ours, compiled"
    ratios(
        results, speeds, against_official=(best, "official"), against_stock=(best, "stock Trainer"),
        not_compiled_against_official=("ours", "official"), not_compiled_against_stock=("ours", "stock Trainer"),
        with_augmentation=("ours, compiled, with augmentation", best),
    )  # fmt: skip
    turns(results, {"ours, checkpointing": lambda: ours(gradient_checkpointing=True)}, batch, flops, passes=1)


def finetune(results: Results) -> None:
    """A step of fine-tuning at batch 16 in half precision below a cap of 15 GB, as a T4 leaves to a program."""
    config, batch = config_of(num_labels=5), 4 if TOY else 16
    if not TOY:
        torch.cuda.set_per_process_memory_fraction(CAP_GB * GB / torch.cuda.get_device_properties(0).total_memory)
    pixels = pretraining.normalised(batch, config.image_size, DEVICE)
    labels = torch.randint(0, 5, (batch,), device=DEVICE)
    inputs = {"pixel_values": pixels, "labels": labels}
    half = {} if TOY else {"bf16": False, "fp16": True}

    def train(build: Callable[[], torch.nn.Module]) -> Callable[[], peers.Step]:
        return lambda: peers.trainer_step(build(), inputs, results.folder / "trainer", **half)

    def ours(method: str, checkpointing: bool = False) -> Callable[[], peers.Step]:
        return train(lambda: finetune_memory.build(method, checkpointing, config_of))

    speeds = turns(
        results,
        {
            "official": lambda: peers.official_finetuning(config, pixels, labels),
            "stock Trainer, full": train(lambda: peers.stock_classifier(config).train()),
            "ours, full": ours("full"),
            "ours, LoRA": ours("lora"),
            "ours, full, checkpointing": ours("full", True),
            "ours, LoRA, checkpointing": ours("lora", True),
        },
        batch,
    )
    for name, speed in speeds.items():
        results.say(f"1,000 images x 50 epochs, {name}", minutes=round(50_000 / speed / 60, 1), how="steps alone")
    full, lora = ("ours, full", "official"), ("ours, LoRA", "official")
    ratios(results, speeds, full_against_official=full, lora_against_official=lora)


def embed(results: Results) -> None:
    """Feature vectors of batches that lie on the device."""
    config, batch = config_of(), 4 if TOY else 128
    pixels = pretraining.normalised(batch, config.image_size, DEVICE)

    def run(network: torch.nn.Module, x: Tensor, dtype: torch.dtype | None) -> peers.Step:
        network.eval()

        @torch.inference_mode()
        def step() -> Any:
            with torch.autocast(DEVICE, dtype or HALF, enabled=dtype is not None):
                return network(x)

        return step

    speeds = turns(results, {
        "timm, half": lambda: run(peers.timm_encoder(config), pixels, HALF),
        "ours, half": lambda: run(RetFoundModel(config), pixels, HALF),
        "ours, bfloat16": lambda: run(RetFoundModel(config), pixels, torch.bfloat16),
    }, batch)  # fmt: skip
    one = turns(results, {"ours, one at a time, float32": lambda: run(RetFoundModel(config), pixels[:1], None)}, 1)
    ratios(
        results, {**speeds, **one}, against_timm=("ours, half", "timm, half"),
        against_one_at_a_time=("ours, half", "ours, one at a time, float32"),
    )  # fmt: skip


def loop(results: Results) -> None:
    """The commands from files: shards, pretraining from them, the linear method."""
    if importlib.util.find_spec("datasets") is None:
        results.say("skipped", reason="the package datasets is not installed; pass WHEELS")
        return
    count, steps, batch = (24, 3, 4) if TOY else (4096, 60, 256)
    cores = len(os.sched_getaffinity(0))
    work = results.folder / f"work-{time.time_ns()}"
    shards = pretraining.shards_of(pretraining.draw_folder(work / "images", count), work / "shards")
    network = work / "network"
    RetFoundForPreTraining(config_of()).save_pretrained(network)

    def command(name: str, *words: str) -> float:
        began = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "retfound_hf.cli", *words], capture_output=True, text=True)
        seconds = time.perf_counter() - began
        wrong = {} if done.returncode == 0 else {"error": (done.stderr or done.stdout)[-400:]}
        results.say(name, seconds=round(seconds, 1), **wrong)
        return seconds

    quick = ["--torch_compile", "--bf16"] if not TOY else []
    command(
        "pretrain", "pretrain", "--model_name_or_path", str(network), "--modality", "cfp", "--train_data", str(shards),
        "--output_dir", str(work / "run"), "--max_steps", str(steps), "--logging_steps", "1" if TOY else "10",
        "--per_device_train_batch_size", str(batch), "--dataloader_num_workers", str(min(cores, 1 if TOY else 16)),
        "--preview_steps", "0", "--save_steps", "0", "--cache_dir", str(work / "cache"), *quick,
    )  # fmt: skip
    log = work / "run" / "metrics.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    if len(lines) > 1:
        speed = statistics.median(line["images_per_second"] for line in lines[1:])
        waiting = statistics.median(line["data_wait_fraction"] for line in lines[1:])
        results.say("pretrain, its own log", images_per_second=speed, data_wait_fraction=waiting, cores=cores)
    labelled = 24 if TOY else 1000
    rows = "".join(f"images/any/{n:05d}.jpg,{'ab'[n % 2]},{n}\n" for n in range(labelled))
    (work / "table.csv").write_text("image,label,patient_id\n" + rows)
    command(
        f"linear method, {labelled} images", "finetune", "--model_name_or_path", str(network), "--method", "linear",
        "--data", str(work / "table.csv"), "--output_dir", str(work / "linear"), "--cache_dir", str(work / "cache"),
        *([] if TOY else ["--fp16"]),
    )  # fmt: skip


def objectives(results: Results) -> None:
    """Steps of the other objectives against lightly's modules: 1.3x."""
    with_lightly = importlib.util.find_spec("lightly") is not None
    config, batch = config_of(), 4 if TOY else 32
    images = pretraining.random_images(batch, DEVICE)
    for name in ("simclr",) if TOY else ("dino", "moco_v3", "simclr", "swav"):  # the published heads are no toys
        draw = pretraining.make_objective(config, name).draw
        views = [pretraining.normalised(batch, view.size, DEVICE) for view in draw.views]

        def ours(name: str = name) -> peers.Step:
            objective = pretraining.make_objective(config, name)
            return pretraining.pretraining_step(objective, images, False, "no" if TOY else "bf16")

        def lightly(name: str = name, views: list[Tensor] = views) -> peers.Step:
            return peers.lightly_step(name, config, views[:2], views[2:])

        ways: Ways = {f"{name}, ours": ours} | ({f"{name}, lightly": lightly} if with_lightly else {})
        speeds = turns(results, ways, batch, passes=1)
        ratios(results, speeds, **{f"{name}, against lightly": (f"{name}, ours", f"{name}, lightly")})


def maps(results: Results) -> None:
    """A relevance map against a forward and backward pass of the same image: at most 3 of them."""
    from retfound_hf.explanation.relevance import relevance

    classifier = RetFoundForImageClassification(config_of(num_labels=5)).to(DEVICE).eval()
    x = pretraining.normalised(1, classifier.config.image_size, DEVICE)
    ways = {
        "passes": lambda: classifier(x).logits[0, 1].backward(),
        "map": lambda: relevance(classifier, x, 1, "relevance"),
    }
    times = peers.alternate(ways, ROUNDS, WARMUP, DEVICE)
    results.say("relevance map", passes=peers.ratio(times, "map", "passes"))


STEPS = {step.__name__: step for step in (correct, mae, finetune, loop, embed, objectives, maps)}


def main() -> None:
    parser = argparse.ArgumentParser(description="One step of the figures that need a GPU.")
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--output_dir", required=True, type=Path, help="folder of results.jsonl, which grows")
    arguments = parser.parse_args()
    results = Results(arguments.step, arguments.output_dir)
    machine = "toy" if TOY else torch.cuda.get_device_name(0)
    results.say("machine", machine=machine, versions=versions(), git_revision=git_revision())
    torch.manual_seed(0)
    np.random.seed(0)
    STEPS[arguments.step](results)


if __name__ == "__main__":
    main()
