"""A labelled set from the Hugging Face Hub, or from a local folder that `datasets` reads."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd

from ..errors import RetFoundError, join_names, one_line
from ..hub_access import look_up_data_set
from .checks import ACCEPTED_DATA
from .splits import normalise_split

if TYPE_CHECKING:
    import datasets


def read_stored(data: str, image_column: str) -> pd.DataFrame:
    """Read every split of a data set through `datasets`.

    Class labels become their names. An image is the path of its file where it lies in one, else its encoded bytes,
    which are held in memory: about 0.1 MB for each photograph of 512 pixels.

    Args:
        data: Hub id, a parquet file that holds images, a folder of parquet, JSON or CSV files, or a folder that
            `save_to_disk` wrote.
        image_column: name of the image column; if absent, the only column of type `datasets.Image` is taken.

    Returns:
        One row per image: `id` (the name of its file where all names differ, else such as "train/17"), `image`,
        `split`, and all other columns. A set published as one single part has no splits yet.

    Raises:
        RetFoundError: nothing there that `datasets` can read, a split of unknown name, or no image column.
    """
    parts = load_splits(data)
    unknown = [name for name in parts if normalise_split(name) is None]
    if unknown and len(parts) > 1:
        raise RetFoundError(
            f"{data} has the split(s) {join_names(unknown)}; accepted are train, val (validation, valid, dev) and test"
        )
    tables = []
    for name, part in parts.items():
        table = _table(part, find_image_column(part, image_column, data), Path(data).absolute())
        table["number"] = [f"{normalise_split(name) or name}/{index}" for index in range(len(table))]
        tables.append(table.assign(split=normalise_split(name)) if len(parts) > 1 else table)
    table = pd.concat(tables, ignore_index=True)
    numbers = table.pop("number")
    if table["id"].isna().any() or table["id"].duplicated().any():
        table["id"] = numbers
    return table


def load_splits(data: str, accepted: str = ACCEPTED_DATA) -> dict[str, "datasets.Dataset"]:
    """Every split of a data set, memory-mapped.

    Args:
        data: Hub id, a parquet file, a folder that `datasets` reads, or one that `save_to_disk` wrote.
        accepted: for the error, what may be given.

    Raises:
        RetFoundError: nothing there that `datasets` can read.
    """
    import datasets

    saved = any(os.path.isfile(os.path.join(data, name)) for name in ("dataset_dict.json", "state.json"))
    try:
        if not os.path.exists(data):
            look_up_data_set(data)
        if os.path.isfile(data):
            loaded = datasets.Dataset.from_parquet(data)
        else:
            loaded = datasets.load_from_disk(data) if saved else datasets.load_dataset(data)
    except Exception as error:  # loading runs over the network and through many readers, each with its own errors
        where = "holds nothing that datasets can read" if os.path.exists(data) else "is neither here nor on the Hub"
        raise RetFoundError(f"data {data} {where} ({one_line(error)}); give {accepted}") from error
    return {"train": loaded} if isinstance(loaded, datasets.Dataset) else dict(loaded)


def find_image_column(part: "datasets.Dataset", wanted: str, data: str) -> str:
    """`wanted`, or the only column of type `datasets.Image`."""
    import datasets

    columns = [name for name, feature in part.features.items() if isinstance(feature, datasets.Image)]
    if wanted in columns:
        return wanted
    if len(columns) == 1:
        return columns[0]
    raise RetFoundError(
        f"{data} has no image column {wanted!r}; its columns are {join_names(part.column_names, 20)}, of which "
        f"{join_names(columns) or 'none'} hold images; name the right one with --image_column"
    )


def _table(part: "datasets.Dataset", image_column: str, root: Path) -> pd.DataFrame:
    import datasets

    images = list(part.cast_column(image_column, datasets.Image(decode=False))[image_column])
    table = part.remove_columns(image_column).to_pandas()
    for name, feature in part.features.items():
        if isinstance(feature, datasets.ClassLabel):
            names = dict(enumerate(feature.names))
            table[name] = table[name].map(names)  # -1, the mark of a hidden label, becomes missing
    table = table.drop(columns=[name for name in ("id", "image") if name in table.columns])
    table["image"] = pd.Series([image["bytes"] or image["path"] for image in images], dtype=object)
    table["id"] = pd.Series([_name(image["path"], root) for image in images], dtype=object)
    return table


def _name(path: str | None, root: Path) -> str | None:
    if not path:
        return None
    return Path(path).relative_to(root).as_posix() if Path(path).is_relative_to(root) else Path(path).name
