"""Command `prepare_images`: any number of images to parquet shards for pretraining."""

import csv
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.parquet as pq

from ..errors import RetFoundError
from ..files import atomic_file
from ..hub_access import translate_hub_errors
from ..options import parse_arguments
from ..record import write_run_record
from .shards import FOLDER, Records


@dataclass(frozen=True)
class Summary:
    """Counts over the records in the output folder.

    Attributes:
        units: finished; `images` of the source are in them, of which `written` are in the shards.
        duplicates: written images whose pixels equal those of an earlier one.
        image_bytes, shard_bytes: sizes of the encoded images and of the parquet files.
        first_rejected: "id: reason" of one, or None.
    """

    units: int
    images: int
    written: int
    rejected: int
    duplicates: int
    image_bytes: int
    shard_bytes: int
    first_rejected: str | None


def summarise(records: Records) -> Summary:
    """Write `rejected.csv` and `duplicates.csv` and count."""
    names = ("images", "written", "image_bytes", "shard_bytes")
    counts = dict.fromkeys(names, 0)
    shards: list[tuple[Path, int]] = []
    units = rejected = 0
    first_rejected = None
    with _rows_of_csv(records.out / "rejected.csv", ("id", "reason")) as rows:
        for record in records:
            units += 1
            rejected += len(record.rejected)
            for name in names:
                counts[name] += getattr(record, name)
            rows.writerows(record.rejected)
            if first_rejected is None and record.rejected:
                first_rejected = ": ".join(record.rejected[0])
            if record.written:
                shards.append((records.shard(record.unit), record.written))
    duplicates = 0
    with _rows_of_csv(records.out / "duplicates.csv", ("id", "duplicate_of")) as rows:
        for pair in exact_duplicates(shards):
            rows.writerow(pair)
            duplicates += 1
    return Summary(units=units, rejected=rejected, duplicates=duplicates, first_rejected=first_rejected, **counts)


def exact_duplicates(shards: Iterable[tuple[Path, int]]) -> Iterator[tuple[str, str]]:
    """(id, id of the first image with the same hash) of every later one, in the order of the shards.

    Some 50 bytes an image are held, whatever the images' size.

    Args:
        shards: path and number of rows of each.
    """
    shards = list(shards)
    ends = np.cumsum([rows for _, rows in shards])
    hashes = np.empty((int(ends[-1]) if shards else 0, 2), np.uint64)
    for (path, rows), end in zip(shards, ends, strict=True):
        column = pq.read_table(path, columns=["hash"])["hash"].to_pylist()
        hashes[end - rows : end] = np.frombuffer(bytes.fromhex("".join(column)), np.uint64).reshape(-1, 2)
    order = np.lexsort(hashes.T)  # stable: of equal ones the earliest comes first
    same = np.zeros(len(order), bool)
    same[1:] = (hashes[order[1:]] == hashes[order[:-1]]).all(axis=1)
    del hashes
    starts = np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))
    later, first = order[same], order[starts[same]]
    sorting = np.argsort(later)
    ids = _ids(shards, ends, np.union1d(later, first))
    for place in sorting:
        yield ids[int(later[place])], ids[int(first[place])]


def _ids(shards: list[tuple[Path, int]], ends: np.ndarray, positions: np.ndarray) -> dict[int, str]:
    """Ids at some positions of all rows; only the shards that hold one are read."""
    found: dict[int, str] = {}
    in_shard = np.searchsorted(ends, positions, side="right")
    for number in np.unique(in_shard):
        path, rows = shards[number]
        here = positions[in_shard == number]
        column = pq.read_table(path, columns=["id"])["id"].take(here - (ends[number] - rows))
        found.update(zip(here.tolist(), column.to_pylist(), strict=True))
    return found


@contextmanager
def _rows_of_csv(path: Path, header: tuple[str, ...]) -> Iterator[Any]:
    """A writer of rows to a file that appears whole."""
    with atomic_file(path) as partial, open(partial, "w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(header)
        yield rows


if TYPE_CHECKING:
    import datasets

NAMES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans"}
TEXT = """# {count:,} {name}, {size} x {size}

Prepared for pretraining with `retfound prepare_images`: {steps}. Nothing of the originals' metadata was kept.

```python
from datasets import load_dataset

images = load_dataset("{source}", split="train")  # add streaming=True to read without a copy
```

| column | holds |
|---|---|
| `image` | the prepared image, 8-bit RGB, {encoding} |
| `id` | where it comes from: its path within the source, or its `id` there |
| `hash` | BLAKE2b digest (128 bits) of the prepared pixels; equal for exact duplicates |
{kept}
| images | |
|---|---|
| in the source | {images:,} |
| in the shards | {count:,} ({megabytes:,.0f} MB, from {units} of up to {shard_size:,} source images) |
| rejected, see `rejected.csv` | {rejected:,} |
| exact duplicates, kept, see `duplicates.csv` | {duplicates:,} |

The terms of use and the protection of patients are those of the source. An `id` may tell more than you want to pass
on; look at some before you share the shards. `{records}/` holds the records by which a stopped run goes on; delete
it when the shards are complete and stay as they are.
"""


def write_card(out: Path, summary: Summary, features: "datasets.Features", options: dict[str, Any], name: str) -> None:
    """Write `README.md` and `dataset_info.json`, from which `load_dataset(out)` takes features and counts.

    Args:
        name: by which readers load the data set: its folder, or its id on the Hub.
    """
    import datasets
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    split = datasets.SplitInfo("train", num_bytes=summary.image_bytes, num_examples=summary.written)
    info = datasets.DatasetInfo(
        features=features,
        splits=datasets.SplitDict({"train": split}),
        download_size=summary.shard_bytes,
        dataset_size=summary.image_bytes,
    )
    card = DatasetCardData(
        pretty_name=f"{summary.written:,} {NAMES[options['modality']]}",
        tags=["medical", "retina", options["modality"]],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    with atomic_file(out / "README.md") as partial:
        text = f"---\n{card.to_yaml()}\n---\n\n{_text(summary, options, name)}"
        partial.write_text(text, encoding="utf-8")
    with atomic_file(out / "dataset_info.json") as partial, tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder, pretty_print=True)
        shutil.copyfile(Path(folder) / "dataset_info.json", partial)


def remove_card(out: Path) -> None:
    """Remove what `write_card` wrote, since `datasets` refuses a card of no images."""
    for name in ("README.md", "dataset_info.json"):
        (out / name).unlink(missing_ok=True)


def _text(summary: Summary, options: dict[str, Any], name: str) -> str:
    crop = "cropped to the field of view, padded to a square" if options["modality"] == "cfp" else "not cropped"
    return TEXT.format(
        count=summary.written,
        name=NAMES[options["modality"]],
        size=options["image_size"],
        steps=f"{crop}, resized (bicubic, antialiased)",
        source=name,
        encoding=f"JPEG of quality {options['quality']}, 4:4:4" if options["image_format"] == "jpeg" else "PNG",
        kept="".join(f"| `{name}` | as in the source |\n" for name in options["keep_columns"]),
        images=summary.images,
        megabytes=summary.shard_bytes / 1e6,
        units=f"{summary.units:,} unit{'s' if summary.units != 1 else ''}",
        shard_size=options["shard_size"],
        rejected=summary.rejected,
        duplicates=summary.duplicates,
        records=FOLDER,
    )


# Of the rest, `run.json` and the records tell the paths of this machine.
PUSHED = ["data/train-*.parquet", "README.md", "dataset_info.json", "rejected.csv", "duplicates.csv"]


def push_shards(out: Path, repo_id: str, private: bool) -> str:
    """Upload what `prepare_images` wrote; a push that was cut off goes on, and shards that are gone here go there.

    Args:
        out: folder with all shards.
        repo_id: data set on the Hub, made if it is not there.
        private: whether a new one is; one that is there stays as it is.

    Returns:
        Its address.

    Raises:
        RetFoundError: no token, no right to write, no connection.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with translate_hub_errors(repo_id, "pushed to"):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repo_id,
            repo_type="dataset",
            folder_path=out,
            allow_patterns=PUSHED,
            delete_patterns="data/train-*.parquet",
            commit_message="Images prepared with retfound prepare_images",
        )
    return str(url)


@dataclass
class PrepareArguments:
    source: str = field(
        metadata={
            "positional": True,
            "help": "folder of images, table with a column image, folder of parquet shards, or Hub id",
        }
    )
    out: str = field(metadata={"positional": True, "help": "folder to write; a stopped run goes on in it"})
    modality: Literal["cfp", "oct"] = field(
        metadata={"help": "colour fundus photographs (cropped to the field of view) or OCT B-scans (not cropped)"}
    )
    image_size: int = field(default=256, metadata={"help": "side of the square images in pixels"})
    image_format: Literal["jpeg", "png"] = field(default="jpeg", metadata={"help": "png keeps every pixel"})
    quality: int = field(default=95, metadata={"help": "of JPEG, 1 to 100"})
    min_side: int = field(default=64, metadata={"help": "reject images with fewer pixels on the shorter side"})
    shard_size: int = field(default=5000, metadata={"help": "source images for each shard"})
    num_workers: int | None = field(default=None, metadata={"help": "processes; by default one for each usable core"})
    part: str | None = field(
        default=None, metadata={"help": "i/n: every n-th shard from the i-th, for n machines that share the work"}
    )
    split: str | None = field(default=None, metadata={"help": "of a data set; all of its splits by default"})
    image_column: str = field(default="image", metadata={"help": "of a table or a data set"})
    keep_columns: list[str] = field(
        default_factory=list, metadata={"help": "columns of a table or a data set to carry along; none by default"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "ORG/NAME: upload the shards to this data set on the Hub once all are made"}
    )
    public: bool = field(
        default=False, metadata={"help": "make a new data set on the Hub public; by default it is private"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that is not empty"})

    def __post_init__(self) -> None:
        for name, low in (("image_size", 16), ("min_side", 1), ("shard_size", 1), ("num_workers", 1), ("quality", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise RetFoundError(f"--{name} {value} is too small; give at least {low}")
        if self.quality > 100:
            raise RetFoundError(f"--quality {self.quality} is too large; give at most 100")
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            raise RetFoundError(f"--push_to_hub {self.push_to_hub} is no id of a data set; give ORG/NAME")
        first, last = self.share
        if self.overwrite_output_dir and (first, last) != (1, 1):
            raise RetFoundError(
                "--overwrite_output_dir with --part would remove the other parts' shards; remove the folder yourself "
                "before the parts begin"
            )

    @property
    def share(self) -> tuple[int, int]:
        """`part` as numbers, (1, 1) for the whole."""
        if self.part is None:
            return 1, 1
        match = re.fullmatch(r"(\d+)/(\d+)", self.part)
        if match is None or not 1 <= int(match[1]) <= int(match[2]):
            raise RetFoundError(f"--part {self.part} is not i/n with i from 1 to n; give such as 1/8 to 8/8")
        return int(match[1]), int(match[2])

    @property
    def options(self) -> dict[str, Any]:
        """What the shards depend on beside their images."""
        names = ("modality", "image_size", "image_format", "min_side", "shard_size", "split", "image_column")
        quality = self.quality if self.image_format == "jpeg" else None
        return {name: getattr(self, name) for name in names} | {"quality": quality, "keep_columns": self.keep_columns}


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, prepare what is not prepared yet, and say what came of it."""
    started = time.time()
    (arguments,) = parse_arguments(
        PrepareArguments, argv=argv, description="Images to parquet shards that pretraining and `datasets` read."
    )
    from .image_sources import open_source
    from .shards import Part, Preparer, Records, make_shards, shard_features, usable_cores

    out = Path(arguments.out)
    if out.resolve().is_relative_to(Path(arguments.source).resolve()):
        raise RetFoundError(f"output folder {out} lies in the source {arguments.source}; choose one outside of it")
    source = open_source(
        arguments.source,
        split=arguments.split,
        image_column=arguments.image_column,
        keep_columns=arguments.keep_columns,
    )
    records = Records(out, source.name, arguments.options)
    records.open(arguments.overwrite_output_dir)
    preparer = Preparer(
        arguments.image_size,
        arguments.modality == "cfp",
        arguments.min_side,
        arguments.image_format,
        arguments.quality,
    )
    num_workers = arguments.num_workers or usable_cores()
    began = time.time()
    read = make_shards(source, records, preparer, Part(*arguments.share), num_workers)
    seconds = time.time() - began
    summary = summarise(records)
    if summary.written:
        name = arguments.push_to_hub or out.name
        write_card(out, summary, shard_features(source.kept_features), arguments.options, name)
    else:
        remove_card(out)
    units = -(-len(source) // arguments.shard_size)
    write_run_record(
        out,
        "prepare_images",
        arguments,
        seconds=round(time.time() - started, 1),
        num_workers=num_workers,
        images_read=read,
        images_per_second=round(read / seconds, 1),
        units_in_source=units,
        **vars(summary),
    )
    if summary.images and not summary.written:
        raise RetFoundError(
            f"none of the {summary.images:,} images could be prepared (such as {summary.first_rejected}); see "
            f"{out / 'rejected.csv'}"
        )
    print(
        f"{summary.written:,} images written, {summary.rejected:,} rejected, {summary.duplicates:,} exact duplicates; "
        f"{summary.units:,} of {units:,} units done"
    )
    for count, name in ((summary.rejected, "rejected.csv"), (summary.duplicates, "duplicates.csv")):
        if count:
            print(out / name)
    speed = f", {read / seconds:,.0f} images/s with {num_workers} workers" if read else ""
    print(f"{read:,} images read in this run{speed}")
    print(out)
    if arguments.push_to_hub is not None:
        if summary.units < units:
            print(f"not pushed to the Hub yet: {units - summary.units:,} units are to be made by other parts")
        else:
            print(push_shards(out, arguments.push_to_hub, private=not arguments.public))
