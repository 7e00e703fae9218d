"""The official weights from the Hub: with the user's token, checked, converted, as a finished folder."""

from dataclasses import dataclass
from pathlib import Path

from ..models.conversion.convert import convert_checkpoint
from ..models.starting_points import OFFICIAL_ORGANISATION
from ..runs.errors import RetFoundError, nearest
from ..runs.files import refuse_existing
from .download import download


@dataclass(frozen=True)
class Official:
    """A repository of official weights; `modality` is None where its name does not tell."""

    repo_id: str
    modality: str | None = None

    @property
    def file(self) -> str:
        return f"{self.repo_id.split('/')[1]}.pth"


OFFICIAL = {
    "retfound-cfp": Official(f"{OFFICIAL_ORGANISATION}/RETFound_mae_natureCFP", "cfp"),
    "retfound-oct": Official(f"{OFFICIAL_ORGANISATION}/RETFound_mae_natureOCT", "oct"),
    "retfound-meh": Official(f"{OFFICIAL_ORGANISATION}/RETFound_mae_meh"),
    "retfound-shanghai": Official(f"{OFFICIAL_ORGANISATION}/RETFound_mae_shanghai"),
    "retfound-dinov2-meh": Official(f"{OFFICIAL_ORGANISATION}/RETFound_dinov2_meh"),
    "retfound-dinov2-shanghai": Official(f"{OFFICIAL_ORGANISATION}/RETFound_dinov2_shanghai"),
}


def fetch(
    name: str, output_dir: str | Path, modality: str | None = None, revision: str = "main", overwrite: bool = False
) -> Path:
    """Download official weights and turn them into a model folder.

    A download that breaks off goes on where it stopped; the folder appears whole or not at all. With the weights in
    the cache and `HF_HUB_OFFLINE` set, the network is left alone. Mirrors: `HF_ENDPOINT`. No hash is pinned: none is
    published beside the weights, and the download is checked against the one that the Hub states.

    Args:
        name: a name in `OFFICIAL`, or its repository.
        output_dir: the folder to make.
        modality: `cfp` or `oct`, needed where the name does not tell.
        revision: branch, tag or commit of the repository.

    Raises:
        RetFoundError: an unknown name, the wrong modality, no token, no access, no network, a damaged download.
    """
    official = find_official(name)
    wanted = official.modality or modality
    if modality is not None and modality != wanted:
        raise RetFoundError(
            f"{name} holds weights for {official.modality}, and --modality {modality} was given; fetch "
            f"retfound-{modality} for {modality}, or leave --modality out"
        )
    if wanted is None:
        raise RetFoundError(
            f"the modality of {name} is not told by its name; say what it was trained on, as its page tells: "
            "--modality cfp or --modality oct"
        )
    refuse_existing(output_dir, overwrite)
    path = download(official.repo_id, official.file, revision)
    return convert_checkpoint(path, output_dir, modality=wanted, overwrite=overwrite)


def find_official(name: str) -> Official:
    """The weights of a name or a repository."""
    for short, official in OFFICIAL.items():
        if name in (short, official.repo_id):
            return official
    raise RetFoundError(
        f"there are no official weights called {name!r}{nearest(name, OFFICIAL)}; accepted: {', '.join(OFFICIAL)}"
    )
