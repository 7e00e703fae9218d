"""Sources that `datasets` reads: parquet shards, folders of `save_to_disk`, data sets on the Hub."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow.compute as pc

from ...runs.errors import RetFoundError, nearest
from ..checks import listed
from ..stored import find_image_column, load_splits
from .files import as_utf8, file_stamp
from .items import ACCEPTED, Item, Source

if TYPE_CHECKING:
    import datasets

BATCH = 1000


class StoredSource(Source):
    """The rows of one or all splits of a data set, memory-mapped.

    Named by the column `id`; or the path of an image's file within the data set's folder; or split, row and the name
    of the file that the image was, such as `train/17/eye.jpg`.
    """

    def __init__(self, data: str, split: str | None, image_column: str, keep_columns: Sequence[str]):
        import datasets

        self.name = str(Path(data).absolute()) if os.path.exists(data) else data
        splits = load_splits(data, ACCEPTED)
        if split is not None and split not in splits:
            raise RetFoundError(f"{data} has no split {split!r}; it has {listed(splits)}{nearest(split, splits)}")
        splits = {name: part for name, part in splits.items() if split in (None, name)}
        first = next(iter(splits.values()))
        for column in keep_columns:
            if column not in first.features:
                columns = first.column_names
                raise RetFoundError(
                    f"{data} has no column {column!r}; its columns are {listed(columns, 20)}; name the right ones "
                    f"with --keep_columns{nearest(column, columns)}"
                )
        self.kept_features = datasets.Features({name: first.features[name] for name in keep_columns})
        self._image = find_image_column(first, image_column, data)
        self._splits = {
            name: part.cast_column(self._image, datasets.Image(decode=False)) for name, part in splits.items()
        }
        self._fingerprints = [part._fingerprint for part in splits.values()]

    def __len__(self) -> int:
        return sum(part.num_rows for part in self._splits.values())

    def items(self) -> Iterator[Item]:
        for number, (split, part) in enumerate(self._splits.items()):
            wanted = [self._image, *(["id"] if "id" in part.column_names else []), *self.kept_features]
            rows = part.select_columns(list(dict.fromkeys(wanted))).with_format("arrow")
            for start in range(0, part.num_rows, BATCH):
                batch = rows[start : start + BATCH]
                images = batch[self._image]
                paths = pc.struct_field(images, "path").to_pylist()
                external = pc.is_null(pc.struct_field(images, "bytes")).to_pylist()
                names = batch["id"].to_pylist() if "id" in wanted else [None] * len(paths)
                kept = zip(*(batch[name].to_pylist() for name in self.kept_features), strict=True)
                values = list(kept) or [()] * len(paths)
                columns = zip(paths, external, names, values, strict=True)
                for row, (path, is_external, name, some) in enumerate(columns, start):
                    name = self._fallback_name(split, row, path) if name is None else as_utf8(str(name))
                    yield Item(name, (number, row, path if is_external else None), some)

    def stamp(self, item: Item) -> Any:
        number, _, path = item.ref
        return self._fingerprints[number], file_stamp(path) if path else None

    def opener(self) -> Callable[[tuple[int, int, str | None]], str | bytes]:
        return RowOpener([part.select_columns(self._image) for part in self._splits.values()], self._image)

    def _fallback_name(self, split: str, row: int, path: str | None) -> str:
        if path and path.startswith(self.name + "/"):
            return as_utf8(path.removeprefix(self.name + "/"))
        return as_utf8("/".join([split, str(row), *([os.path.basename(path)] if path else [])]))


class RowOpener:
    """Reads the bytes of an image from its data set, which a worker process maps into memory for itself."""

    def __init__(self, splits: "list[datasets.Dataset]", image_column: str):
        self.splits = splits
        self.image_column = image_column

    def __call__(self, ref: tuple[int, int, str | None]) -> str | bytes:
        number, row, _ = ref
        image = self.splits[number][row][self.image_column]
        if image is None:
            raise RetFoundError("the row holds no image")
        return image["path"] if image["bytes"] is None else image["bytes"]
