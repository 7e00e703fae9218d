"""Front door and command `prepare_images`: any number of images to parquet shards for pretraining."""

import logging
import re
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow.parquet as pq

from ..cluster import ClusterArguments
from ..errors import BadArgumentError, BadDataError, OutputError, UnreadableImageError, require, require_range
from ..files import atomic_file, exclusive_folder, output_faults, read_rows, rows_of_csv
from ..hub_access import translate_hub_errors
from ..images.field_of_view import CROP_VERSION
from ..images.reading import modality_mismatch
from ..options import build_arguments, parse_arguments
from ..processes import usable_cores
from ..record import as_code, as_literal, write_run_record
from ..vocabulary import MODALITIES
from .image_cache import Preparer
from .image_sources import ImageSource
from .shards import RECORDS, Records, make_shards, number_images, shard_features
from .stored_images import open_source

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)
# Of the rest, `run.json` and the records tell the paths of this machine.
PUSHED = ["data/train-*.parquet", "README.md", "dataset_info.json", "rejected.csv", "duplicates.csv"]
# Sentences of the card about names, and those in their place where none are sent.
ID_IS, NUMBER_IS = "where it comes from: its path within the source, or its `id` there", "its shard and its row"
REJECTED_IN, REJECTED = "rejected, see `rejected.csv`", "rejected"
ADVICE = "An `id` may tell more than you want to pass on; look at some before you share the shards."
CARD = """# {count:,} {name}, {size} x {size}

Prepared for pretraining with `retfound prepare_images`: {steps}. Nothing of the originals' metadata was kept.

```python
from datasets import load_dataset

images = load_dataset({source}, split="train")  # add streaming=True to read without a copy
```

| column | holds |
|---|---|
| `image` | the prepared image, 8-bit RGB, {encoding} |
| `id` | {id_is} |
| `hash` | BLAKE2b digest (128 bits) of the prepared pixels; equal for exact duplicates |
{kept}
| images | |
|---|---|
| in the source | {images:,} |
| in the shards | {count:,} ({megabytes:,.0f} MB, from {units} of up to {shard_size:,} source images) |
| {rejected_in} | {rejected:,} |
| exact duplicates, kept, see `duplicates.csv` | {duplicates:,} |

The terms of use and the protection of patients are those of the source. {advice} `{records}/` holds the records
by which a stopped run goes on; delete it when the shards are complete and stay as they are.
"""


@dataclass
class PrepareArguments:
    source: str = field(
        metadata={"positional": True, "help": "folder of images or shards, table with a column image, or Hub id"}
    )
    out: str = field(metadata={"positional": True, "help": "folder to write; a stopped run goes on in it"})
    modality: str = field(metadata={"help": "cfp (cropped to the field of view) or oct (not cropped)"})
    image_size: int = field(default=256, metadata={"help": "side of the square images in pixels"})
    image_format: Literal["jpeg", "png"] = field(default="jpeg", metadata={"help": "png keeps every pixel"})
    quality: int = field(default=95, metadata={"help": "of JPEG, 1 to 100"})
    min_side: int = field(default=64, metadata={"help": "reject images with fewer pixels on the shorter side"})
    shard_size: int = field(default=5000, metadata={"help": "source images for each shard"})
    num_workers: int | None = field(default=None, metadata={"help": "processes; by default one for each usable core"})
    split: str | None = field(default=None, metadata={"help": "of a data set; all of its splits by default"})
    image_column: str = field(default="image", metadata={"help": "of a table or a data set"})
    image_root: str | None = field(default=None, metadata={"help": "folder of the relative paths of a table or set"})
    keep_columns: list[str] = field(
        default_factory=list, metadata={"help": "columns of a table or a data set to carry along; none by default"}
    )
    push_to_hub: str | None = field(
        default=None, metadata={"help": "ORG/NAME: upload the shards to this data set on the Hub once all are made"}
    )
    push_names: bool = field(
        default=False,
        metadata={"help": "also send the names of the images and rejected.csv; by default numbers replace the names"},
    )
    public: bool = field(
        default=False, metadata={"help": "make a new data set on the Hub public; by default it is private"}
    )
    overwrite_output_dir: bool = field(default=False, metadata={"help": "begin anew in a folder that is not empty"})

    def __post_init__(self) -> None:
        require("modality", self.modality, MODALITIES)
        require("image_format", self.image_format, ("jpeg", "png"))
        for name, low in (("image_size", 16), ("min_side", 1), ("shard_size", 1), ("num_workers", 1)):
            if getattr(self, name) is not None:
                require_range(name, getattr(self, name), low)
        require_range("quality", self.quality, 1, 100)
        if self.push_to_hub is not None and not re.fullmatch(r"[\w.-]+/[\w.-]+", self.push_to_hub):
            message = f"`push_to_hub={self.push_to_hub}` is not the id of a data set; give ORG/NAME"
            raise BadArgumentError(message, field="push_to_hub", value=self.push_to_hub)

    @property
    def options(self) -> dict[str, Any]:
        """Settings that the shards depend on beside their images, the version of the crop rule included."""
        names = ("modality", "image_size", "image_format", "min_side", "shard_size", "split", "image_column")
        quality = self.quality if self.image_format == "jpeg" else None
        own = {"quality": quality, "keep_columns": self.keep_columns, "crop_version": self.crop_version}
        return {name: getattr(self, name) for name in names} | own

    @property
    def crop_version(self) -> int | None:
        """Version of the rule by which the images are cropped, None where they are not."""
        return CROP_VERSION if MODALITIES[self.modality].crop else None


@dataclass(frozen=True)
class PreparedShards:
    """Output folder of `prepare_images` and what is in it.

    Attributes:
        folder: with `data/train-*.parquet`.
        units: shards that are finished, of `units_in_source`; fewer only while other machines make theirs.
        images: of the source in these shards, of which `written` could be prepared.
        duplicates: written images whose pixels equal those of an earlier one.
        image_bytes, shard_bytes: sizes of the encoded images and of the parquet files.
        rejected_images: number of the images that were left out; `rejected` tells which.
        images_read: by this run; those of shards that were there already are not.
        images_per_second, num_workers: of this run.
        url: address on the Hub, where the shards were pushed.
    """

    folder: Path
    units: int
    units_in_source: int
    images: int
    written: int
    rejected_images: int
    duplicates: int
    image_bytes: int
    shard_bytes: int
    images_read: int
    images_per_second: float
    num_workers: int
    url: str | None = None

    @property
    def rejected(self) -> list[tuple[str, str]]:
        """(id, reason) of each image that was left out."""
        return [(row["id"], row["reason"]) for row in read_rows(self.folder / "rejected.csv")]


def prepare_images(source: str | Path, out: str | Path, modality: str, **options: Any) -> PreparedShards:
    """Crop, resize and store images as parquet shards; a stopped run goes on where it was.

    Args:
        source: folder of images, table with a column `image`, folder of parquet shards, or Hub id.
        out: folder to write.
        modality: key of `MODALITIES`; colour fundus photographs are cropped to the field of view.
        options: other fields of `PrepareArguments`, such as `image_size=224, keep_columns=["age"]`, and of
            `ClusterArguments`.

    Raises:
        BadArgumentError, BadDataError, OutputError: an option, the source or the folder does not fit.
    """
    given = {"source": str(source), "out": str(out), "modality": modality, **options}
    return run_preparation(*build_arguments([PrepareArguments, ClusterArguments], given))


def run_preparation(arguments: PrepareArguments, cluster: ClusterArguments) -> PreparedShards:
    """Prepare what is not prepared yet, and write the card and `run.json`; see `prepare_images`."""
    cluster.refuse_overwriting(arguments.overwrite_output_dir)
    with exclusive_folder(arguments.out, cluster.part or ""):
        return _run(arguments, cluster)


def _run(arguments: PrepareArguments, cluster: ClusterArguments) -> PreparedShards:
    started, out = time.time(), Path(arguments.out)
    if out.resolve().is_relative_to(Path(arguments.source).resolve()):
        message = f"output folder {out} lies in the source {arguments.source}; choose one outside of it"
        raise OutputError(message, path=out)
    source = open_source(
        arguments.source,
        split=arguments.split,
        image_column=arguments.image_column,
        image_root=arguments.image_root,
        keep_columns=arguments.keep_columns,
    )
    records = Records(out, source.name, arguments.options)
    records.open(arguments.overwrite_output_dir)
    units = -(-len(source) // arguments.shard_size)
    crop = MODALITIES[arguments.modality].crop
    preparer = Preparer(arguments.image_size, crop, arguments.min_side, arguments.image_format, arguments.quality)
    _warn_of_modality(source, preparer, arguments.modality)
    num_workers = arguments.num_workers or usable_cores()
    began = time.time()
    if cluster.cluster is None:
        read = make_shards(source, records, preparer, cluster.share, num_workers)
    else:
        parts = source.parts(arguments.shard_size)
        left = [part.index for part in parts if not records.is_done(part)]
        task = partial(run_preparation, replace(arguments, overwrite_output_dir=False, push_to_hub=None))
        shares = [share for share in cluster.shares if any(map(share.owns, left))]
        done = cluster.run(task, out, shares)
        read, num_workers = sum(each.images_read for each in done), sum(each.num_workers for each in done)
        records.remove_beyond(source, cluster.share)
    made = _summarise(
        records,
        units_in_source=units,
        images_read=read,
        images_per_second=round(read / (time.time() - began), 1),
        num_workers=num_workers,
    )
    if made.units == units and (cluster.cluster is not None or cluster.share.count > 1):
        records.check_whole(source)
    if made.written:
        name = arguments.push_to_hub or out.name
        _write_card(made, shard_features(source.features), arguments.options, name)
    else:  # `datasets` refuses a card of no images
        for name in ("README.md", "dataset_info.json"):
            (out / name).unlink(missing_ok=True)
    facts = {name: value for name, value in vars(made).items() if name not in ("folder", "url", "rejected_images")}
    facts |= {"rejected": made.rejected_images, "first_rejected": None}
    if made.rejected_images:
        facts["first_rejected"] = ": ".join(made.rejected[0])
    write_run_record(out, "prepare_images", [arguments, cluster], seconds=round(time.time() - started, 1), **facts)
    if made.images and not made.written and made.units == units:
        raise BadDataError(
            f"none of the {made.images:,} images could be prepared (such as {facts['first_rejected']}); see "
            f"{out / 'rejected.csv'}",
            source=arguments.source,
        )
    if arguments.push_to_hub is not None and made.units == units:
        url = push_shards(out, arguments.push_to_hub, not arguments.public, arguments.push_names)
        return PreparedShards(**{**vars(made), "url": url})
    return made


def _warn_of_modality(source: ImageSource, preparer: Preparer, modality: str) -> None:
    """Warn if some 16 of the first thousand images look like another modality; unreadable ones do not count."""
    opened, few = source.opener(), []
    for ref in islice(source, 0, 1000, max(1, min(len(source), 1000) // 16)):
        with suppress(UnreadableImageError):
            few.append(preparer.glance(opened(ref.image)))
    if (seen := modality_mismatch(few, modality)) is not None:
        logger.warning("%s: %s, but `modality=%s`: check that it is the right one", source.name, seen, modality)


def _summarise(records: Records, **facts: Any) -> PreparedShards:
    """Write `rejected.csv` and `duplicates.csv`, and count over the records in the folder."""
    counts: dict[str, Any] = dict.fromkeys(("images", "written", "image_bytes", "shard_bytes"), 0)
    shards: list[tuple[Path, int]] = []
    units = rejected = duplicates = 0
    with rows_of_csv(records.out / "rejected.csv", ("id", "reason")) as write:
        for record in records:
            units += 1
            rejected += len(record.rejected)
            counts = {name: count + getattr(record, name) for name, count in counts.items()}
            for row in record.rejected:
                write(row)
            if record.written:
                shards.append((records.shard(record.unit), record.written))
    with rows_of_csv(records.out / "duplicates.csv", ("id", "duplicate_of")) as write:
        for pair in exact_duplicates(shards):
            write(pair)
            duplicates += 1
    return PreparedShards(records.out, units, rejected_images=rejected, duplicates=duplicates, **counts, **facts)


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
    ids = _ids(shards, ends, np.union1d(later, first))
    for place in np.argsort(later):
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


def _write_card(made: PreparedShards, features: "datasets.Features", options: dict[str, Any], name: str) -> None:
    """Write `README.md` and `dataset_info.json`, from which `load_dataset(folder)` takes features and counts.

    Args:
        made: what is in the folder.
        features: of the shards.
        options: of `PrepareArguments`.
        name: by which readers load the data set: its folder, or its id on the Hub.
    """
    import datasets
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    split = datasets.SplitInfo("train", num_bytes=made.image_bytes, num_examples=made.written)
    info = datasets.DatasetInfo(
        features=features,
        splits=datasets.SplitDict({"train": split}),
        download_size=made.shard_bytes,
        dataset_size=made.image_bytes,
    )
    modality, version = MODALITIES[options["modality"]], options["crop_version"]
    card = DatasetCardData(
        pretty_name=f"{made.written:,} {modality.title}",
        tags=["medical", "retina", modality.name],
        configs=[{"config_name": "default", "data_files": [{"split": "train", "path": "data/*.parquet"}]}],
    )
    DatasetInfosDict({"default": info}).to_dataset_card_data(card)
    crop = f"cropped to the field of view (rule {version}), padded to a square" if modality.crop else "not cropped"
    text = CARD.format(
        count=made.written,
        name=modality.title,
        size=options["image_size"],
        steps=f"{crop}, resized (bicubic, antialiased)",
        source=as_literal(name),
        encoding=f"JPEG of quality {options['quality']}, 4:4:4" if options["image_format"] == "jpeg" else "PNG",
        kept="".join(f"| {as_code(column)} | as in the source |\n" for column in options["keep_columns"]),
        images=made.images,
        megabytes=made.shard_bytes / 1e6,
        units=f"{made.units:,} unit{'s' if made.units != 1 else ''}",
        shard_size=options["shard_size"],
        rejected=made.rejected_images,
        duplicates=made.duplicates,
        records=RECORDS,
        id_is=ID_IS,
        rejected_in=REJECTED_IN,
        advice=ADVICE,
    )
    with atomic_file(made.folder / "README.md") as partial:
        partial.write_text(f"---\n{card.to_yaml()}\n---\n\n{text}", encoding="utf-8")
    with atomic_file(made.folder / "dataset_info.json") as partial, tempfile.TemporaryDirectory() as folder:
        info.write_to_directory(folder, pretty_print=True)
        shutil.copyfile(Path(folder) / "dataset_info.json", partial)


def push_shards(out: Path, repo_id: str, private: bool, names: bool = False) -> str:
    """Upload what `prepare_images` wrote; a push that was cut off goes on, and shards that are gone here go there.

    Args:
        out: folder with all shards.
        repo_id: data set on the Hub, made if it is not there.
        private: whether a new one is; one that is there stays as it is.
        names: send the images' names and `rejected.csv`; otherwise a temporary copy without names is sent.

    Returns:
        Its address.

    Raises:
        HubAccessError: no token, no right to write, no connection.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    with translate_hub_errors(repo_id, "pushed to"):
        url = api.create_repo(repo_id, repo_type="dataset", private=private, exist_ok=True)
        with nullcontext(out) if names else _without_names(out) as folder:
            api.upload_folder(
                repo_id=repo_id,
                repo_type="dataset",
                folder_path=folder,
                allow_patterns=PUSHED,
                delete_patterns=["data/train-*.parquet", "rejected.csv"],
                commit_message="Images prepared with retfound prepare_images",
            )
    return str(url)


@contextmanager
def _without_names(out: Path) -> Iterator[Path]:
    """Temporary copy of what is pushed, in which shard and row (`00003-000127`) stand for the names of images."""
    with output_faults(out), tempfile.TemporaryDirectory(prefix=".push-", dir=out) as name:
        stage = Path(name)
        shards = []
        for path in sorted((out / "data").glob("train-*.parquet")):
            copy = stage / "data" / path.name
            shards.append((copy, number_images(path, copy)))
        with rows_of_csv(stage / "duplicates.csv", ("id", "duplicate_of")) as write:
            for pair in exact_duplicates(shards):
                write(pair)
        card = (out / "README.md").read_text(encoding="utf-8")
        for told, instead in ((ID_IS, NUMBER_IS), (REJECTED_IN, REJECTED), (f"{ADVICE} ", "")):
            card = card.replace(told, instead)
        (stage / "README.md").write_text(card, encoding="utf-8")
        shutil.copyfile(out / "dataset_info.json", stage / "dataset_info.json")
        yield stage


def main(argv: Sequence[str] | None = None) -> None:
    """Parse the arguments, prepare the images, and say what came of it."""
    arguments, cluster = parse_arguments(
        PrepareArguments,
        ClusterArguments,
        argv=argv,
        description="Images to parquet shards that pretraining and `datasets` read.",
    )
    made = run_preparation(arguments, cluster)
    print(
        f"{made.written:,} images written, {made.rejected_images:,} rejected, {made.duplicates:,} exact duplicates; "
        f"{made.units:,} of {made.units_in_source:,} units done"
    )
    for count, name in ((made.rejected_images, "rejected.csv"), (made.duplicates, "duplicates.csv")):
        if count:
            print(made.folder / name)
    speed = f", {made.images_per_second:,.0f} images/s with {made.num_workers} workers" if made.images_read else ""
    print(f"{made.images_read:,} images read in this run{speed}")
    print(made.folder)
    if made.url is not None:
        print(made.url)
    elif arguments.push_to_hub is not None:
        left = made.units_in_source - made.units
        print(f"not pushed to the Hub yet: {left:,} units are to be made by other parts")
