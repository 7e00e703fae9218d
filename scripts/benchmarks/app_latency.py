"""Time that a visitor of the web page waits, with ViT-L on the cores of this machine.

    python scripts/benchmarks/app_latency.py --out scripts/benchmarks/results/app_latency.json

A classifier of the official size with random weights is made on the spot and served by `scripts/app.py` in a process
of its own. A client uploads synthetic fundus photographs of a camera's size, each another one, and waits for the
probabilities and for the relevance map. The numbers hold the whole way: upload, reading, quality, model, HTML.

Two are recorded: the seconds that the client waits, which depend on what else the machine does, and the processor
seconds that the server spends, which on one thread are what the client waits for on an idle core.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client, handle_file
from PIL import Image

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.files import write_json
from retfound_hf.images.synthetic import CFP_CLASSES, draw_patient, render
from retfound_hf.record import git_revision, versions

APP = Path(__file__).parents[1] / "app.py"
CAMERA = (2464, 1632)


def make_model(folder: Path) -> None:
    config = RetFoundConfig.from_preset("retfound-cfp", id2label=dict(enumerate(CFP_CLASSES)))
    torch.manual_seed(0)
    RetFoundForImageClassification(config).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(config.image_size).save_pretrained(folder)


def make_photographs(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{number}.jpg" for number in range(count)]
    for number, path in enumerate(paths):
        rng = np.random.default_rng(number)
        pixels = render(draw_patient(rng, "cfp")[0], CFP_CLASSES[number % 3], 0.8, 512, rng).image
        Image.fromarray(pixels).resize(CAMERA, Image.Resampling.BICUBIC).save(path, quality=92)
    return paths


def serve(model: Path, cores: int, port: int) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": str(cores), "HF_HUB_OFFLINE": "1"}
    words = [sys.executable, str(APP), "--model", str(model), "--port", str(port)]
    process = subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.sched_setaffinity(process.pid, set(sorted(os.sched_getaffinity(0))[:cores]))
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}", timeout=5)
            return process
        except OSError:
            time.sleep(0.25)
    raise SystemExit("the page did not start")


def processor_seconds(process: subprocess.Popen) -> float:
    """User and system time of the server so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def visits(client: Client, paths: list[Path], process: subprocess.Popen) -> dict[str, dict[str, list[float]]]:
    """Waits and processor seconds of each photograph: to its probabilities, and from these to the relevance map."""
    found = {name: {"waited": [], "processor": []} for name in ("answer", "relevance")}

    def timed(name: str, *words: object) -> object:
        started, spent = time.perf_counter(), processor_seconds(process)
        result = client.predict(*words, api_name={"answer": "/answer", "relevance": "/explain"}[name])
        found[name]["waited"].append(time.perf_counter() - started)
        found[name]["processor"].append(processor_seconds(process) - spent)
        return result

    for path in paths:
        timed("answer", handle_file(path))
        assert "rf-heat" in str(timed("relevance", CFP_CLASSES[0]))
    return found


def summary(found: dict[str, dict[str, list[float]]]) -> dict[str, dict[str, float]]:
    """Medians, in seconds."""
    return {
        name: {kind: round(statistics.median(seconds), 2) for kind, seconds in kinds.items()}
        for name, kinds in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Waiting times of the web page with ViT-L.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--images", type=int, default=5)
    parser.add_argument("--port", type=int, default=7899)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        paths = make_photographs(folder, arguments.images)
        process = serve(folder / "model", arguments.cores, arguments.port)
        try:
            client = Client(f"http://127.0.0.1:{arguments.port}", verbose=False)
            first = visits(client, paths[:1], process)
            later = visits(client, paths[1:], process)
        finally:
            process.terminate()
    result = {
        "what": f"ViT-L/16 with random weights, photographs of {CAMERA[0]} x {CAMERA[1]} as JPEG, one after the other",
        "unit": "seconds, median",
        "first_after_start": summary(first),
        "later": summary(later),
        "threads": arguments.cores,
        "load_average_meanwhile": [round(load, 1) for load in os.getloadavg()],
        "machine": platform.machine(),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    write_json(arguments.out, result)
    print(result["first_after_start"], result["later"])


if __name__ == "__main__":
    main()
