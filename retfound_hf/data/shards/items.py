"""What a source of images gives: items one after the other, in a fixed order, cut into units."""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

ACCEPTED = (
    "a folder of images, a CSV or parquet table with a column image, a folder of parquet shards, a folder that "
    "save_to_disk wrote, or the id of a data set on the Hugging Face Hub"
)


@dataclass(frozen=True)
class Item:
    """One image of a source, not read yet.

    Attributes:
        id: the name under which it is kept.
        ref: what the source's `opener` finds it by; small, since it travels to the worker processes.
        kept: values of the columns that are carried along, in the order of `Source.kept_features`.
    """

    id: str
    ref: Any
    kept: tuple[Any, ...] = ()


class Source:
    """A place that images come from. A subclass is all that another kind of source needs (volumes, archives).

    Attributes:
        name: absolute path, or Hub id.
        kept_features: `datasets` features of the columns that are carried along.
    """

    name: str
    kept_features: "dict[str, Any] | datasets.Features"

    def __len__(self) -> int:
        raise NotImplementedError

    def items(self) -> Iterator[Item]:
        """All items, always in the same order; never more than one folder or batch of them in memory."""
        raise NotImplementedError

    def stamp(self, item: Item) -> Any:
        """What changes when the content of the item does; its repr is hashed."""
        raise NotImplementedError

    def opener(self) -> Callable[[Any], str | bytes]:
        """A function that can be sent to another process and turns a `ref` into a path or the bytes of a file."""
        raise NotImplementedError


@dataclass(frozen=True)
class Unit:
    """The source's images `[index * size, (index + 1) * size)`, which become one shard."""

    index: int
    items: list[Item] = field(repr=False)

    @property
    def name(self) -> str:
        return f"train-{self.index:05d}"


def cut_units(source: Source, size: int) -> Iterator[Unit]:
    """The source in units of `size` images, the last of which may be smaller."""
    items = source.items()
    index = 0
    while some := list(islice(items, size)):
        yield Unit(index, some)
        index += 1


def identity(source: Source, unit: Unit) -> str:
    """Digest of the names, stamps and carried values of a unit's images: another one means to prepare it anew."""
    digest = hashlib.blake2b(digest_size=16)
    for item in unit.items:
        digest.update(repr((item.id, source.stamp(item), item.kept)).encode())
    return digest.hexdigest()
