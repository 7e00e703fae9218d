"""Synthetic labelled sets and registries on disk, and the commands that make them."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from PIL import Image

from ..errors import BadArgumentError, require, require_range
from ..files import atomic_folder
from ..images.synthetic import CLASSES, Camera, Eye, Modality, Stage, check_options, draw_patient, render
from ..options import parse_arguments
from ..record import write_run_record
from .labelled import METADATA
from .splits import assign_splits

# Of patients. With a quarter of the fellow eyes healthy, about 45, 30 and 25% of the images.
PREVALENCE = (0.37, 0.34, 0.29)
HEALTHY_FELLOW_EYE = 0.25
REPEAT_PHOTOGRAPH = 0.3
CAMERAS = ("A", "B", "C")
MIN_PATIENTS = 13  # the fewest of which every class has three, one for each split
GOLDEN_RATIO = (5**0.5 - 1) / 2


def make_synthetic(
    output_dir: str | Path, modality: Modality = "cfp", num_patients: int = 120, image_size: int = 256, seed: int = 0,
    overwrite: bool = False, stage: Stage = "early", camera: Camera = "clinic",
) -> Path:  # fmt: skip
    """Write `{train,val,test}/<class>/` and `metadata.csv`, whole or not at all; the same seed writes the same bytes.

    A patient has both eyes photographed once or twice. Disease is mostly in both eyes, in one of four patients in
    one of them. Age rises a little with disease; sex and camera do not depend on it. Patient `k` of a seed looks the
    same in a set of any size; its split does not.

    Args:
        output_dir: new folder.
        modality: "cfp" (JPEG, quality 95) or "oct" (PNG).
        num_patients: at least 13, which puts every class into every split.
        image_size: height of the images in pixels.
        seed: of patients, images and splits.
        overwrite: replace an existing folder.
        stage, camera: see `images.synthetic.render`; patients and their eyes do not depend on them.

    Returns:
        `output_dir`.

    Raises:
        BadArgumentError: a value out of range, or a stage or camera that the modality does not have.
    """
    from tqdm import tqdm

    require("modality", modality, CLASSES)
    check_options(modality, stage, camera)
    require_range("num_patients", num_patients, MIN_PATIENTS)
    sequences = np.random.SeedSequence(seed).spawn(num_patients)
    photographs = [
        photograph
        for number, sequence in enumerate(sequences)
        for photograph in _photographs(number, np.random.default_rng(sequence), modality, seed)
    ]
    table = pd.DataFrame([facts for _, facts in photographs])
    table["split"] = assign_splits(table["patient_id"].to_numpy(str), table["label"].to_numpy(str), seed=seed)
    table["image"] = table["split"] + "/" + table["label"] + "/" + table["name"]
    with atomic_folder(output_dir, overwrite) as partial:
        progress = tqdm(table.itertuples(), total=len(table), desc=f"Synthetic {modality.upper()}", unit="image")
        for row, (eye, _) in zip(progress, photographs, strict=True):
            rng = np.random.default_rng(row.render_seed)
            pixels = render(eye, row.label, row.severity, image_size, rng, stage, camera).image
            _save(pixels, partial / row.image)
        columns = ["image", "label", "patient_id", "eye", "split", "age", "sex", "camera", "severity"]
        table.sort_values("image")[columns].to_csv(partial / METADATA, index=False, lineterminator="\n")
    return Path(output_dir)


def _photographs(
    number: int, rng: np.random.Generator, modality: Modality, seed: int
) -> list[tuple[Eye, dict[str, Any]]]:
    """Eye and row of the table for each photograph of one patient."""
    eyes = draw_patient(rng, modality)
    # Steps of the golden ratio fill the unit interval evenly, so that even small sets hold every class.
    place = (0.618 * seed + GOLDEN_RATIO * number) % 1
    condition = CLASSES[modality][int(np.searchsorted(np.cumsum(PREVALENCE)[:-1], place, side="right"))]
    healthy = CLASSES[modality][0]
    severity = rng.uniform(0, 1)
    age = int(np.clip(rng.normal(58 if condition == healthy else 63, 11), 25, 92))
    sex = str(rng.choice(["F", "M"]))
    spared = int(rng.integers(2)) if rng.random() < HEALTHY_FELLOW_EYE else None
    photographs = []
    for side, eye in enumerate(eyes):
        label = healthy if side == spared else condition
        own = 0.0 if label == healthy else float(np.clip(severity + rng.normal(0, 0.08), 0, 1))
        for visit in range(1 + (rng.random() < REPEAT_PHOTOGRAPH)):
            row = {
                "name": f"P{number:04d}_{eye.laterality}{visit + 1}.{_suffix(modality)}", "label": label,
                "patient_id": f"P{number:04d}", "eye": eye.laterality, "age": age, "sex": sex,
                "camera": _camera_name(eye), "severity": round(own, 3), "render_seed": int(rng.integers(2**63)),
            }  # fmt: skip
            photographs.append((eye, row))
    return photographs


def _camera_name(eye: Eye) -> str:
    return CAMERAS[min(int(eye.camera * len(CAMERAS)), len(CAMERAS) - 1)]


def _suffix(modality: str) -> str:
    return "jpg" if modality == "cfp" else "png"


def _save(pixels: np.ndarray, path: Path) -> None:
    """Write a photograph as JPEG, a B-scan as gray PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jpg":
        Image.fromarray(pixels).save(path, quality=95)
    else:
        Image.fromarray(pixels).convert("L").save(path)


@dataclass
class SyntheticArguments:
    out: str = field(metadata={"positional": True, "help": "folder to make"})
    modality: Modality = field(default="cfp", metadata={"help": "colour fundus photographs or OCT B-scans"})
    stage: Literal["early", "advanced"] = field(
        default="early", metadata={"help": "of the disease; advanced lesions are large and in groups (CFP only)"}
    )
    camera: Literal["clinic", "handheld"] = field(
        default="clinic", metadata={"help": "photographs of a handheld camera are grainy (CFP only)"}
    )
    num_patients: int = field(default=120, metadata={"help": "patients; each has two eyes, some several photographs"})
    image_size: int = field(default=256, metadata={"help": "height of the images in pixels"})
    seed: int = field(default=0, metadata={"help": "the same seed gives the same files"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})


def main(argv: Sequence[str] | None = None) -> None:
    """Command `make_synthetic`: write a labelled set and print its folder."""
    (args,) = parse_arguments(SyntheticArguments, argv=argv, description="A synthetic labelled set, split by patient.")
    folder = make_synthetic(
        args.out, args.modality, args.num_patients, args.image_size, args.seed, args.overwrite_output_dir, args.stage,
        args.camera,
    )  # fmt: skip
    write_run_record(folder, "make_synthetic", args)
    print(folder)


SIGNS = {"cfp": ("retinopathy", "glaucoma"), "oct": ("dme", "amd")}  # visible in images; the first by default
EYE_EVENT = {
    "retinopathy": "proliferative retinopathy", "glaucoma": "vision loss", "dme": "vision loss", "amd": "wet AMD",
}  # fmt: skip
PATIENT_EVENT = "stroke"
SITES = ("East", "North", "West")
OPENED, CLOSED = date(2010, 1, 1), date(2020, 12, 31)
HEALTHY, SPARED_EYE = 0.4, 0.15  # shares of patients without the sign, and of the others' eyes
RATE_YEARS = 3.0
YEARS_BEFORE = 1.0  # at risk before the first visit, so that some events are prevalent
DROP_OUT = 0.08  # a year
DEATH_RATE, DEATH_PER_DECADE, EVENT_PER_DECADE = 0.015, 0.8, 0.5  # a year at 64; logarithms of hazard ratios
MEAN_AGE, AGE_SD = 64.0, 9.0
SECOND_PHOTOGRAPH = 0.2
POOR_CAMERA = "C"


@dataclass(frozen=True)
class Plan:
    """Design of a synthetic registry.

    Attributes:
        modality: "cfp" or "oct".
        sign: disease that the images show, one of `SIGNS[modality]`; the most visible by default. The event of the
            eye goes with it (`EYE_EVENT`).
        num_visits: of each patient at most, about a year apart.
        effect: logarithm of the hazard ratio for one standard deviation of the sign's severity (of the eye for the
            event of the eye, of both eyes' mean for that of the patient); 0 for images that predict nothing. Four of
            ten patients have no sign; the others have it in any severity, one in seven of their eyes is spared.
        event_rate: approximate share of eyes, and of patients, with the event in three years.
        follow_up_end: the day on which the registry is closed. First visits lie in 2010 to 2014; where it is closed
            before the horizon of all images is over, whoever keeps late images with an event alone learns their date.
        seed: patient `k` of a seed is the same in a registry of any size.

    Raises:
        BadArgumentError: a value out of range, or a sign that the modality does not show.
    """

    modality: Modality = "cfp"
    sign: str | None = None
    num_visits: int = 2
    effect: float = 1.5
    event_rate: float = 0.25
    follow_up_end: date = CLOSED
    seed: int = 0

    def __post_init__(self) -> None:
        require("modality", self.modality, SIGNS)
        if self.sign is None:
            object.__setattr__(self, "sign", SIGNS[self.modality][0])
        require("sign", self.sign, SIGNS[self.modality])
        require_range("num_visits", self.num_visits, 1)
        require_range("event_rate", self.event_rate, 0, 1, open_low=True)
        if self.event_rate == 1:
            raise BadArgumentError("`event_rate=1` must be below 1", field="event_rate", value=self.event_rate)
        if self.follow_up_end <= OPENED:
            message = f"`follow_up_end={self.follow_up_end}` must be after {OPENED}, when the registry is opened"
            raise BadArgumentError(message, field="follow_up_end", value=self.follow_up_end)


@dataclass(frozen=True)
class SyntheticRegistry:
    """Tables as a clinic would have them, and the truth behind them.

    Attributes:
        images: `image` (path), `patient_id`, `eye`, `date`, `birth_date`, `sex`, `camera`, `site`.
        events: `patient_id`, `eye` (empty for events of the person), `event`, `date`; one row of `last_follow_up` or
            `death` per patient.
        truth: by patient and eye: `severity`, and `eye_hazard` and `patient_hazard` a year.
        eyes: for rendering, one per image: the eye, its severity (0 without the sign), the seed of the photograph.
    """

    images: pd.DataFrame
    events: pd.DataFrame
    truth: pd.DataFrame
    eyes: list[tuple[Eye, float, int]]


def draw_registry(num_patients: int, plan: Plan) -> SyntheticRegistry:
    """Draw a registry without rendering its images.

    The time to an event is exponential from a year before the first visit on; its hazard depends on the severity of
    the sign by `plan.effect`, that of stroke on age too. Cameras and sites affect neither. Follow-up ends with death,
    with dropping out (8% a year), or when the registry closes.

    Raises:
        BadArgumentError: no patients.
    """
    require_range("num_patients", num_patients, 1)
    severities = _population()
    ages = EVENT_PER_DECADE * np.random.default_rng(0).normal(0, AGE_SD / 10, len(severities))
    base = (
        _base_hazard(plan.effect, plan.event_rate, _standardised(severities.ravel(), "eye")),
        _base_hazard(plan.effect, plan.event_rate, _standardised(severities.mean(axis=1), "patient"), ages),
    )
    images, events, truth, eyes = [], [], [], []
    for number, sequence in enumerate(np.random.SeedSequence(plan.seed).spawn(num_patients)):
        drawn = _draw_history(f"P{number:04d}", np.random.default_rng(sequence), plan, base)
        for rows, more in zip((images, events, truth, eyes), drawn, strict=True):
            rows += more
    columns = ["patient_id", "eye", "event", "date"]
    return SyntheticRegistry(pd.DataFrame(images), pd.DataFrame(events)[columns], pd.DataFrame(truth), eyes)


def _draw_history(name: str, rng: np.random.Generator, plan: Plan, base: tuple[float, float]) -> tuple[list, ...]:
    """Rows of images, events and truth of one patient, and the eyes to render."""
    pair = draw_patient(rng, plan.modality)
    severity = dict(zip((eye.laterality for eye in pair), _draw_severities(rng), strict=True))
    age = float(np.clip(rng.normal(MEAN_AGE, AGE_SD), 40, 90))
    first = OPENED + timedelta(days=int(rng.uniform(0, 5 * 365.25)))
    person = {
        "birth_date": first - timedelta(days=round(age * 365.25)),
        "sex": str(rng.choice(["F", "M"])),
        "camera": _camera_name(pair[0]),
        "site": str(rng.choice(SITES)),
    }
    decades = (age - MEAN_AGE) / 10
    death = first + _draw_time(rng, DEATH_RATE * np.exp(DEATH_PER_DECADE * decades))
    left = min(first + _draw_time(rng, DROP_OUT), plan.follow_up_end)
    end, last = min(death, left), "death" if death <= left else "last_follow_up"

    hazards = {side: base[0] * np.exp(plan.effect * _standardised(severity[side], "eye")) for side in severity}
    mean = _standardised(float(np.mean(list(severity.values()))), "patient")
    own = base[1] * np.exp(plan.effect * mean + EVENT_PER_DECADE * decades)
    began = first - timedelta(days=round(365.25 * YEARS_BEFORE))
    happened = [(side, EYE_EVENT[plan.sign], began + _draw_time(rng, hazards[side])) for side in hazards]
    happened += [(None, PATIENT_EVENT, began + _draw_time(rng, own)), (None, last, end)]
    events = [
        {"patient_id": name, "eye": side, "event": event, "date": day} for side, event, day in happened if day <= end
    ]

    images, eyes = [], []
    day = first
    for _ in range(plan.num_visits):
        for eye in pair:
            for repeat in range(1 + (rng.random() < SECOND_PHOTOGRAPH)):
                path = f"images/{name}_{eye.laterality}_{day}_{repeat + 1}.{_suffix(plan.modality)}"
                seed = int(rng.integers(2**63))
                if day <= end:
                    images.append({"image": path, "patient_id": name, "eye": eye.laterality, "date": day} | person)
                    eyes.append((eye, severity[eye.laterality], seed))
        day += timedelta(days=int(rng.uniform(300, 430)))
    truth = [
        {"patient_id": name, "eye": side, "severity": round(severity[side], 4),
         "eye_hazard": round(hazards[side], 5), "patient_hazard": round(own, 5)}
        for side in severity
    ]  # fmt: skip
    return images, events, truth, eyes


def _draw_time(rng: np.random.Generator, hazard: float) -> timedelta:
    """An exponential time in whole days, at least one and at most 200 years."""
    return timedelta(days=1 + int(365.25 * min(rng.exponential(1 / hazard), 200)))


def _draw_severities(rng: np.random.Generator) -> tuple[float, float]:
    """Severity of the sign in each eye, 0 where there is none; fellow eyes are alike."""
    healthy, common, noise, spared = rng.random(), rng.uniform(0.2, 1), rng.normal(0, 0.08, 2), rng.random(2)
    if healthy < HEALTHY:
        return 0.0, 0.0
    both = np.where(spared < SPARED_EYE, 0.0, np.clip(common + noise, 0.05, 1))
    return float(both[0]), float(both[1])


@cache
def _population() -> np.ndarray:
    """Severities (4000 patients, 2 eyes), which stand for their distribution."""
    rng = np.random.default_rng(0)
    return np.array([_draw_severities(rng) for _ in range(4000)])


def _standardised(severity: Any, unit: Literal["eye", "patient"]) -> Any:
    """Severity of an eye, or the mean of a patient's two, in standard deviations from the population's mean."""
    values = _population().ravel() if unit == "eye" else _population().mean(axis=1)
    return (severity - values.mean()) / values.std()


def _base_hazard(effect: float, event_rate: float, severities: np.ndarray, ages: np.ndarray | float = 0.0) -> float:
    """Yearly hazard at mean severity that gives `event_rate` in three years over a whole population.

    Args:
        effect: logarithm of the hazard ratio for one unit of `severities`.
        event_rate: share of the population.
        severities: standardised, of the population.
        ages: their further logarithms of hazard ratios, by age.
    """
    from scipy.optimize import brentq

    ratio = np.exp(effect * severities + ages)

    def excess(log_hazard: float) -> float:
        return float((1 - np.exp(-np.exp(log_hazard) * ratio * RATE_YEARS)).mean() - event_rate)

    return float(np.exp(brentq(excess, -40, 10)))


@dataclass
class RegistryArguments:
    out: str = field(metadata={"positional": True, "help": "folder to make"})
    modality: Modality = field(default="cfp", metadata={"help": "colour fundus photographs or OCT B-scans"})
    sign: Literal["retinopathy", "glaucoma", "dme", "amd"] | None = field(
        default=None, metadata={"help": "disease that images show: retinopathy or glaucoma (cfp), dme or amd (oct)"}
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
    follow_up_end: str = field(
        default=str(CLOSED),
        metadata={"help": "day on which the registry is closed; soon after the images of 2010 to 2015, it shows what "
                  "labels of horizons that are not over are worth"},
    )  # fmt: skip
    poor_camera_contrast: float = field(
        default=1.0, metadata={"help": "of camera C, as a share of the others'; 0.3 nearly hides the sign"}
    )
    image_size: int = field(default=128, metadata={"help": "height of the images in pixels"})
    seed: int = field(default=0, metadata={"help": "the same seed gives the same files"})
    overwrite_output_dir: bool = field(default=False, metadata={"help": "replace the output folder"})

    def __post_init__(self) -> None:
        require_range("poor_camera_contrast", self.poor_camera_contrast, 0, 1, open_low=True)


def make_registry(arguments: RegistryArguments) -> Path:
    """Write `images.csv`, `events.csv`, `truth.csv`, `run.json` and `images/`, whole or not at all; return the folder.

    Raises:
        BadArgumentError: a value out of range.
    """
    from tqdm import tqdm

    options = ("modality", "sign", "num_visits", "effect", "event_rate", "seed")
    try:
        closed = date.fromisoformat(arguments.follow_up_end)
    except ValueError as error:
        message = f"`follow_up_end={arguments.follow_up_end}` is no day; give one such as 2015-06-30"
        raise BadArgumentError(message, field="follow_up_end", value=arguments.follow_up_end) from error
    plan = Plan(**{name: getattr(arguments, name) for name in options}, follow_up_end=closed)
    registry = draw_registry(arguments.num_patients, plan)
    with atomic_folder(arguments.out, arguments.overwrite_output_dir) as folder:
        rows = registry.images.itertuples()
        progress = tqdm(rows, total=len(registry.images), desc="Synthetic registry", unit="image")
        for row, (eye, severity, seed) in zip(progress, registry.eyes, strict=True):
            rng = np.random.default_rng(seed)
            condition = plan.sign if severity > 0 else CLASSES[plan.modality][0]
            pixels = render(eye, condition, severity, arguments.image_size, rng).image
            if row.camera == POOR_CAMERA and arguments.poor_camera_contrast < 1:
                pixels = fade(pixels, arguments.poor_camera_contrast, rng)
            _save(pixels, folder / row.image)
        for name in ("images", "events", "truth"):
            getattr(registry, name).to_csv(folder / f"{name}.csv", index=False, lineterminator="\n")
        write_run_record(folder, "make_registry", arguments)
    return Path(arguments.out)


def fade(pixels: np.ndarray, contrast: float, rng: np.random.Generator) -> np.ndarray:
    """A photograph by a poorer camera: less contrast about the mean brightness, and as much noise as contrast is lost.

    Args:
        pixels: uint8 (height, width, 3).
        contrast: above 0, at most 1.
        rng: of the noise.
    """
    mean = pixels.mean(axis=(0, 1))
    grain = rng.normal(0, 12 * (1 - contrast), (*pixels.shape[:2], 1))
    return np.clip(np.rint(mean + contrast * (pixels - mean) + grain), 0, 255).astype(np.uint8)


def make_registry_command(argv: Sequence[str] | None = None) -> None:
    """Command `make_registry`: write a registry and print its folder."""
    description = "A synthetic registry: images of both eyes with dates, and events that they predict."
    (arguments,) = parse_arguments(RegistryArguments, argv=argv, description=description)
    print(make_registry(arguments))
