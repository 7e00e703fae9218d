"""The command `prepare_images`: any number of images to parquet shards for pretraining."""

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ...runs.arguments import parse_arguments
from ...runs.errors import RetFoundError
from ...runs.record import write_run_record


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
    from .card import remove_card, write_card
    from .making import Part, make_shards
    from .opening import open_source
    from .pool import usable_cores
    from .pushing import push_shards
    from .records import Records
    from .summary import summarise
    from .worker import Preparer
    from .writing import shard_features

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
