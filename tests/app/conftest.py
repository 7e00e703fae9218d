"""Small model folders, images, and the page in this process or in one of its own."""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import save_autoencoder, save_classifier

from retfound_hf.app.predictor import Reader
from retfound_hf.app.server import serve
from retfound_hf.app.uploads import Upload
from retfound_hf.images.synthetic import draw_patient, render

ROOT = Path(__file__).parents[2]
CLASSES = ("normal", "retinopathy", "glaucoma")
SIZES = {"image_size": 64, "modality": "cfp"}
CARD = """---
license: cc-by-nc-4.0
---

# A classifier

## Intended use and limits

For research on **synthetic** photographs alone.

## Provenance

Made in a test.
"""


@pytest.fixture(scope="session")
def make_folder(tmp_path_factory) -> Callable[..., Path]:
    """Makes classifier folders with random weights and a card; keyword arguments go to the configuration."""

    def make(**options) -> Path:
        folder = save_classifier(tmp_path_factory.mktemp("models") / "classifier", CLASSES, **{**SIZES, **options})
        (folder / "README.md").write_text(CARD)
        return folder

    return make


@pytest.fixture(scope="session")
def classifier_folder(make_folder) -> Path:
    return make_folder()


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory) -> Path:
    return save_autoencoder(tmp_path_factory.mktemp("models") / "autoencoder", **SIZES)


@pytest.fixture(scope="session")
def reader(classifier_folder) -> Reader:
    return Reader(str(classifier_folder))


def draw(number: int = 0, size: int = 256) -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(render(draw_patient(rng, "cfp")[0], "normal", 0.0, size, rng).image)


@pytest.fixture(scope="session")
def photograph() -> Callable[..., Image.Image]:
    return draw


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> list[Path]:
    """Four different synthetic photographs, as files."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"eye-{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        draw(number).save(path)
    return paths


@pytest.fixture
def upload(tmp_path, monkeypatch) -> Callable[[str, bytes], Upload]:
    """Puts a file where gradio would, in a folder of its own."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))

    def put(name: str, content: bytes) -> Upload:
        (tmp_path / "uploads").mkdir(exist_ok=True)
        path = Path(tempfile.mkdtemp(dir=tmp_path / "uploads")) / Path(name).name
        path.write_bytes(content)
        return Upload(path, name)

    return put


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def serve_here(classifier_folder, monkeypatch, tmp_path):
    """Serves the classifier from this process, with options of `serve`; uploads lie in `tmp_path`."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")  # `serve` sets it
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pages = []

    def start(**options):
        pages.append(serve(str(classifier_folder), port=free_port(), **options))
        return pages[-1]

    yield start
    for page in pages:
        page.close(verbose=False)


@dataclass(frozen=True)
class Served:
    """A running page: its address, and the folder in which its process makes temporary files."""

    url: str
    temporary: Path

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@pytest.fixture(scope="session")
def run_page(tmp_path_factory) -> Iterator[Callable[..., Served]]:
    """Runs a program that serves at `port`, and waits until it answers; stopped, it leaves no upload."""
    running: list[tuple[subprocess.Popen, Path]] = []

    def start(words: list[str], port: int, **options) -> Served:
        temporary = tmp_path_factory.mktemp("temporary")
        environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", **options.pop("env", {})}
        log = temporary.with_suffix(".log")
        # Under nohup a child would ignore SIGHUP too.
        options["preexec_fn"] = partial(signal.signal, signal.SIGHUP, signal.SIG_DFL)
        with log.open("w") as file:
            process = subprocess.Popen(words, env=environment, stdout=file, stderr=subprocess.STDOUT, **options)
        running.append((process, temporary))
        url = f"http://127.0.0.1:{port}"
        for _ in range(1800):
            if process.poll() is not None:
                break
            try:
                urllib.request.urlopen(url, timeout=5)
                return Served(url, temporary)
            except OSError:
                time.sleep(0.1)
        raise AssertionError(f"the page did not start:\n{log.read_text()[-3000:]}")

    yield start
    for number, (process, _) in enumerate(running):
        process.send_signal((signal.SIGTERM, signal.SIGHUP)[number % 2])
    for process, temporary in running:
        process.wait(timeout=60)
        assert not list(temporary.glob("retfound-app-*")), "the folder of uploads outlived the page"


@pytest.fixture(scope="session")
def served(run_page, classifier_folder, autoencoder_folder) -> Served:
    """The command with a classifier and an autoencoder, for all tests that need no options."""
    port = free_port()
    words = ["--model", classifier_folder, "--reconstruction_model", autoencoder_folder, "--max_upload_mb", "1"]
    return run_page([sys.executable, str(ROOT / "scripts/app.py"), "--port", str(port), *map(str, words)], port)
