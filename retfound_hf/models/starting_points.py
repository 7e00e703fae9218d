"""Starting points: published weights by name, one row each in `STARTING_POINTS`, and how to bring them here."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import BadModelError, nearest
from .backbones import accepted_models

OFFICIAL_LICENSE = "cc-by-nc-4.0"  # of the official weights, and of whatever is derived from them
OFFICIAL_ORGANISATION = "YukunZhou"


@dataclass(frozen=True)
class StartingPoint:
    """Weights to start from.

    Attributes:
        name: as the commands take it.
        title: the weights in words.
        hub_id: where they are published, None where nobody has published them.
        license: of the weights; None where they have none of their own.
        make: the command that makes the folder, for weights that no `from_pretrained` reads as they are published.
        file: checkpoint in the repository, for those that `retfound fetch` converts.
        modality: of the images that they were trained on; None where it is not known.
    """

    name: str
    title: str
    hub_id: str | None = None
    license: str | None = None
    make: str | None = None
    file: str | None = None
    modality: str | None = None


def _official(name: str, repository: str, title: str, modality: str | None = None) -> StartingPoint:
    """Row of RETFound's own weights, one `.pth` file in a gated repository."""
    return StartingPoint(
        name, title, f"{OFFICIAL_ORGANISATION}/{repository}", OFFICIAL_LICENSE, f"retfound fetch {name}",
        f"{repository}.pth", modality,
    )  # fmt: skip


# The first five are the table 'Comparison models' of Zhou et al. 2023, Methods.
STARTING_POINTS = {
    row.name: row
    for row in (
        StartingPoint(
            "sl-imagenet", "ViT-L trained with labels on ImageNet-21k", "google/vit-large-patch16-224-in21k",
            "apache-2.0",
        ),
        StartingPoint(
            "ssl-imagenet", "ViT-L masked autoencoder on ImageNet-1k", "facebook/vit-mae-large", "apache-2.0"
        ),
        StartingPoint(
            "ssl-retinal", "ViT-L masked autoencoder on retinal images from random weights",
            make="retfound pretrain --config_name retfound-cfp --train_data SHARDS --output_dir ssl-retinal",
        ),
        _official("retfound-cfp", "RETFound_mae_natureCFP", "RETFound for colour fundus photographs", "cfp"),
        _official("retfound-oct", "RETFound_mae_natureOCT", "RETFound for OCT B-scans", "oct"),
        _official("retfound-meh", "RETFound_mae_meh", "RETFound trained on images of Moorfields Eye Hospital"),
        _official("retfound-shanghai", "RETFound_mae_shanghai", "RETFound trained on images from Shanghai"),
        _official("retfound-dinov2-meh", "RETFound_dinov2_meh", "DINOv2 trained on images of Moorfields Eye Hospital"),
        _official("retfound-dinov2-shanghai", "RETFound_dinov2_shanghai", "DINOv2 trained on images from Shanghai"),
    )
}  # fmt: skip


def accepted_weights() -> str:
    """What a command takes as a model, for help texts."""
    return f"{', '.join(STARTING_POINTS)}, or a folder or Hub id of a {accepted_models()} model"


def resolve(name_or_path: str) -> str:
    """Folder or Hub id that a name stands for; other names than those of starting points are returned unchanged.

    A folder of that name in the working directory always wins.

    Raises:
        BadModelError: a starting point whose folder has to be made first, or a file.
    """
    path = Path(name_or_path)
    if path.is_dir():
        return name_or_path
    start = find_starting_point(name_or_path)
    if path.is_file():
        wrong = f"is a {_instead(path)}"
    elif name_or_path == "retfound":
        wrong = "is ambiguous: give retfound-cfp or retfound-oct, or a folder"
    elif start is None and name_or_path.startswith(f"{OFFICIAL_ORGANISATION}/"):
        wrong = f"is an official checkpoint; convert it once with `retfound convert_checkpoint {name_or_path} FOLDER`"
    elif start is None:
        return name_or_path
    elif start.make is None:
        return str(start.hub_id)
    else:
        where = "not published" if start.hub_id is None else f"published as {start.hub_id}, which is gated"
        wrong = (
            f"({start.title}; {where}) has no folder here; make it with `{start.make}`, on another machine where this "
            "one has no network, or give the folder that has it"
        )
    raise BadModelError(f"model {name_or_path} {wrong}", model=name_or_path)


def _instead(file: Path) -> str:
    """Kind of a file that was given in place of a model folder, and what to give instead."""
    if (file.parent / "config.json").is_file():
        return f"file of a model folder; give the folder, {file.parent}"
    return (
        f"checkpoint file, not a model folder; convert it with `retfound convert_checkpoint {file} FOLDER` "
        "(scripts/convert_checkpoint.py), and give that folder"
    )


def find_starting_point(name_or_path: str, folders: bool = True) -> StartingPoint | None:
    """Row of a name or a Hub id; None for other names, and for a folder of that name unless `folders` is false."""
    if folders and Path(name_or_path).exists():
        return None
    by_id = {start.hub_id: start for start in STARTING_POINTS.values() if start.hub_id}
    return STARTING_POINTS.get(name_or_path) or by_id.get(name_or_path)


def how_to_bring(name_or_path: str) -> str:
    """Advice on weights that are not here, where the Hub cannot be reached; empty for other paths."""
    if name_or_path.startswith("retfound-"):
        return "; `retfound fetch NAME` makes the folders of the official weights, `retfound fetch --help` names them"
    if Path(name_or_path).is_absolute() or name_or_path.count("/") != 1:
        return nearest(name_or_path, STARTING_POINTS)
    start = find_starting_point(name_or_path)
    folder = start.name if start else name_or_path.split("/")[1]
    meant = f" (that is {start.name}: {start.title})" if start else ""
    return (
        f"; where there is a network, run `hf download {name_or_path} --local-dir {folder}`{meant}, then bring the "
        f"folder {folder} here and give its path"
    )
