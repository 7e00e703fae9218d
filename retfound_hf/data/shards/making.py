"""From a source to shards: what is not done yet, in order, on all cores."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

from tqdm import tqdm

from .items import Item, Source, Unit, cut_units, identity
from .pool import Workers
from .records import Record, Records
from .worker import Job, Preparer
from .writing import open_shard, shard_features

CHUNK = 8  # images that go to a worker at once


@dataclass(frozen=True)
class Part:
    """The units whose index leaves `number - 1` when divided by `count`: the share of one machine of several."""

    number: int = 1
    count: int = 1

    def owns(self, unit: int) -> bool:
        return unit % self.count == self.number - 1

    def images(self, total: int, unit_size: int) -> int:
        """How many of `total` images are in these units."""
        units, rest = divmod(total, unit_size)
        return len(range(self.number - 1, units, self.count)) * unit_size + rest * self.owns(units)


@dataclass(frozen=True)
class Chunk:
    """Some images of a unit, and the identity of the whole of it."""

    unit: Unit
    identity: str
    items: list[Item] = field(repr=False)


def make_shards(source: Source, records: Records, preparer: Preparer, part: Part, num_workers: int) -> int:
    """Write the shards of `part` that are not there yet, each followed by its record.

    Args:
        records: of the output folder, opened; its options hold `modality`, `shard_size` and `image_format`.

    Returns:
        How many images were read; those of shards that were there already are not.

    Raises:
        RetFoundError: the folder holds shards of another source, or no worker process can be kept alive.
    """
    options = records.options
    schema = shard_features(source.kept_features).arrow_schema
    total = part.images(len(source), options["shard_size"])
    progress = tqdm(total=total, desc=f"Preparing {options['modality'].upper()}", unit="image")
    read = 0
    with progress, Workers(num_workers, Job(source.opener(), preparer)) as workers:
        chunks = _unfinished(source, records, part, progress)
        results = workers.ordered((chunk, [item.ref for item in chunk.items]) for chunk in chunks)
        for index, of_unit in groupby(results, key=lambda result: result[0].unit.index):
            rejected: list[tuple[str, str]] = []
            with open_shard(records.shard(index), schema, options["image_format"]) as shard:
                for chunk, prepared in of_unit:
                    for item, image in zip(chunk.items, prepared, strict=True):
                        if image.reason:
                            rejected.append((item.id, image.reason))
                        else:
                            shard.add(item, image)
                    progress.update(len(chunk.items))
            images = len(chunk.unit.items)
            records.write(
                Record(
                    unit=index,
                    identity=chunk.identity,
                    source=records.source,
                    options=options,
                    images=images,
                    written=shard.rows,
                    image_bytes=shard.image_bytes,
                    shard_bytes=shard.path.stat().st_size if shard.rows else 0,
                    rejected=rejected,
                )
            )
            read += images
    units = -(-len(source) // options["shard_size"])
    for record in records:  # left of a time when the source was larger
        if record.unit >= units and part.owns(record.unit):
            records.remove(record.unit)
    return read


def _unfinished(source: Source, records: Records, part: Part, progress: tqdm) -> Iterator[Chunk]:
    for unit in cut_units(source, records.options["shard_size"]):
        if not part.owns(unit.index):
            continue
        digest = identity(source, unit)
        if records.is_done(unit.index, digest):
            progress.update(len(unit.items))
            continue
        for start in range(0, len(unit.items), CHUNK):
            yield Chunk(unit, digest, unit.items[start : start + CHUNK])
