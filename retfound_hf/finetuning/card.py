"""The card of a fine-tuned folder, filled from the run and its files: no number in it is typed."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from ..models import cards
from ..models.loading import is_adapter
from ..record import hardware
from ..vocabulary import PROBLEM_TYPES, SINGLE_LABEL
from .arguments import FinetuneArguments
from .methods import Method

if TYPE_CHECKING:
    from .finetune import Prepared

OLDEST = 89  # years that may be told; HIPAA's safe harbour wants all above as one group
AGE_COLUMNS, SEX_COLUMNS = ("age", "patient_age"), ("sex", "gender", "patient_sex")


def write_finetuned_card(
    folder: Path, name: str, args: FinetuneArguments, method: Method, prepared: "Prepared", seconds: float
) -> Path:
    """Write the card of a folder whose model and `metrics.json` are written already.

    Args:
        folder: where it is written.
        name: of the folder when it is done.
        args, method, prepared: of the run.
        seconds: that the run took.
    """
    base, labelled = args.model_name_or_path, prepared.labelled
    start, adapter = cards.describe_start(base, args.config_name), is_adapter(str(folder))
    on_hub = not Path(args.data).exists()
    data = args.data if on_hub else Path(args.data).resolve().name
    metadata: dict[str, Any] = {"pipeline_tag": "image-classification"}
    metadata |= cards.base_metadata(base, "adapter" if adapter else "finetune")
    if adapter:
        metadata["library_name"] = "peft"
    if on_hub:
        metadata["datasets"] = [data]
    if index := cards.model_index(folder, name, data, data if on_hub else None):
        metadata["model-index"] = index
    level = args.report.level
    test = f"{len(prepared.splits['test'].rows)} images{'' if level == 'image' else f', metrics by {level}'}"
    kind = labelled.problem_type
    return cards.write_card(
        folder,
        "adapter" if adapter else "finetuned",
        metadata,
        folder_name=name,
        title=f"{name}: RETFound fine-tuned ({method.title})",
        description=f"Started from {start}; trained: {method.trains or method.title}.",
        problem_type=kind,
        targets=f"Each image has {PROBLEM_TYPES[kind].label}: {', '.join(labelled.class_names)}.",
        training_data=_training_data(prepared, data),
        preprocessing=cards.describe_preprocessing(prepared.classifier.processor),
        evaluation=cards.evaluation_text(folder, f"the test split, {test}"),
        calibration=cards.calibration_text(folder, kind),
        cost=cards.cost_text(seconds, hardware()),
        provenance=(
            f"The {method.chooses} was chosen on the validation split. Seed {args.seed}. `run.json` holds every "
            "setting and version, and stays with the owner when the folder is published."
        ),
    )


def _training_data(prepared: "Prepared", data: str) -> str:
    """Images, patients and classes of each split, and what the data say of age and sex."""
    labelled, known = prepared.labelled, prepared.labelled.patients_known
    classes = labelled.class_names if labelled.problem_type == SINGLE_LABEL else ()
    rows = []
    for split, part in prepared.splits.items():
        row = [split, f"{len(part.rows)}", *([f"{part.rows['patient_id'].nunique()}"] if known else [])]
        rows.append(row + [f"{(part.targets == index).sum()}" for index in range(len(classes))])
    columns = ["split", "images", *(["patients"] if known else []), *classes]
    table = [columns, ["---", *["---:"] * (len(columns) - 1)], *rows]
    lines = [f"| {' | '.join(cell.replace('|', '/') for cell in row)} |" for row in table]
    apart = "by patient" if known else "by image, as no patients were given"
    text = f"`{data}`, the splits kept apart {apart}:\n\n" + "\n".join(lines)
    described = _population(pd.concat([part.rows for part in prepared.splits.values()]))
    return f"{text}\n\n{described or 'The data say nothing of age, sex or origin of the patients.'}"


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
