"""Tiny models, image sets and tables: what the tests of all rooms are made from."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from noise import with_noise
from PIL import Image
from transformers import PreTrainedModel

from retfound_hf import RetFoundConfig, RetFoundForImageClassification, RetFoundForPreTraining, RetFoundImageProcessor

SIZE = 32
SIZES = {
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "image_size": SIZE,
    "patch_size": 8, "decoder_hidden_size": 16, "decoder_num_hidden_layers": 1, "decoder_num_attention_heads": 4,
    "decoder_intermediate_size": 32,
}  # fmt: skip
COLOURS = {"amd": (200, 60, 60), "healthy": (60, 200, 60), "other": (60, 60, 200)}


def tiny_config(**overrides: Any) -> RetFoundConfig:
    """Configuration of 16 patches, width 32, two blocks and one of the decoder."""
    return RetFoundConfig(**{**SIZES, **overrides})


def named(classes: tuple[str, ...], problem_type: str = "single_label_classification") -> dict[str, Any]:
    """The part of a configuration that names `classes`."""
    ids = {name: index for index, name in enumerate(classes)}
    return {"id2label": {index: name for name, index in ids.items()}, "label2id": ids, "problem_type": problem_type}


def save_folder(model: PreTrainedModel, folder: Path, scale: float = 0.1) -> Path:
    """Model folder of `model` with noise on its weights, beside RETFound's image processor."""
    with_noise(model, scale).save_pretrained(folder)
    RetFoundImageProcessor.for_image_size(model.config.image_size).save_pretrained(folder)
    return folder


def save_autoencoder(folder: Path, seed: int = 0, **overrides: Any) -> Path:
    """Folder of a masked autoencoder with random weights."""
    torch.manual_seed(seed)
    return save_folder(RetFoundForPreTraining(tiny_config(**overrides)), folder)


def save_classifier(folder: Path, classes: tuple[str, ...], seed: int = 0, **overrides: Any) -> Path:
    """Folder of a classifier of `classes` with random weights that tell images apart."""
    torch.manual_seed(seed)
    config = tiny_config(**{**named(classes), **overrides})
    return save_folder(RetFoundForImageClassification(config), folder, scale=0.3)


def save_stock(folder: Path, kind: str, **overrides: Any) -> Path:
    """Folder of a stock transformers model with its own processor: vit_mae, vit, dinov2 or dinov3_vit."""
    import transformers

    decoder = {name: size for name, size in SIZES.items() if "decoder" in name}
    config_name, model_name, own = {
        "vit_mae": ("ViTMAEConfig", "ViTMAEForPreTraining", decoder),
        "vit": ("ViTConfig", "ViTModel", {}),
        "dinov2": ("Dinov2Config", "Dinov2Model", {"mlp_ratio": 2}),
        "dinov3_vit": ("DINOv3ViTConfig", "DINOv3ViTModel", {"num_register_tokens": 4}),
    }[kind]
    sizes = {name: size for name, size in SIZES.items() if name not in decoder}
    torch.manual_seed(0)
    model = getattr(transformers, model_name)(getattr(transformers, config_name)(**{**sizes, **own, **overrides}))
    with_noise(model).save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": SIZE, "width": SIZE}).save_pretrained(folder)
    return folder


def save_noise(path: Path, seed: int = 0, size: tuple[int, int] = (44, 40)) -> Path:
    """Image file (width, height) of noise that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def planted_image(label: str, generator: np.random.Generator, side: int = 48) -> np.ndarray:
    """Noise with a square, somewhere, whose colour tells the class; uint8 (side, side, 3)."""
    pixels = generator.integers(60, 180, (side, side, 3))
    top, left = generator.integers(2, side // 2 - 2, 2)
    pixels[top : top + side // 2, left : left + side // 2] = COLOURS[label]
    return (pixels + generator.normal(0, 10, pixels.shape)).clip(0, 255).astype(np.uint8)


def save_planted_set(
    root: Path, patients: dict[str, int], seed: int = 0, classes: tuple[str, ...] = ("amd", "healthy"),
    random: float = 0.0,
) -> Path:  # fmt: skip
    """Folder {split}/<class>/*.png of planted images, two per patient, with metadata.csv.

    Args:
        root: the folder.
        patients: number of patients by split.
        seed: of the pixels.
        classes: keys of `COLOURS`, dealt in turn.
        random: share of images that show a class at random, so that no model is perfect.
    """
    generator = np.random.default_rng(seed)
    rows, number = [], 0
    for split, count in patients.items():
        for index in range(count):
            label = classes[index % len(classes)]
            for eye in "LR":
                path = root / split / label / f"p{number:03d}{eye}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                shown = str(generator.choice(classes)) if random and generator.random() < random else label
                Image.fromarray(planted_image(shown, generator)).save(path)
                name = path.relative_to(root).as_posix()
                rows.append({"image": name, "patient_id": f"p{number:03d}", "eye": eye, "camera": "AB"[number % 2]})
            number += 1
    pd.DataFrame(rows).to_csv(root / "metadata.csv", index=False)
    return root
