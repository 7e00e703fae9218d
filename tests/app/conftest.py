"""Small model folders, images, and the page as a process of its own."""

import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from noise import with_noise
from PIL import Image

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor
from retfound_hf.app.predictor import Reader
from retfound_hf.app.uploads import Upload
from retfound_hf.images.synthetic import draw_patient, render

ROOT = Path(__file__).parents[2]
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": 64,
    "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32, "modality": "cfp",
}  # fmt: skip
CLASSES = ("normal", "retinopathy", "glaucoma")
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

    def make(name: str = "classifier", classes: tuple[str, ...] = CLASSES, **options) -> Path:
        folder = tmp_path_factory.mktemp("models") / name
        torch.manual_seed(0)
        config = RetFoundConfig(
            **{"problem_type": "single_label_classification", **SIZES, **options},
            id2label=dict(enumerate(classes)),
            label2id={label: index for index, label in enumerate(classes)},
        )
        with_noise(RetFoundForImageClassification(config), 0.3).save_pretrained(folder)
        RetFoundImageProcessor.for_image_size(SIZES["image_size"]).save_pretrained(folder)
        (folder / "README.md").write_text(CARD)
        return folder

    return make


@pytest.fixture(scope="session")
def classifier_folder(make_folder) -> Path:
    return make_folder()


@pytest.fixture(scope="session")
def autoencoder_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "autoencoder"
    torch.manual_seed(0)
    with_noise(RetFoundForPreTraining(RetFoundConfig(**SIZES)), 0.1).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(SIZES["image_size"]).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def adapter_folder(autoencoder_folder, tmp_path_factory) -> Path:
    """A LoRA adapter as the command makes it: on few images, calibrated, with thresholds of its validation split."""
    from retfound_hf.finetuning.finetune import main

    folder = tmp_path_factory.mktemp("adapter")
    for number in range(24):
        split, label = ("train", "val", "test")[max(0, number // 4 - 3)], CLASSES[number % 2]
        path = folder / "data" / split / label / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        photograph(number, 64).save(path)
    words = {
        "model_name_or_path": autoencoder_folder, "data": folder / "data", "method": "lora", "calibrate": True,
        "augmentation": "light", "num_train_epochs": 1, "dataloader_num_workers": 0, "use_cpu": True,
        "output_dir": folder / "adapter",
    }  # fmt: skip
    main([word for name, value in words.items() for word in (f"--{name}", str(value))])
    return folder / "adapter"


@pytest.fixture(scope="session")
def reader(classifier_folder) -> Reader:
    return Reader(str(classifier_folder))


def photograph(number: int = 0, size: int = 256, modality: str = "cfp") -> Image.Image:
    rng = np.random.default_rng(number)
    return Image.fromarray(render(draw_patient(rng, modality)[0], "normal", 0.0, size, rng).image)


@pytest.fixture(scope="session", name="photograph")
def drawn() -> Callable[..., Image.Image]:
    return photograph


@pytest.fixture(scope="session")
def photographs(tmp_path_factory) -> list[Path]:
    """Four different synthetic photographs, as files."""
    folder = tmp_path_factory.mktemp("photographs")
    paths = [folder / f"eye-{number}.png" for number in range(4)]
    for number, path in enumerate(paths):
        photograph(number).save(path)
    return paths


@pytest.fixture
def upload(tmp_path) -> Callable[[str, bytes], Upload]:
    """Puts a file where gradio would, in a folder of its own."""

    def put(name: str, content: bytes) -> Upload:
        path = tmp_path / "uploads" / f"{len(list(tmp_path.glob('uploads/*')))}" / Path(name).name
        path.parent.mkdir(parents=True)
        path.write_bytes(content)
        return Upload(path, name)

    return put


@dataclass(frozen=True)
class Served:
    """A running page: its address, and the folder in which its process makes temporary files."""

    url: str
    temporary: Path

    def files(self) -> list[Path]:
        return [path for path in self.temporary.rglob("*") if path.is_file()]


@pytest.fixture(scope="session", name="free_port")
def port_finder() -> Callable[[], int]:
    return free_port


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="session")
def serve_page(tmp_path_factory) -> Iterator[Callable[..., Served]]:
    """Starts `scripts/app.py` with the given words and waits until it answers."""
    running: list[tuple[subprocess.Popen, Path]] = []

    def start(*words: str) -> Served:
        port, temporary = free_port(), tmp_path_factory.mktemp("temporary")
        environment = {**os.environ, "TMPDIR": str(temporary), "OMP_NUM_THREADS": "1"}
        log = open(temporary.with_suffix(".log"), "w+")  # noqa: SIM115
        command = [sys.executable, str(ROOT / "scripts/app.py"), "--port", str(port), *words]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
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
        log.seek(0)
        raise AssertionError(f"the page did not start:\n{log.read()[-3000:]}")

    yield start
    for process, temporary in running:
        process.terminate()
        process.wait(timeout=60)
        assert not list(temporary.glob("retfound-app-*")), "the folder of uploads outlived the page"
