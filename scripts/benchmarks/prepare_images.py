"""Speed and memory of `prepare_images` on synthetic photographs and B-scans of usual sizes.

    python scripts/benchmarks/prepare_images.py --out scripts/benchmarks/results/prepare_images.json [--only PART ...]

Speed is the difference of two runs of the command over two numbers of images, which leaves out the start of its
processes; that is measured by six images. The work on an image is compared with a plain loop of Pillow that opens,
crops to the central square, resizes and saves photographs of 4 megapixels, by turns on one core. Memory is that of all
processes of the command together, sampled while it runs, at two numbers of small images.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peers import alternate, ratio
from PIL import Image

from retfound_hf.data.image_cache import Preparer
from retfound_hf.files import write_json
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.reading import read_image, resize
from retfound_hf.images.synthetic import CLASSES, draw_patient, render
from retfound_hf.processes import usable_cores
from retfound_hf.record import git_revision, versions

SCRIPT = Path(__file__).parents[1] / "prepare_images.py"
# RETFound's pretraining sets (Zhou et al. 2023), and the cores that the projection is for.
PAPER_IMAGES = {"cfp": 904_170, "oct": 736_442}
CORES = 8
DIFFERENT = 8


def make_images(folder: Path, modality: str, count: int, height: int = 1536) -> Path:
    """`count` files, copies of a few: CFP JPEG, 4 to 3 (quality 92), or OCT PNG of 512 x 496."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    files = []
    for number in range(DIFFERENT):
        eye = draw_patient(rng, modality)[number % 2]
        condition = CLASSES[modality][number % 3]
        image = Image.fromarray(render(eye, condition, 0.5, height if modality == "cfp" else 496, rng).image)
        path = folder / f"{number:06d}.{'jpg' if modality == 'cfp' else 'png'}"
        if modality == "cfp":
            image.save(path, quality=92)
        else:
            image.crop((74, 0, 74 + 512, 496)).convert("L").save(path)
        files.append(path)
    for number in range(DIFFERENT, count):
        original = files[number % DIFFERENT]
        shutil.copy(original, folder / f"{number:06d}{original.suffix}")
    return folder


def make_small(folder: Path, count: int) -> Path:
    """`count` JPEGs of 96 x 96 pixels in folders of a hundred."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(pixels).resize((96, 96))
    for number in range(count):
        path = folder / f"{number // 100:04d}" / f"{number:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        image.save(path)
    return folder


def prepare(source: Path, out: Path, *options: str) -> float:
    """Run the command; its seconds."""
    started = time.perf_counter()
    subprocess.run(_command(source, out, *options), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def memory_over_time(source: Path, out: Path, *options: str) -> list[float]:
    """Run the command; resident MB of its processes, sampled until it ends. Pages that they share count in each."""
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    run = subprocess.Popen(_command(source, out, *options), start_new_session=True, **quiet)
    sums = []
    while run.poll() is None:
        total = 0
        for process in _session(run.pid):
            try:
                total += int((process / "statm").read_text().split()[1])
            except (OSError, IndexError):  # it has ended
                continue
        sums.append(total * os.sysconf("SC_PAGE_SIZE") / 2**20)
        time.sleep(0.1)
    if run.returncode:
        raise RuntimeError(f"prepare_images ended with status {run.returncode}")
    return sums


def _command(source: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPT), str(source), str(out), *options]


def _session(leader: int) -> list[Path]:
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            session = stat.read_text().rpartition(")")[2].split()[3]
        except OSError:
            continue
        if int(session) == leader:
            found.append(stat.parent)
    return found


def speed(folder: Path, modality: str, few: int, many: int) -> dict[str, Any]:
    """Images per second of the command, per core, and what the paper's set would take."""
    workers = usable_cores()
    options = ("--modality", modality, "--num_workers", str(workers))
    seconds = []
    for count in (few, many):
        source = make_images(folder / f"{modality}-{count}", modality, count)
        seconds.append(prepare(source, folder / f"{modality}-{count}-shards", *options))
    rate = (many - few) / (seconds[1] - seconds[0])
    return {
        "modality": modality,
        "images": [few, many],
        "seconds": [round(value, 1) for value in seconds],
        "num_workers": workers,
        "images_per_second": round(rate, 1),
        "images_per_second_per_core": round(rate / workers, 1),
        **projection(modality, workers / rate),
    }


def projection(modality: str, seconds: float) -> dict[str, float]:
    """Hours for the paper's set on 8 cores, by arithmetic from the seconds that one core takes for an image."""
    images = PAPER_IMAGES[modality]
    return {f"projected_hours_{images}_{modality}_{CORES}_cores": round(images * seconds / CORES / 3600, 2)}


def processor_time(cfp: Path, oct_: Path) -> dict[str, float]:
    """Milliseconds of processor time an image, which other work on the machine does not lengthen.

    For CFP also with the JPEG decoded in full, and how much the prepared images then differ.
    """
    torch.set_num_threads(1)

    def in_full(path: str) -> Image.Image:
        return resize(crop_field_of_view(read_image(path)), {"height": 256, "width": 256})

    def timed(function: Callable[[str], Any], folder: Path) -> tuple[float, list[Any]]:
        paths = [str(path) for path in sorted(folder.iterdir())[:DIFFERENT]]
        results = [function(path) for path in paths]
        began = time.process_time()
        for path in 4 * paths:
            function(path)
        return round(1000 * (time.process_time() - began) / (4 * len(paths)), 1), results

    photograph, scan = Preparer(256, True, 64), Preparer(256, False, 64)
    full_ms, full = timed(in_full, cfp)
    reduced_ms, reduced = timed(photograph.prepare, cfp)
    errors = [np.mean((np.asarray(a, float) - np.asarray(b, float)) ** 2) for a, b in zip(full, reduced, strict=True)]
    psnr = 10 * np.log10(255**2 / np.asarray(errors))
    cfp_ms, oct_ms = timed(photograph, cfp)[0], timed(scan, oct_)[0]
    return {
        "cfp_ms": cfp_ms,
        "oct_ms": oct_ms,
        **projection("cfp", cfp_ms / 1000),
        **projection("oct", oct_ms / 1000),
        "cfp_not_encoded_ms": reduced_ms,
        "cfp_not_encoded_decoded_in_full_ms": full_ms,
        "reduced_against_full_decoding_psnr_db_median": round(float(np.median(psnr)), 1),
        "reduced_against_full_decoding_psnr_db_min": round(float(psnr.min()), 1),
    }


def with_pillow(path: str) -> bytes:
    """A photograph as a plain loop prepares it: opened, cropped to its central square, resized and saved."""
    image, encoded = Image.open(path).convert("RGB"), BytesIO()
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    square.resize((256, 256), Image.Resampling.BICUBIC).save(encoded, "JPEG", quality=95)
    return encoded.getvalue()


def against_pillow(folder: Path) -> dict[str, Any]:
    """This package's work on a photograph of 2304 x 1728 pixels against the plain loop's, in processor time."""
    torch.set_num_threads(1)
    paths = [str(path) for path in sorted(make_images(folder / "photographs", "cfp", DIFFERENT, 1728).iterdir())]
    preparer = Preparer(256, True, 64)
    ways = {"pillow": lambda: list(map(with_pillow, paths)), "retfound_hf": lambda: list(map(preparer, paths))}
    times = alternate(ways, rounds=9)
    milliseconds = {name: round(1000 * time["cpu_seconds"] / len(paths), 1) for name, time in times.items()}
    return {"milliseconds": milliseconds, "times_as_fast": ratio(times, "pillow", "retfound_hf", "cpu_seconds")}


def start_up(folder: Path, runs: int = 3) -> dict[str, Any]:
    """Seconds of the command on six small photographs, nearly all of it the start of its processes."""
    source = make_small(folder / "six", 6)
    options = ("--modality", "cfp", "--num_workers", "2")
    seconds = [prepare(source, folder / f"six-shards-{number}", *options) for number in range(runs)]
    imported = [sys.executable, "-c", "import torch"]
    alone = []
    for _ in range(runs):
        began = time.perf_counter()
        subprocess.run(imported, check=True)
        alone.append(time.perf_counter() - began)
    return {
        "seconds": round(statistics.median(seconds), 2),
        "import_torch_seconds": round(statistics.median(alone), 2),
    }


def memory(folder: Path, few: int, many: int) -> dict[str, Any]:
    """Peak memory at two numbers of small images, and the bytes that each image more costs."""
    peaks = []
    for count in (few, many):
        source = make_small(folder / f"small-{count}", count)
        options = ("--modality", "oct", "--num_workers", "2", "--shard_size", "500")
        peaks.append(max(memory_over_time(source, folder / f"small-{count}-shards", *options)))
    return {
        "images": [few, many],
        "peak_rss_mb_of_all_processes": [round(peak, 1) for peak in peaks],
        "bytes_for_each_image_more": round((peaks[1] - peaks[0]) * 2**20 / (many - few)),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="Speed and memory of prepare_images.")
    parser.add_argument("--out", required=True, help="JSON file to write")
    parser.add_argument("--only", nargs="+", help="of speed, processor_time, pillow, start_up, memory; all by default")
    arguments = parser.parse_args()
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Any]] = {
            "speed": lambda: [speed(folder, "cfp", 200, 1000), speed(folder, "oct", 500, 4500)],
            "processor_time": lambda: processor_time(
                make_images(folder / "cfp", "cfp", DIFFERENT), make_images(folder / "oct", "oct", DIFFERENT)
            ),
            "pillow": lambda: against_pillow(folder),
            "start_up": lambda: start_up(folder),
            "memory": lambda: memory(folder, 1000, 8000),
        }
        found = {name: part() for name, part in parts.items() if name in (arguments.only or parts)}
        result = {
            "what": "prepare_images to 256 x 256 JPEG; CFP JPEG 2048 x 1536, OCT PNG 512 x 496, synthetic",
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "load_of_other_work": round(load, 2),
            "versions": versions(),
            "git_revision": git_revision(),
            **found,
        }
    write_json(arguments.out, result)
    print(*found.items(), sep="\n")


if __name__ == "__main__":
    main()
