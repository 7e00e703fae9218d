"""A synthetic labelled set on disk: patients with two eyes, repeat photographs, splits by patient, metadata."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image

from ..images.synthetic import CLASSES, Camera, Eye, Stage, check_options, draw_patient, render
from ..runs.errors import RetFoundError
from ..runs.files import whole_folder
from .folders import METADATA
from .splits import assign_splits

# Of patients. With a quarter of the fellow eyes healthy, about 45, 30 and 25% of the images.
PREVALENCE = (0.37, 0.34, 0.29)
HEALTHY_FELLOW_EYE = 0.25
REPEAT_PHOTOGRAPH = 0.3
CAMERAS = ("A", "B", "C")
MIN_PATIENTS = 13  # the fewest of which every class has three, one for each split
GOLDEN_RATIO = (5**0.5 - 1) / 2


def make_synthetic(
    output_dir: str | Path,
    modality: str = "cfp",
    num_patients: int = 120,
    image_size: int = 256,
    seed: int = 0,
    overwrite: bool = False,
    stage: Stage = "early",
    camera: Camera = "clinic",
) -> Path:
    """Write `{train,val,test}/<class>/` and `metadata.csv`, whole or not at all; the same seed writes the same bytes.

    A patient has both eyes photographed once or twice. Disease is mostly in both eyes, in one of four patients in
    one of them. Age rises a little with disease; sex and camera do not depend on it. Patient `k` of a seed looks the
    same in a set of any size; its split does not.

    Args:
        modality: "cfp" (JPEG, quality 95) or "oct" (PNG).
        num_patients: at least 13, which puts every class into every split.
        image_size: height of the images in pixels.
        stage, camera: as in `images.synthetic.render`; patients and their eyes do not depend on them.

    Returns:
        `output_dir`.

    Raises:
        RetFoundError: an unknown modality, a stage or camera that it does not have, too few patients, or an output
            folder that is not free.
    """
    from tqdm import tqdm

    if modality not in CLASSES:
        raise RetFoundError(f"modality {modality!r} is unknown; choose one of {', '.join(CLASSES)}")
    check_options(modality, stage, camera)
    if num_patients < MIN_PATIENTS:
        raise RetFoundError(f"num_patients {num_patients} is too small for three splits; give at least {MIN_PATIENTS}")
    sequences = np.random.SeedSequence(seed).spawn(num_patients)
    visits = [_patient(number, sequence, modality, seed) for number, sequence in enumerate(sequences)]
    facts = pd.DataFrame([fact for visit in visits for _, fact in visit])
    facts["split"] = assign_splits(facts["patient_id"].to_numpy(str), facts["label"].to_numpy(str), seed=seed)
    facts["image"] = facts["split"] + "/" + facts["label"] + "/" + facts["name"]
    with whole_folder(output_dir, overwrite) as partial:
        eyes = (eye for visit in visits for eye, _ in visit)
        progress = tqdm(facts.itertuples(), total=len(facts), desc=f"Synthetic {modality.upper()}", unit="image")
        for fact, eye in zip(progress, eyes, strict=True):
            path = partial / fact.image
            path.parent.mkdir(parents=True, exist_ok=True)
            rng = np.random.default_rng(fact.render_seed)
            pixels = render(eye, fact.label, fact.severity, image_size, rng, stage, camera).image
            if modality == "cfp":
                Image.fromarray(pixels).save(path, quality=95)
            else:
                Image.fromarray(pixels).convert("L").save(path)
        columns = ["image", "label", "patient_id", "eye", "split", "age", "sex", "camera", "severity"]
        facts.sort_values("image")[columns].to_csv(partial / METADATA, index=False, lineterminator="\n")
    return Path(output_dir)


def _patient(
    number: int, sequence: np.random.SeedSequence, modality: str, seed: int
) -> list[tuple[Eye, dict[str, Any]]]:
    """Eye and facts of each photograph of one patient."""
    rng = np.random.default_rng(sequence)
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
        here = 0.0 if label == healthy else float(np.clip(severity + rng.normal(0, 0.08), 0, 1))
        for visit in range(1 + (rng.random() < REPEAT_PHOTOGRAPH)):
            facts = {
                "name": f"P{number:04d}_{eye.laterality}{visit + 1}.{'jpg' if modality == 'cfp' else 'png'}",
                "label": label,
                "patient_id": f"P{number:04d}",
                "eye": eye.laterality,
                "age": age,
                "sex": sex,
                "camera": CAMERAS[min(int(eye.camera * len(CAMERAS)), len(CAMERAS) - 1)],
                "severity": round(here, 3),
                "render_seed": int(rng.integers(2**63)),
            }
            photographs.append((eye, facts))
    return photographs
