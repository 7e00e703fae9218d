"""The weights that the paper compares, by name: what each stands for, and how to bring it where there is none."""

from dataclasses import dataclass
from pathlib import Path

from ..errors import RetFoundError, nearest

# Licence of the official weights, which whatever is derived from them carries on.
OFFICIAL_LICENSE = "cc-by-nc-4.0"
OFFICIAL_ORGANISATION = "YukunZhou"


@dataclass(frozen=True)
class StartingPoint:
    """Weights that fine-tuning may start from.

    Args:
        what: the weights in words.
        hub_id: where they are published, None where nobody has published them.
        license: of the weights; None where they have none of their own.
        make: the command that makes the folder, for weights that no `from_pretrained` reads as they are published.
    """

    what: str
    hub_id: str | None
    license: str | None
    make: str | None = None


def _official(modality: str, photographs: str) -> StartingPoint:
    hub_id = f"{OFFICIAL_ORGANISATION}/RETFound_mae_nature{modality.upper()}"
    return StartingPoint(
        f"RETFound for {photographs}",
        hub_id,
        OFFICIAL_LICENSE,
        f"retfound fetch retfound-{modality}",
    )


# Table 'Comparison models' of Zhou et al. 2023, Methods.
STARTING_POINTS = {
    "sl-imagenet": StartingPoint(
        "ViT-L trained with labels on ImageNet-21k", "google/vit-large-patch16-224-in21k", "apache-2.0"
    ),
    "ssl-imagenet": StartingPoint("ViT-L masked autoencoder on ImageNet-1k", "facebook/vit-mae-large", "apache-2.0"),
    "ssl-retinal": StartingPoint(
        "ViT-L masked autoencoder on retinal images from random weights",
        None,
        None,
        "retfound pretrain --config_name retfound-cfp --train_data SHARDS --output_dir ssl-retinal",
    ),
    "retfound-cfp": _official("cfp", "colour fundus photographs"),
    "retfound-oct": _official("oct", "OCT B-scans"),
}

ACCEPTED = f"{', '.join(STARTING_POINTS)}, or a folder or Hub id of a RETFound, ViT-MAE, ViT, DINOv2 or DINOv3 model"


def resolve(name_or_path: str) -> str:
    """The folder or Hub id that a name stands for; whatever is no name of a starting point comes back unchanged.

    A folder of that name in the working directory always wins.

    Raises:
        RetFoundError: a starting point whose folder has to be made first, or a file.
    """
    if Path(name_or_path).is_file():
        raise RetFoundError(f"model {name_or_path} is a {_instead(Path(name_or_path))}")
    if Path(name_or_path).exists():
        return name_or_path
    if name_or_path == "retfound":
        raise RetFoundError("model retfound: say which one, retfound-cfp or retfound-oct, or give a folder")
    start = STARTING_POINTS.get(name_or_path)
    if start is None and name_or_path.startswith(f"{OFFICIAL_ORGANISATION}/"):
        raise RetFoundError(
            f"model {name_or_path} is an official checkpoint; make a folder of it once with "
            f"`retfound fetch {name_or_path}`, and give that folder"
        )
    if start is None:
        return name_or_path
    if start.make is None:
        return str(start.hub_id)
    where = "published nowhere" if start.hub_id is None else f"published as {start.hub_id}, which is gated"
    raise RetFoundError(
        f"model {name_or_path} ({start.what}; {where}): there is no folder of that name here; make it with "
        f"`{start.make}`, on another machine where this one has no network, or give the folder that has it"
    )


def _instead(file: Path) -> str:
    """What a file given for a model folder is, and what to give instead."""
    if (file.parent / "config.json").is_file():
        return f"file of a model folder; give the folder, {file.parent}"
    return (
        f"checkpoint file, no model folder; make a folder of it with `retfound convert_checkpoint {file} FOLDER` "
        "(scripts/convert_checkpoint.py), and give that folder"
    )


def published(name_or_path: str) -> StartingPoint | None:
    """The starting point that a name or a Hub id means, None for a folder and for what is not in the table."""
    if Path(name_or_path).exists():
        return None
    by_id = {start.hub_id: start for start in STARTING_POINTS.values() if start.hub_id}
    return STARTING_POINTS.get(name_or_path) or by_id.get(name_or_path)


def how_to_bring(name_or_path: str) -> str:
    """What to do about weights that are not here, where the Hub cannot be reached; empty for what is no Hub id."""
    if name_or_path.startswith("retfound-"):
        return "; `retfound fetch NAME` makes the folders of the official weights, `retfound fetch --help` names them"
    if Path(name_or_path).is_absolute() or name_or_path.count("/") != 1:
        return nearest(name_or_path, STARTING_POINTS)
    names = [name for name, start in STARTING_POINTS.items() if start.hub_id == name_or_path]
    folder = names[0] if names else name_or_path.split("/")[1]
    meant = f" (that is {names[0]}: {STARTING_POINTS[names[0]].what})" if names else ""
    return (
        f"; where there is a network, `hf download {name_or_path} --local-dir {folder}`{meant}, then bring the folder "
        f"{folder} here and give its path"
    )
