"""Predictions for images without labels, with thresholds and quality, and the command `predict`."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from accelerate.utils import gather_object
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from ..data.image_cache import OnBadImage, prepare_image, unreadable_images
from ..data.image_sources import ImageRef, ImageSource, Part
from ..data.labels import find_patients
from ..data.stored_images import ACCEPTED_FILES
from ..data.tables import check_unique_images
from ..errors import UnreadableImageError, require
from ..evaluation.predictions import Predictions
from ..evaluation.report import ReportArguments, read_points
from ..evaluation.thresholds import OperatingPoint
from ..files import exclusive_folder, refuse_existing, write_table
from ..images.quality import assess_quality
from ..images.reading import read_image
from ..options import build_arguments, parse_arguments
from ..record import write_run_record
from .predict import Classifier, ForwardArguments, PreparedSet, forward_here, load_classifier, process_state, to_scores

BATCHES = 16  # that are prepared before the model runs over them
QUALITY = ("quality", "quality_reasons")


@dataclass
class PredictArguments:
    model_name_or_path: str = field(metadata={"help": "fine-tuned folder, adapter folder or Hub id"})
    data: str = field(metadata={"help": ACCEPTED_FILES})
    patient_column: str | None = field(
        default=None,
        metadata={
            "help": "column of the patients, or image or none as in finetune; default: patient_id, if there is one"
        },
    )


@dataclass
class PredictForwardArguments(ForwardArguments):
    on_bad_image: OnBadImage = field(
        default="skip", metadata={"help": "unreadable images: skip, count and list them, or stop and name them"}
    )


@dataclass(frozen=True)
class PredictedImages:
    """Result of `predict`.

    Attributes:
        predictions: without labels; `columns` has the quality, and 1 or 0 for each threshold.
        rejected: id and reason of each image that could not be read.
        output: `predictions.csv`, None where nothing was written.
    """

    predictions: Predictions
    rejected: list[tuple[str, str]]
    output: Path | None = None

    @property
    def table(self) -> pd.DataFrame:
        """`predictions.csv` as a table: `Predictions.table`, thresholds and quality."""
        columns = self.predictions.columns
        return self.predictions.table([] if columns is None else list(columns.columns))


def predict(
    model: str | Path, data: str | Path | Sequence[Any], output_dir: str | Path | None = None, **options: Any
) -> PredictedImages:
    """Predict the classes or numbers of images without labels.

    Args:
        model: fine-tuned folder, adapter folder or Hub id.
        data: as `open_files` takes it: files, a table, a Hub id, an address, or a list of paths, bytes or
            `PIL.Image`s.
        output_dir: folder for `predictions.csv`, `rejected.csv` and `run.json`; None writes nothing.
        **options: fields of `PredictArguments` and `PredictForwardArguments`, named as the flags of
            `retfound predict`.

    Raises:
        BadDataError: no image, none that can be read, or with `on_bad_image="error"` one that cannot.
    """
    given = {"model_name_or_path": str(model), "data": data, "output_dir": output_dir, **options}
    return run(*build_arguments((PredictArguments, PredictForwardArguments), given))


def run(arguments: PredictArguments, forward_arguments: PredictForwardArguments) -> PredictedImages:
    """Predict and write, in the order of the ids (of shards: their own); several processes share the images.

    Probabilities are those of `evaluate` on the same images, to the bit.
    """
    with exclusive_folder(forward_arguments.output_dir if process_state().is_main_process else None):
        return _predict(arguments, forward_arguments)


def _predict(arguments: PredictArguments, forward_arguments: PredictForwardArguments) -> PredictedImages:
    require("on_bad_image", forward_arguments.on_bad_image, ("error", "skip"))
    started, state, folder = time.time(), process_state(), forward_arguments.output_dir
    if folder is not None and state.is_main_process:
        refuse_existing(folder, forward_arguments.overwrite_output_dir)
    classifier = load_classifier(arguments.model_name_or_path)
    points = read_points(arguments.model_name_or_path, classifier.class_names, ReportArguments())
    source = forward_arguments.source(arguments.data)
    name = arguments.data if isinstance(arguments.data, str) else source.name
    known = _known(source, arguments.patient_column, name)
    found = _all_processes(list(_run(classifier, source, forward_arguments)))
    rejected = [(one.id, one.reason) for one in found if one.reason]
    found = [one for one in found if not one.reason]
    if rejected and (forward_arguments.on_bad_image == "error" or not found):
        raise unreadable_images(rejected, len(rejected) + len(found), forward_arguments.on_bad_image, name)
    scores = to_scores(np.stack([one.logits for one in found]), classifier.problem_type)
    columns = pd.DataFrame({"id": [one.id for one in found]}).merge(known, on="id", how="left")
    columns = columns.assign(**_decisions(points, classifier.class_names, scores))
    columns[list(QUALITY)] = [one.quality for one in found]
    predictions = Predictions.of_table(
        columns, None, scores, classifier.class_names, classifier.problem_type, classifier.class_order
    )
    result = PredictedImages(predictions, rejected, None if folder is None else Path(folder) / "predictions.csv")
    if result.output is not None and state.is_main_process:
        predictions.to_csv(result.output, list(columns))
        if rejected:
            write_table(result.output.parent / "rejected.csv", pd.DataFrame(rejected, columns=["id", "reason"]))
        write_run_record(
            result.output.parent, "predict", [arguments, forward_arguments], images=len(predictions),
            seconds=round(time.time() - started, 1), rejected_images=rejected,
        )  # fmt: skip
    state.wait_for_everyone()
    return result


def _known(source: ImageSource, patient_column: str | None, name: str) -> pd.DataFrame:
    """`id` of every image, and `patient_id` and `eye` where the source tells them."""
    table = source.columns()
    if table is None:
        return pd.DataFrame({"id": []}, dtype=object)
    check_unique_images(table.drop(columns="split", errors="ignore"), name)
    patients = find_patients(table.assign(image=table["id"]), (), patient_column, name, check=False)
    return table[["id", *(["eye"] if "eye" in table else [])]].assign(patient_id=patients)


def _decisions(points: Sequence[OperatingPoint], names: Sequence[str], scores: np.ndarray) -> dict[str, np.ndarray]:
    """1 where a class reaches a threshold, else 0, by `positive/<class>/<criterion>`."""
    found = {}
    for point in points:
        aim = point.criterion if point.target is None else f"{point.criterion}_{point.target:g}"
        reached = scores[:, list(names).index(point.label)] >= point.threshold
        found[f"positive/{point.label}/{aim}"] = reached.astype(int)
    return found


@dataclass
class _Seen:
    """One image: what the network is shown, and later what it said."""

    id: str
    place: tuple[int, int]  # in the order of the results
    image: Image.Image | None = None
    quality: tuple[str, str] = ("", "")
    reason: str = ""
    logits: np.ndarray | None = None


class _Images(Dataset):
    """Images read once: prepared for the network, and assessed."""

    def __init__(self, refs: Sequence[tuple[tuple[int, int], ImageRef]], classifier: Classifier):
        self.refs, processor = refs, classifier.processor
        self.size, self.crop = processor.resized_size, bool(processor.do_fundus_crop)
        self.modality = getattr(classifier.model.config, "modality", None)

    def __len__(self) -> int:
        return len(self.refs)

    def __getitem__(self, index: int) -> _Seen:
        place, ref = self.refs[index]
        try:
            image = read_image(ref.image)
        except UnreadableImageError as error:
            return _Seen(ref.id, place, reason=error.reason)
        quality = assess_quality(image, self.modality)
        prepared = prepare_image(image, self.size, self.crop)
        return _Seen(ref.id, place, prepared, (quality.verdict, "; ".join(quality.reasons)))


def _run(classifier: Classifier, source: ImageSource, arguments: ForwardArguments) -> Iterator[_Seen]:
    """This process's share of the images, with their logits; readable ones fill batches as `evaluate` fills them."""
    state, options = process_state(), arguments.options
    workers, chunk = options.pop("num_workers"), BATCHES * options["batch_size"]
    ready: list[_Seen] = []

    def answered() -> list[_Seen]:
        images = PreparedSet([{"image": one.image} for one in ready])
        logits, _ = forward_here(
            classifier.model, images, classifier.processor, lambda outputs: outputs.logits, description=None, **options
        )
        for one, values in zip(ready, logits, strict=True):
            one.logits, one.image = values, None
        return ready

    with tqdm(total=len(source), desc="predict", unit="image", disable=not state.is_main_process) as progress:
        for number, refs in enumerate(_groups(source)):
            places = [((number, index), ref) for index, ref in enumerate(refs)]
            own = _Images(places[state.process_index :: state.num_processes], classifier)
            for one in DataLoader(own, batch_size=None, num_workers=workers, collate_fn=_as_it_is):
                progress.update(state.num_processes)
                if one.reason:
                    yield one
                    continue
                ready.append(one)
                if len(ready) == chunk:
                    yield from answered()
                    ready = []
        if ready:
            yield from answered()


def _groups(source: ImageSource) -> Iterator[Sequence[ImageRef]]:
    """All images by their ids; of shards, whose images take memory, one after the other."""
    parts = source.parts(1000)
    first = next(parts)
    if not isinstance(first, Part):
        yield first.refs
        for part in parts:
            yield part.refs
        return
    yield sorted([*first.refs, *(ref for part in parts for ref in part.refs)], key=lambda ref: ref.id)


def _as_it_is(item: _Seen) -> _Seen:
    return item


def _all_processes(found: list[_Seen]) -> list[_Seen]:
    shares = gather_object(found) if process_state().num_processes > 1 else found
    return sorted(shares, key=lambda one: one.place)


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, predict, and print where the results are."""
    arguments, forward_arguments = parse_arguments(
        PredictArguments, PredictForwardArguments, argv=argv,
        description="Predictions for images without labels, to predictions.csv.",
    )  # fmt: skip
    found = run(arguments, forward_arguments)
    if process_state().is_main_process and found.output is not None:
        counts = found.table["quality"].value_counts()
        unfit = [f"{counts[verdict]} {verdict}" for verdict in ("reject", "doubtful") if verdict in counts]
        print(f"{len(found.predictions)} images predicted", *([f"(quality: {', '.join(unfit)})"] if unfit else []))
        if found.rejected:
            print(f"{len(found.rejected)} images could not be read: {found.output.parent / 'rejected.csv'}")
        print(found.output)
