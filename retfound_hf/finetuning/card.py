"""The card of a fine-tuned folder, filled from the run and its files: no number in it is typed."""

from pathlib import Path
from typing import Any

import pandas as pd

from ..models.cards import (
    calibration_text,
    cost_text,
    describe_preprocessing,
    evaluation_text,
    hub_id_of,
    license_of,
    model_index,
    write_card,
)
from ..record import hardware
from .methods import FinetuneJob

METHODS = {"full": "all weights", "lora": "a LoRA adapter and the head", "linear": "a linear head on frozen features"}
CHOSEN = {"full": "The epoch", "lora": "The epoch", "linear": "The strength of the regularisation"}
TARGETS = {
    "single_label_classification": "One class for each image",
    "multi_label_classification": "Any number of labels for each image",
    "regression": "Numbers for each image",
}
OLDEST = 89  # years that may be told; HIPAA's safe harbour wants all above as one group
AGE_COLUMNS, SEX_COLUMNS = ("age", "patient_age"), ("sex", "gender", "patient_sex")


def write_finetuned_card(folder: Path, job: FinetuneJob, seconds: float, level: str = "image") -> Path:
    """Write the card of a folder whose model and `metrics.json`, at `level`, are written already."""
    base = job.model_args.model_name_or_path
    start = f"`{Path(base).name if Path(base).exists() else base}`" if base else "random weights"
    start += "" if base else f" (preset `{job.model_args.config_name}`)"
    method = job.method_args.method
    is_adapter = method == "lora" and not job.method_args.merge
    merged = ", then merged into the weights: it loads without peft" if method == "lora" and not is_adapter else ""
    data, on_hub = _data_of(job)
    metadata: dict[str, Any] = {"pipeline_tag": "image-classification"}
    if base:
        metadata |= {"license": license_of(base)}
        metadata |= {"base_model": named} if (named := hub_id_of(base)) else {}
        metadata |= {"base_model_relation": "adapter" if is_adapter else "finetune"} if named else {}
    if is_adapter:
        metadata["library_name"] = "peft"
    if on_hub:
        metadata["datasets"] = [data]
    if index := model_index(folder, folder.name, data, data if on_hub else None):
        metadata["model-index"] = index
    test = f"{len(job.prepared['test'].images)} images{'' if level == 'image' else f', metrics by {level}'}"
    return write_card(
        folder,
        "adapter" if is_adapter else "finetuned",
        metadata,
        title=f"{folder.name}: RETFound fine-tuned ({'LoRA' if method == 'lora' else method})",
        description=f"Started from {start}; trained: {METHODS[method]}{merged}.",
        problem_type=job.labelled.problem_type,
        targets=f"{TARGETS[job.labelled.problem_type]}: {', '.join(job.labelled.class_names)}.",
        training_data=_training_data(job, data),
        preprocessing=describe_preprocessing(job.processor),
        evaluation=evaluation_text(folder, f"the test split, {test}"),
        calibration=calibration_text(folder, job.labelled.problem_type),
        cost=cost_text(seconds, hardware()),
        provenance=(
            f"{CHOSEN[method]} was chosen on the validation split. Seed {job.args.seed}. `run.json` holds every "
            "setting and version, and stays with the owner when the folder is published."
        ),
    )


def _data_of(job: FinetuneJob) -> tuple[str, bool]:
    """The name of the data, and whether it is that of a data set on the Hub."""
    data = job.data_args.data
    return (Path(data).resolve().name, False) if Path(data).exists() else (data, True)


def _training_data(job: FinetuneJob, data: str) -> str:
    """Images, patients and classes of each split, and what the data say of age and sex."""
    columns = ["split", "images", *(["patients"] if job.labelled.patients_known else [])]
    classes = job.labelled.class_names if job.labelled.problem_type == "single_label_classification" else ()
    rows = []
    for split, part in job.prepared.items():
        row = [split, f"{len(part.images)}"]
        row += [f"{part.rows['patient_id'].nunique()}"] if job.labelled.patients_known else []
        row += [f"{(part.targets == index).sum()}" for index in range(len(classes))]
        rows.append(row)
    table = [[*columns, *classes], ["---", *["---:"] * (len(columns) + len(classes) - 1)], *rows]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
    known = "by patient" if job.labelled.patients_known else "by image, as no patients were given"
    text = f"`{data}`, the splits kept apart {known}:\n\n" + "\n".join(lines)
    described = _population(pd.concat([part.rows for part in job.prepared.values()]))
    unknown = "The data say nothing of age, sex or origin of the patients."
    return f"{text}\n\n{described or unknown}"


def _population(rows: pd.DataFrame) -> str:
    found = []
    age = next((name for name in AGE_COLUMNS if name in rows), None)
    ages = pd.to_numeric(rows[age], errors="coerce").dropna() if age else pd.Series(dtype=float)
    if len(ages):
        span = f"{_age(ages.min())} to {_age(ages.max())}" if ages.min() <= OLDEST else _age(ages.max())
        found += [f"Age of the patients, by image: mean {_age(ages.mean(), decimals=1)}, {span}."]
    if sex := next((name for name in SEX_COLUMNS if name in rows), None):
        counts = rows[sex].fillna("unknown").astype(str).value_counts()
        found += [f"Sex, by image: {', '.join(f'{name} {count}' for name, count in counts.items())}."]
    return " ".join(found)


def _age(years: float, decimals: int = 0) -> str:
    return f"{years:.{decimals}f}" if years <= OLDEST else f"{OLDEST + 1}+"
