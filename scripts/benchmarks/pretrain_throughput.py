"""Speed of pretraining against its peers: the step, the loop around it, the loader, and the other objectives.

    OMP_WAIT_POLICY=passive python scripts/benchmarks/pretrain_throughput.py \
        --output_file scripts/benchmarks/results/pretrain_throughput.json

Five questions, each also by itself (`--questions step`): the step of masked autoencoding on the code path of
`pretrain` against the released code and stock classes; the loop from shards against that step alone; a batch from
encoded images against `ImageFolder`; the steps of the other objectives against lightly's modules; the command in one
process against as many as there are cores, by `torchrun`. All ways of a question take turns, in one process
but for the last; the record holds medians and ratios (above 1: faster than the peer). Without a GPU the preset is the
small one in float32, for each number of `--threads`.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import peers
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

import retfound_hf as rf
from retfound_hf import RetFoundConfig, RetFoundForPreTraining, RetFoundModel
from retfound_hf.images.synthetic import draw_patient, render
from retfound_hf.pretraining.arguments import PretrainingArguments
from retfound_hf.pretraining.data import ImageReader, MicroBatch, MicroBatches, open_shards, step_generator
from retfound_hf.pretraining.loop import gradient_norm, guarded_step, make_optimizer
from retfound_hf.pretraining.objectives import OBJECTIVES
from retfound_hf.pretraining.objectives.base import Objective
from retfound_hf.pretraining.pretrain import save_memory_and_compile
from retfound_hf.processes import usable_cores

SCRIPTS = Path(__file__).resolve().parents[1]
SIDE = 256
DIFFERENT = 32


def make_objective(config: RetFoundConfig, name: str = "mae") -> Objective:
    """An objective on a network from random weights, with the published heads and crops."""
    network: PreTrainedModel = RetFoundForPreTraining(config) if name == "mae" else RetFoundModel(config)
    kind = OBJECTIVES[name]
    options = kind.Options() if name == "mae" else kind.Options(views="published")
    return kind(network.train(), SIDE, options)


def flops_per_image(config: RetFoundConfig) -> float:
    """Of a training step, forward and backward, counted on two images."""
    objective = make_objective(config)
    images = torch.zeros(2, 3, SIDE, SIDE, dtype=torch.uint8)
    views = objective.views(images, objective.draw(2, step_generator(0, 0)))
    with FlopCounterMode(display=False) as counter:
        objective(views)[0].backward()
    return counter.get_total_flops() / 2


def pretraining_step(
    objective: Objective, images: Tensor, augment: bool, precision: str = "no", **options: Any
) -> peers.Step:
    """A step of `pretrain` on a batch of uint8 images that lie on the device already.

    Args:
        augment: make the views at every step, as `pretrain` does; else once.
        precision: of Accelerate.
        options: of `PretrainingArguments`, such as `torch_compile`.
    """
    accelerator = Accelerator(mixed_precision=precision, cpu=images.device.type == "cpu")
    save_memory_and_compile(objective, PretrainingArguments("unused", **options))
    network, optimizer = accelerator.prepare(objective, make_optimizer(objective, 1e-4, 0.05, (0.9, 0.95)))
    network.train()
    draws = {
        name: value.to(images.device) for name, value in objective.draw(len(images), step_generator(0, 0)).items()
    }

    @torch.no_grad()
    def views() -> dict[str, Tensor]:
        return objective.views(images, draws)

    ready = None if augment else views()

    def step() -> Tensor:
        objective.before_step(0.0, 0.0)
        loss, _ = network(views() if ready is None else ready)
        accelerator.backward(loss)
        for parameter in objective.frozen_parameters(0.0):
            parameter.grad = None
        guarded_step(accelerator, optimizer, gradient_norm(accelerator, network, 0.0).isfinite())
        optimizer.zero_grad()
        objective.after_step(0.0)
        return loss.detach()

    return step


def random_images(batch: int, device: str) -> Tensor:
    return torch.randint(0, 256, (batch, 3, SIDE, SIDE), dtype=torch.uint8, device=device)


def normalised(batch: int, size: int, device: str) -> Tensor:
    return torch.randn(batch, 3, size, size, device=device)


def ask_step(config: RetFoundConfig, batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """The step on views that are ready; Trainer's clips and has a schedule, the others do not."""
    pixels, images = normalised(batch, config.image_size, "cpu"), random_images(batch, "cpu")
    stock = partial(peers.stock_autoencoder, config)
    ways = {
        "official": peers.official_pretraining(config, pixels),
        "stock_trainer": peers.trainer_step(stock(), {"pixel_values": pixels}, work / "trainer"),
        "ours": pretraining_step(make_objective(config), images, augment=False),
        "ours_with_augmentation": pretraining_step(make_objective(config), images, augment=True),
    }
    times = peers.alternate(ways, rounds)
    return {
        "batch": batch,
        "times": times,
        "against_official": peers.both(times, "official", "ours"),
        "against_stock": peers.both(times, "stock_trainer", "ours"),
        "augmentation_share": round(
            1 - times["ours"]["cpu_seconds"] / times["ours_with_augmentation"]["cpu_seconds"], 3
        ),
    }


def draw_folder(folder: Path, count: int) -> Path:
    """`count` JPEGs of 256 x 256 pixels, copies of a few synthetic photographs, as a folder of one class."""
    rng, encoded = np.random.default_rng(0), []
    (folder / "any").mkdir(parents=True)
    for number in range(count):
        path = folder / "any" / f"{number:05d}.jpg"
        if number < DIFFERENT:
            pixels = render(draw_patient(rng, "cfp")[number % 2], "normal", 0.0, 400, rng).image
            Image.fromarray(pixels).resize((SIDE, SIDE)).save(path, quality=95, subsampling=0)
            encoded.append(path.read_bytes())
        else:
            path.write_bytes(encoded[number % DIFFERENT])
    return folder


def shards_of(folder: Path, target: Path) -> Path:
    """The same files as a shard."""
    import datasets

    files = sorted(folder.rglob("*.jpg"))
    rows = {
        "image": [{"bytes": file.read_bytes(), "path": None} for file in files],
        "id": [file.name for file in files],
    }
    target.mkdir()
    table = datasets.Dataset.from_dict(rows).cast_column("image", datasets.Image(decode=False))
    table.to_parquet(target / "train-00000.parquet")
    return target


def ask_loader(config: RetFoundConfig, batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """Encoded images to a training batch, all in this process.

    `decoded` is what a process of our loader does where the device augments: beside a GPU.
    """
    folder = draw_folder(work / "images", 4 * batch)
    objective = make_objective(config)
    table = open_shards([str(shards_of(folder, work / "shards"))], str(work / "cache"))
    loader = MicroBatches(ImageReader(table), objective.draw, batch, 0)
    theirs, order, number = peers.image_folder_batches(folder, batch), np.random.default_rng(0), 0

    def decoded() -> Any:
        nonlocal number
        number += 1
        return loader[MicroBatch(tuple(order.permutation(len(table))[:batch].tolist()), number, 0)]

    def ours() -> Any:
        item = decoded()
        return objective.views(item["images"], item["draws"])

    times = peers.alternate({"image_folder": lambda: next(theirs), "ours": ours, "decoded": decoded}, rounds)
    return {
        "batch": batch,
        "times": times,
        "images_per_second": {name: round(batch / row["seconds"], 1) for name, row in times.items()},
        "with_augmentation": peers.both(times, "image_folder", "ours"),
        "without": peers.both(times, "image_folder", "decoded"),
    }


def ask_loop(config: RetFoundConfig, batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """`pretrain` from shards, decoding in its own process, against the step on views that are ready.

    A step of the loop is the difference of a long and a short run, which leaves out their start and their end.
    """
    shards = shards_of(draw_folder(work / "loop-images", 8 * batch), work / "loop-shards")
    network = work / "network"
    RetFoundForPreTraining(config).save_pretrained(network)
    step = pretraining_step(make_objective(config), random_images(batch, "cpu"), augment=False)

    def run(steps: int) -> None:
        rf.pretrain(
            shards, work / "run", overwrite_output_dir=True, model_name_or_path=str(network), modality="cfp",
            max_steps=steps, per_device_train_batch_size=batch, dataloader_num_workers=0, preview_steps=0,
            save_steps=0, cache_dir=str(work / "cache"),
        )  # fmt: skip

    ways = {"short": lambda: run(2), "long": lambda: run(2 + rounds), "bare": lambda: [step() for _ in range(rounds)]}
    times = peers.alternate(ways, 3, warmup=0)
    spent: dict[str, dict[str, float]] = {"loop": {}, "bare": {}}
    for of in ("seconds", "cpu_seconds"):
        spent["loop"][of] = (times["long"][of] - times["short"][of]) / rounds
        spent["bare"][of] = times["bare"][of] / rounds
    return {"batch": batch, "times": times, "a_step": spent, "of_the_bare_step": peers.both(spent, "bare", "loop")}


def ask_objectives(config: RetFoundConfig, batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """Steps on views that are ready, and the making of views, with the published heads, crops and views."""
    images, rows = random_images(batch, "cpu"), {}
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    for name in sorted(OBJECTIVES.keys() - {"mae"}):
        objective = make_objective(config, name)
        sizes = [view.size for view in objective.draw.views]
        pixels = [normalised(batch, size, "cpu") for size in sizes]
        transform = peers.lightly_transform(name)
        draws = objective.draw(batch, step_generator(0, 0))
        with torch.no_grad():
            views = peers.alternate(
                {
                    "lightly": lambda transform=transform: [transform(picture) for picture in pictures],
                    "ours": partial(objective.views, images, draws),
                },
                rounds,
            )
        ways = {
            "lightly": peers.lightly_step(name, config, pixels[:2], pixels[2:]),
            "ours": pretraining_step(objective, images, augment=False),
        }
        step = peers.alternate(ways, rounds)
        rows[name] = {
            "views_of_an_image": len(sizes),
            "step": step,
            "step_ratio": peers.both(step, "lightly", "ours"),
            "views": views,
            "views_ratio": peers.both(views, "lightly", "ours"),
        }
        del ways, objective
        gc.collect()
    return {"batch": batch, "objectives": rows}


def ask_processes(config: RetFoundConfig, batch: int, rounds: int, work: Path) -> dict[str, Any]:
    """Images per second of the command on one core and on all, at `batch` images a process."""
    shards = shards_of(draw_folder(work / "images", 8 * batch), work / "shards")
    network, threads, cores = work / "network", torch.get_num_threads(), usable_cores()
    RetFoundForPreTraining(config).save_pretrained(network)
    speeds: dict[int, list[float]] = {count: [] for count in sorted({1, cores // threads})}
    for count in list(speeds) * rounds:
        out = work / f"run-{count}"
        run = [
            sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", count,
            SCRIPTS / "pretrain.py", "--train_data", shards, "--output_dir", out, "--overwrite_output_dir",
            "--model_name_or_path", network, "--modality", "cfp", "--max_steps", 12, "--logging_steps", 2,
            "--per_device_train_batch_size", batch, "--dataloader_num_workers", 0, "--preview_steps", 0,
            "--save_steps", 0, "--cache_dir", work / "cache",
        ]  # fmt: skip
        env = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
        subprocess.run([str(word) for word in run], check=True, env=env)
        if json.loads((out / "run.json").read_text())["num_processes"] != count:
            raise RuntimeError(f"the command did not run in {count} processes")
        lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        speeds[count] += [line["images_per_second"] for line in lines if "loss" in line][1:]  # the first step is slow
    medians = {count: round(median(found), 1) for count, found in speeds.items()}
    ratio = {"all_against_one": round(medians[max(medians)] / medians[1], 3)} if len(medians) > 1 else {}
    return {"batch_of_a_process": batch, "images_per_second_by_processes": medians, **ratio}


# Batch and rounds that take about a minute each on a processor.
QUESTIONS: dict[str, tuple[Callable[..., dict[str, Any]], int, int]] = {
    "step": (ask_step, 32, 9),
    "loader": (ask_loader, 64, 9),
    "loop": (ask_loop, 32, 4),
    "objectives": (ask_objectives, 8, 5),
    "processes": (ask_processes, 16, 2),
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed of pretraining against its peers, on a CPU.")
    parser.add_argument("--output_file", required=True, type=Path, help="JSON file; other questions in it are kept")
    parser.add_argument("--questions", nargs="+", default=list(QUESTIONS), choices=list(QUESTIONS))
    parser.add_argument("--preset", default="retfound-tiny")
    parser.add_argument("--threads", nargs="+", type=int, default=[2, 1])
    parser.add_argument("--batch_size", type=int, default=None, help="default: by question")
    parser.add_argument("--rounds", type=int, default=None, help="default: by question")
    arguments = parser.parse_args()
    config = RetFoundConfig.from_preset(arguments.preset, modality="cfp")
    path = arguments.output_file
    kept = json.loads(path.read_text()) if path.exists() else {}
    found = {name: kept[name] for name in QUESTIONS if name in kept}
    flops = round(flops_per_image(config) / 1e9, 2)
    for name in arguments.questions:
        ask, batch, rounds = QUESTIONS[name]
        found.setdefault(name, {})
        for threads in arguments.threads:
            torch.set_num_threads(threads)
            torch.manual_seed(0)
            np.random.seed(0)
            with tempfile.TemporaryDirectory() as work:
                answer = ask(config, arguments.batch_size or batch, arguments.rounds or rounds, Path(work))
            found[name][f"{threads} thread{'s' * (threads > 1)}"] = answer
            facts = {"gflop_per_image": flops, **found}
            what = f"pretraining, {arguments.preset}, float32 on a CPU, images of {SIDE} pixels"
            peers.write_record(path, what, **facts)  # at once: a run may be cut off
            print(name, threads, {key: value for key, value in answer.items() if key != "times"}, flush=True)


if __name__ == "__main__":
    main()
