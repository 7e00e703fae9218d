"""A labelled set from a folder: {train,val,test}/<class>/*, or <class>/* without splits."""

import logging
from pathlib import Path

import pandas as pd

from ..images.reading import find_images
from ..runs.errors import RetFoundError
from .checks import check_columns, listed
from .splits import SPLITS
from .tables import read_table

logger = logging.getLogger(__name__)
SPLIT_ALIASES = {"validation": "val", "valid": "val", "dev": "val", **{split: split for split in SPLITS}}
METADATA = "metadata.csv"


def normalise_split(name: object) -> str | None:
    """One of "train", "val", "test" for any accepted spelling, else None."""
    return SPLIT_ALIASES.get(str(name).strip().lower())


def class_folders(root: Path) -> dict[str | None, list[Path]]:
    """Class folders by split (None: no split folders); empty where `root` has no image in any class folder."""
    splits = [folder for folder in _folders(root) if normalise_split(folder.name)]
    found = {normalise_split(folder.name): _folders(folder) for folder in splits} or {None: _folders(root)}
    if len(splits) > len(found):
        raise RetFoundError(f"{root} has two folders for one split ({listed(f.name for f in splits)}); keep one")
    return found if any(find_images(folder) for folders in found.values() for folder in folders) else {}


def read_folder(root: Path, folders: dict[str | None, list[Path]], allow_empty: bool = False) -> pd.DataFrame:
    """List the images of `class_folders(root)`.

    Args:
        allow_empty: pass over empty class folders (an evaluation need not hold every class).

    Returns:
        One row per image: `id`, `image`, `label`, `split` where there are split folders, and the columns of
        `metadata.csv` beside the folders (its `image` column holds paths relative to it) where there is one.

    Raises:
        RetFoundError: an empty class folder, or metadata that fit none of the images.
    """
    rows = []
    for split, parents in folders.items():
        for parent in parents:
            images = find_images(parent)
            if not images and not allow_empty:
                raise RetFoundError(f"class folder {parent} holds no image; add some, or remove the folder")
            rows += [(path.relative_to(root).as_posix(), str(path.absolute()), parent.name, split) for path in images]
    table = pd.DataFrame(rows, columns=["id", "image", "label", "split"])
    if None in folders:
        table = table.drop(columns="split")
    return _with_metadata(table, root / METADATA) if (root / METADATA).is_file() else table


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _with_metadata(table: pd.DataFrame, path: Path) -> pd.DataFrame:
    metadata = read_table(path).rename(columns={"file_name": "image"})
    check_columns(metadata, ["image"], path, "its header: paths relative to the folder")
    metadata["image"] = metadata["image"].str.replace("\\", "/").str.removeprefix("./")
    if metadata["image"].duplicated().any():
        repeated = metadata.loc[metadata["image"].duplicated(), "image"].unique()
        raise RetFoundError(f"{path} lists {len(repeated)} image(s) more than once ({listed(repeated)})")
    undescribed = table.loc[~table["id"].isin(metadata["image"]), "id"]
    if len(undescribed) == len(table):
        raise RetFoundError(
            f"{path} describes none of the images: it names {metadata['image'].iloc[0]!r} where the folder has "
            f"{table['id'].iloc[0]!r}; give paths relative to {path.parent}"
        )
    if len(undescribed):
        logger.warning("%s does not describe %d of the images (%s)", path, len(undescribed), listed(undescribed))
    # The folders are what the user sees and moves files between: they decide over the metadata's columns.
    extra = metadata.drop(columns=[name for name in ("id", "label", "split") if name in metadata.columns])
    return table.merge(extra.rename(columns={"image": "id"}), on="id", how="left", validate="one_to_one")
