"""How long a visitor of the web page waits, with ViT-L on the cores of this machine.

    python scripts/benchmarks/app_latency.py --out scripts/benchmarks/results/app_latency.json

A classifier of the official size with random weights is made on the spot and served by `scripts/app.py` in a process
of its own. A client uploads synthetic fundus photographs of a camera's size, each another one, and waits for the
probabilities and for the relevance map; then again while a batch runs. The numbers hold the whole way: upload,
reading, quality, model, HTML.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

import numpy as np
import torch
from gradio_client import Client, handle_file
from PIL import Image

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundImageProcessor
from retfound_hf.images.synthetic import CFP_CLASSES, draw_patient, render
from retfound_hf.runs.files import write_json
from retfound_hf.runs.record import git_revision, versions

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


def visits(client: Client, paths: list[Path]) -> dict[str, list[float]]:
    """Seconds from sending a photograph to its probabilities, and from these to the relevance map."""
    found: dict[str, list[float]] = {"answer": [], "relevance": []}
    for path in paths:
        started = time.perf_counter()
        client.predict(handle_file(path), api_name="/answer")
        answered = time.perf_counter()
        html = client.predict(CFP_CLASSES[0], api_name="/explain")
        assert "rf-heat" in html
        found["answer"].append(answered - started)
        found["relevance"].append(time.perf_counter() - answered)
    return found


def summary(seconds: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {"median": round(statistics.median(values), 2), "slowest": round(max(values), 2)}
        for name, values in seconds.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Waiting times of the web page with ViT-L.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--port", type=int, default=7899)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_model(folder / "model")
        paths = make_photographs(folder, arguments.images)
        process = serve(folder / "model", arguments.cores, arguments.port)
        try:
            address = f"http://127.0.0.1:{arguments.port}"
            client, other = Client(address, verbose=False), Client(address, verbose=False)
            first = visits(client, paths[:1])
            alone = visits(client, paths[1:])
            started = time.perf_counter()
            files = [handle_file(path) for path in paths * 4]
            batch = threading.Thread(target=other.predict, args=(files,), kwargs={"api_name": "/classify_all"})
            batch.start()
            time.sleep(2)
            beside = visits(client, paths[:4])
            ran_beside = batch.is_alive()
            batch.join()
            batch_seconds = time.perf_counter() - started
        finally:
            process.terminate()
    result = {
        "what": f"ViT-L/16 with random weights, photographs of {CAMERA[0]} x {CAMERA[1]} as JPEG, one after the other",
        "unit": "seconds as a client measures them",
        "first_after_start": summary(first),
        "page_alone": summary(alone),
        "while_a_batch_runs": {**summary(beside), "batch_ran_to_the_end_of_it": ran_beside},
        "batch": {"images": len(files), "images_per_second_with_the_visits": round(len(files) / batch_seconds, 2)},
        "cores": arguments.cores,
        "machine": platform.machine(),
        "versions": versions(),
        "git_revision": git_revision(),
    }
    write_json(arguments.out, result)
    print({name: result[name] for name in ("first_after_start", "page_alone", "while_a_batch_runs", "batch")})


if __name__ == "__main__":
    main()
