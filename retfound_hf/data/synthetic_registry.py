"""A synthetic registry: patients, eyes, visits and events, with an effect planted between images and events."""

from dataclasses import dataclass
from datetime import date, timedelta
from typing import Any

import numpy as np
import pandas as pd

from ..images.synthetic import CLASSES, Eye, draw_patient
from ..runs.errors import RetFoundError
from .synthetic import CAMERAS
from .synthetic_hazards import base_hazard, population, scales, severities

SIGNS = {"cfp": ("retinopathy", "glaucoma"), "oct": ("dme", "amd")}  # what images may show; the first by default
EYE_EVENT = {
    "retinopathy": "proliferative retinopathy",
    "glaucoma": "vision loss",
    "dme": "vision loss",
    "amd": "wet AMD",
}
PATIENT_EVENT = "stroke"
SITES = ("East", "North", "West")
OPENED, CLOSED = date(2010, 1, 1), date(2020, 12, 31)
YEARS_BEFORE = 1.0  # at risk before the first visit, so that some events are prevalent
DROP_OUT = 0.08  # a year
DEATH_RATE, DEATH_PER_DECADE, EVENT_PER_DECADE = 0.015, 0.8, 0.5  # a year at 64; logarithms of hazard ratios
MEAN_AGE, AGE_SD = 64.0, 9.0
REPEAT_PHOTOGRAPH = 0.2


@dataclass(frozen=True)
class Plan:
    """What is drawn.

    Attributes:
        modality: "cfp" or "oct".
        sign: what the images show, one of `SIGNS[modality]`; the most visible by default. The event of the eye goes
            with it (`EYE_EVENT`).
        num_visits: of each patient at most, about a year apart.
        effect: logarithm of the hazard ratio for one standard deviation of the sign's severity (of the eye for the
            event of the eye, of both eyes' mean for that of the patient); 0 for images that foretell nothing. Four of
            ten patients have no sign; the others have it in any severity, one in seven of their eyes is spared.
        event_rate: share of eyes, and of patients, with the event in three years, about.
        seed: patient `k` of a seed is the same in a registry of any size.
    """

    modality: str = "cfp"
    sign: str | None = None
    num_visits: int = 2
    effect: float = 1.5
    event_rate: float = 0.25
    seed: int = 0

    def __post_init__(self) -> None:
        if self.modality not in CLASSES:
            raise RetFoundError(f"modality {self.modality!r} is unknown; choose one of {', '.join(CLASSES)}")
        if self.sign is None:
            object.__setattr__(self, "sign", SIGNS[self.modality][0])
        if self.sign not in SIGNS[self.modality]:
            known = " or ".join(SIGNS[self.modality])
            raise RetFoundError(f"sign {self.sign!r} does not show on {self.modality}; choose {known}")
        if self.num_visits < 1:
            raise RetFoundError(f"num_visits {self.num_visits} is too small; give at least 1")
        if not 0 < self.event_rate < 1:
            raise RetFoundError(f"event_rate {self.event_rate} is out of range; give a share between 0 and 1")


@dataclass(frozen=True)
class SyntheticRegistry:
    """Tables as a clinic would have them, and what it would not know.

    Attributes:
        images: `image` (path), `patient_id`, `eye`, `date`, `birth_date`, `sex`, `camera`, `site`.
        events: `patient_id`, `eye` (empty for events of the person), `event`, `date`; one row of `last_follow_up` or
            `death` per patient.
        truth: by patient and eye: `severity`, and `eye_hazard` and `patient_hazard` a year.
        eyes: what to render, one per image: the eye, its severity (0 without the sign), the seed of the photograph.
    """

    images: pd.DataFrame
    events: pd.DataFrame
    truth: pd.DataFrame
    eyes: list[tuple[Eye, float, int]]


def draw_registry(num_patients: int, plan: Plan) -> SyntheticRegistry:
    """Draw a registry without rendering its images.

    The time to an event is exponential from a year before the first visit on; its hazard depends on the severity of
    the sign by `plan.effect`, that of stroke on age too. Cameras and sites have nothing to do with either. Follow-up
    ends with death, with dropping out (8% a year), or when the registry closes.

    Raises:
        RetFoundError: no patients.
    """
    if num_patients < 1:
        raise RetFoundError(f"num_patients {num_patients} is too small; give at least 1")
    (of_eye, of_both), eyes = scales(), population()
    ages = EVENT_PER_DECADE * np.random.default_rng(0).normal(0, AGE_SD / 10, len(eyes))
    base = (
        base_hazard(plan.effect, plan.event_rate, of_eye(eyes.ravel())),
        base_hazard(plan.effect, plan.event_rate, of_both(eyes.mean(axis=1)), ages),
    )
    drawn = [
        _patient(number, np.random.default_rng(sequence), plan, base)
        for number, sequence in enumerate(np.random.SeedSequence(plan.seed).spawn(num_patients))
    ]
    images = pd.DataFrame([row for patient in drawn for row in patient["images"]])
    events = pd.DataFrame([row for patient in drawn for row in patient["events"]])
    truth = pd.DataFrame([row for patient in drawn for row in patient["truth"]])
    eyes = [eye for patient in drawn for eye in patient["eyes"]]
    return SyntheticRegistry(images, events[["patient_id", "eye", "event", "date"]], truth, eyes)


def _patient(number: int, rng: np.random.Generator, plan: Plan, base: tuple[float, float]) -> dict[str, list[Any]]:
    name = f"P{number:04d}"
    pair = draw_patient(rng, plan.modality)
    severity = dict(zip((eye.laterality for eye in pair), severities(rng), strict=True))
    age = float(np.clip(rng.normal(MEAN_AGE, AGE_SD), 40, 90))
    first = OPENED + timedelta(days=int(rng.uniform(0, 5 * 365.25)))
    person = {
        "birth_date": first - timedelta(days=round(age * 365.25)),
        "sex": str(rng.choice(["F", "M"])),
        "camera": CAMERAS[min(int(pair[0].camera * len(CAMERAS)), len(CAMERAS) - 1)],
        "site": str(rng.choice(SITES)),
    }
    decades = (age - MEAN_AGE) / 10
    death = first + _span(rng, DEATH_RATE * np.exp(DEATH_PER_DECADE * decades))
    left = min(first + _span(rng, DROP_OUT), CLOSED)
    end, last = min(death, left), "death" if death <= left else "last_follow_up"

    of_eye, of_both = scales()
    hazards = {side: base[0] * np.exp(plan.effect * of_eye(severity[side])) for side in severity}
    mean = float(np.mean(list(severity.values())))
    own = base[1] * np.exp(plan.effect * of_both(mean) + EVENT_PER_DECADE * decades)
    began = first - timedelta(days=round(365.25 * YEARS_BEFORE))
    happened = [(side, EYE_EVENT[plan.sign], began + _span(rng, hazards[side])) for side in hazards]
    happened.append((None, PATIENT_EVENT, began + _span(rng, own)))
    events = [
        {"patient_id": name, "eye": side, "event": event, "date": day}
        for side, event, day in [*happened, (None, last, end)]
        if day <= end
    ]

    images, eyes = [], []
    day = first
    for _ in range(plan.num_visits):
        for eye in pair:
            for repeat in range(1 + (rng.random() < REPEAT_PHOTOGRAPH)):
                suffix = "jpg" if plan.modality == "cfp" else "png"
                path = f"images/{name}_{eye.laterality}_{day}_{repeat + 1}.{suffix}"
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
    return {"images": images, "events": events, "truth": truth, "eyes": eyes}


def _span(rng: np.random.Generator, hazard: float) -> timedelta:
    """An exponential time in whole days, at least one and at most 200 years."""
    return timedelta(days=1 + int(365.25 * min(rng.exponential(1 / hazard), 200)))
