"""The licence that a folder has to carry on: that of the official weights holds for whatever is made from them."""

from pathlib import Path
from typing import Any

from ..models.starting_points import OFFICIAL_LICENSE, OFFICIAL_ORGANISATION
from ..runs.errors import RetFoundError
from .contents import Contents, read_json

OFFICIAL_PREFIX = f"{OFFICIAL_ORGANISATION}/RETFound"


def carried_licence(contents: Contents, card: dict[str, Any], base_model: str | None = None) -> tuple[str, str] | None:
    """The licence that the weights bring along and how that is known, or None where nothing tells.

    Args:
        card: metadata of the folder's card.
        base_model: what the model was made from, beside what the folder says of it.
    """
    if stated := _stated(contents.config):
        return stated, "config.json says so (weights_license)"
    for base in [*([base_model] if base_model else []), *_bases(contents, card)]:
        if base.startswith(OFFICIAL_PREFIX):
            return OFFICIAL_LICENSE, f"it is made from {base}"
        if Path(base).is_dir():
            found = _of_folder(Path(base))
            if found is not None:
                return found, f"it is made from {base}"
    return None


def check_licence(contents: Contents, card: dict[str, Any], base_model: str | None = None) -> str:
    """The card's licence; arguments as of `carried_licence`.

    Raises:
        RetFoundError: the card has none, or another than the weights carry on.
    """
    stated, carried = card.get("license"), carried_licence(contents, card, base_model)
    if carried is not None and stated != carried[0]:
        raise RetFoundError(
            f"the card of {contents.folder} says license: {stated or 'nothing'}, and the weights carry on "
            f"{carried[0]}, since {carried[1]}; put `license: {carried[0]}` back into README.md"
        )
    if not stated:
        raise RetFoundError(
            f"the card of {contents.folder} has no license; add one to the metadata of README.md, such as "
            "`license: apache-2.0`, if the weights are yours to license"
        )
    return stated


def _bases(contents: Contents, card: dict[str, Any]) -> list[str]:
    named = card.get("base_model") or []
    bases = [named] if isinstance(named, str) else list(named)
    record = contents.folder / "run.json"
    if record.is_file():
        arguments = read_json(record).get("arguments", {})
        bases += [arguments[name] for name in ("model_name_or_path", "checkpoint") if arguments.get(name)]
    if contents.kind == "adapter":
        bases.append(read_json(contents.folder / "adapter_config.json").get("base_model_name_or_path") or "")
    return [base for base in bases if base]


def _of_folder(folder: Path) -> str | None:
    config = folder / "config.json"
    return _stated(read_json(config)) if config.is_file() else None


def _stated(config: dict[str, Any]) -> str | None:
    """A head around a stock encoder keeps what the encoder came with one level down."""
    return config.get("weights_license") or (config.get("encoder_config") or {}).get("weights_license")
