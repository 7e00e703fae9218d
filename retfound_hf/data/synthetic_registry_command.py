"""The command `make_registry`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from ..runs.arguments import parse_arguments
from ..runs.errors import RetFoundError
from ..runs.files import whole_folder
from ..runs.record import write_run_record
from .synthetic_registry import Plan, draw_registry

POOR_CAMERA = "C"


@dataclass
class RegistryArguments:
    out: str = field(metadata={"positional": True, "help": "folder to make"})
    modality: Literal["cfp", "oct"] = field(
        default="cfp", metadata={"help": "colour fundus photographs or OCT B-scans"}
    )
    sign: Literal["retinopathy", "glaucoma", "dme", "amd"] | None = field(
        default=None, metadata={"help": "what the images show: retinopathy or glaucoma (cfp), dme or amd (oct)"}
    )
    num_patients: int = field(default=200, metadata={"help": "patients; each has two eyes"})
    num_visits: int = field(default=2, metadata={"help": "visits of each patient at most, about a year apart"})
    effect: float = field(
        default=1.5,
        metadata={"help": "log hazard ratio for one standard deviation of the visible sign; 0 plants none"},
    )
    event_rate: float = field(
        default=0.25, metadata={"help": "share of eyes and of patients with the event in 3 years"}
    )
    poor_camera_contrast: float = field(
        default=1.0,
        metadata={"help": "of camera C, as a share of the others'; 0.3 nearly hides the sign"},
    )
    image_size: int = field(default=128, metadata={"help": "height of the images in pixels"})
    seed: int = field(default=0, metadata={"help": "the same seed gives the same files"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})

    def __post_init__(self) -> None:
        if not 0 < self.poor_camera_contrast <= 1:
            raise RetFoundError(f"--poor_camera_contrast {self.poor_camera_contrast} is not above 0 and up to 1")


def make_registry(arguments: RegistryArguments) -> Path:
    """Write `images.csv`, `events.csv`, `truth.csv` and `images/`, whole or not at all.

    Raises:
        RetFoundError: settings out of range, or an output folder that is not free.
    """
    from PIL import Image
    from tqdm import tqdm

    from ..images.synthetic import CLASSES, render

    options = ("modality", "sign", "num_visits", "effect", "event_rate", "seed")
    plan = Plan(**{name: getattr(arguments, name) for name in options})
    registry = draw_registry(arguments.num_patients, plan)
    with whole_folder(arguments.out, arguments.overwrite_output_dir) as folder:
        (folder / "images").mkdir()
        progress = tqdm(
            registry.images.itertuples(), total=len(registry.images), desc="Synthetic registry", unit="image"
        )
        for row, (eye, severity, seed) in zip(progress, registry.eyes, strict=True):
            rng = np.random.default_rng(seed)
            condition = plan.sign if severity > 0 else CLASSES[arguments.modality][0]
            pixels = render(eye, condition, severity, arguments.image_size, rng).image
            if row.camera == POOR_CAMERA and arguments.poor_camera_contrast < 1:
                pixels = fade(pixels, arguments.poor_camera_contrast, rng)
            if arguments.modality == "cfp":
                Image.fromarray(pixels).save(folder / row.image, quality=95)
            else:
                Image.fromarray(pixels).convert("L").save(folder / row.image)
        for name in ("images", "events", "truth"):
            getattr(registry, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        write_run_record(folder, "make_registry", arguments)
    return Path(arguments.out)


def fade(pixels: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A photograph by a poorer camera: less contrast about the mean brightness, under as much grain as is lost.

    Args:
        pixels: uint8 (height, width, 3).
        contrast: above 0, at most 1.
    """
    mean = pixels.mean(axis=(0, 1))
    grain = rng.normal(0, 12 * (1 - contrast), (*pixels.shape[:2], 1))
    return np.clip(np.rint(mean + contrast * (pixels - mean) + grain), 0, 255).astype(np.uint8)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, make the registry, and say where it is."""
    (arguments,) = parse_arguments(
        RegistryArguments,
        argv=argv,
        description="A synthetic registry: images of both eyes with dates, and events that they foretell.",
    )
    print(make_registry(arguments))
