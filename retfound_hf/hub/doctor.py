"""Check of what this machine has and lacks for the commands, and what mends it: `diagnose`, the command `doctor`.

Nothing is asked of the Hub unless the caller wants it, and no token is ever shown.
"""

import os
import platform
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Literal

from ..errors import HubAccessError, RetFoundError
from ..hub_access import translate_hub_errors
from ..models.loading import STARTING_POINTS, StartingPoint
from ..options import parse_arguments
from ..processes import usable_cores
from ..record import versions

PACKAGE, MAIN = "retfound-hf", ("torch", "transformers", "peft")
# Bytes: of a ViT-L at work, of its weights and the folder made from them, and of what loader processes share.
MEMORY, DISK, SHARED_MEMORY = 4e9, 3e9, 5e8
State = Literal["ok", "missing", "wrong"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        group, name: what it belongs to, and what it is.
        value: what was found.
        state: "ok"; "missing", which some tasks need; or "wrong", which makes commands fail.
        fix: the command or the setting that mends it; empty where nothing is to be mended.
    """

    group: str
    name: str
    value: str
    state: State = "ok"
    fix: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """All findings; as text, a table and what to do."""

    findings: tuple[Finding, ...]

    @property
    def wrong(self) -> tuple[Finding, ...]:
        """Those that make commands fail."""
        return tuple(finding for finding in self.findings if finding.state == "wrong")

    def __str__(self) -> str:
        width, lines = max(len(finding.name) for finding in self.findings), []
        for number, finding in enumerate(self.findings):
            if number == 0 or finding.group != self.findings[number - 1].group:
                lines += ["", finding.group]
            lines.append(f"  {finding.state:<8} {finding.name:<{width}}  {finding.value}")
            lines += [f"  {'':<8} {'':<{width}}  -> {finding.fix}"] if finding.fix else []
        return "\n".join(lines[1:])


def diagnose(online: bool = False) -> Diagnosis:
    """Look at versions, device, memory, disk, access to the Hub and decoders.

    Args:
        online: ask the Hub whose the token is and whether it may read the official weights.
    """
    return Diagnosis((*_versions(), *_device(), *_space(), *_access(online), *_decoders()))


def _required(extra: str = "") -> Iterator[tuple[str, str | None, bool]]:
    """Requirement, installed version and whether it will do, of the package itself or of an extra."""
    from packaging.requirements import Requirement

    for text in metadata.requires(PACKAGE) or ():
        asked = Requirement(text)
        marked = asked.marker is not None and "extra" in str(asked.marker)
        if marked != bool(extra) or (asked.marker and not asked.marker.evaluate({"extra": extra})):
            continue
        try:
            version = metadata.version(asked.name)
        except metadata.PackageNotFoundError:
            version = None
        wanted = f"{asked.name}{asked.specifier}"
        yield wanted, version, version is not None and asked.specifier.contains(version, prereleases=True)


def _versions() -> Iterator[Finding]:
    group = "versions"
    try:
        own, required = metadata.version(PACKAGE), list(_required())
    except metadata.PackageNotFoundError:
        yield Finding(group, PACKAGE, "runs from a checkout that is not installed", "wrong", "pip install -e .")
        return
    yield Finding(group, "Python", platform.python_version())
    yield Finding(group, PACKAGE, own)
    good = {wanted for wanted, _, will_do in required if will_do}
    for wanted, version, _ in required:
        if wanted not in good:
            found = "is not installed" if version is None else f"{version} is installed"
            yield Finding(group, wanted, found, "wrong", f"pip install '{wanted}'")
    shown = [f"{name} {version}" for name, version in versions().items() if name in MAIN and version]
    yield Finding(group, "packages", f"{len(good)} of {len(required)} as required; {', '.join(shown)}")


def _device() -> Iterator[Finding]:
    import torch

    group, name = "device", "accelerator"
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(index)
            precision = "bf16 (--bf16)" if torch.cuda.get_device_capability(index) >= (8, 0) else "fp16 (--fp16)"
            what = torch.cuda.get_device_name(index)
            yield Finding(group, f"GPU {index}", f"{what}, {_gb(free)} of {_gb(total)} free, {precision}")
    elif torch.accelerator.is_available():
        yield Finding(group, name, f"{torch.accelerator.current_accelerator()}, float32")
    elif shutil.which("nvidia-smi") and torch.version.cuda is None:
        found = f"there is an NVIDIA GPU, and PyTorch {torch.__version__} is built without CUDA"
        yield Finding(group, name, found, "wrong", "pip install --force-reinstall torch torchvision")
    elif shutil.which("nvidia-smi"):
        found = f"PyTorch for CUDA {torch.version.cuda} finds no GPU; nvidia-smi tells whether the driver does"
        yield Finding(group, name, found, "wrong", "nvidia-smi")
    else:
        yield Finding(group, name, "none: `--method linear` is made for CPUs")
    yield Finding(group, "processor", f"{usable_cores()} CPU core{'s' if usable_cores() > 1 else ''}, float32")


def _gb(size: float) -> str:
    return f"{size / 1e9:.1f} GB"


def _space() -> Iterator[Finding]:
    from huggingface_hub import constants

    group, memory = "memory and disk", _available_memory()
    small = "retfound finetune --config_name retfound-tiny --method linear ..."
    yield _enough(group, "memory", memory, MEMORY, f"the official ViT-L takes {_gb(MEMORY)}", "missing", small)
    takes = f"the official weights and their folder take {_gb(DISK)}"
    for name, path, fix in (
        ("working folder", Path.cwd(), "cd to a folder on a larger disk"),
        ("Hub cache", Path(constants.HF_HUB_CACHE), "export HF_HOME=FOLDER_ON_A_LARGER_DISK"),
    ):
        there = next(place for place in (path, *path.resolve().parents) if place.exists())
        if not os.access(there, os.W_OK):
            yield Finding(group, name, f"{there} cannot be written", "wrong", fix)
        else:
            yield _enough(group, name, shutil.disk_usage(there).free, DISK, takes, "wrong", fix)
    if Path("/dev/shm").is_dir():
        takes = f"loader processes take up to {_gb(SHARED_MEMORY)}"
        fix = "docker run --shm-size 8g ..., or --dataloader_num_workers 0"
        yield _enough(group, "/dev/shm", shutil.disk_usage("/dev/shm").free, SHARED_MEMORY, takes, "wrong", fix)


def _enough(group: str, name: str, free: float, least: float, takes: str, state: State, fix: str) -> Finding:
    if free < least:
        return Finding(group, name, f"{_gb(free)} free; {takes}", state, fix)
    return Finding(group, name, f"{_gb(free)} free")


def _available_memory() -> float:
    """Bytes that this process can still take: of the machine, or of its container."""
    import psutil

    available = psutil.virtual_memory().available
    try:
        limit, used = (Path("/sys/fs/cgroup", f"memory.{name}").read_text().strip() for name in ("max", "current"))
        return available if limit == "max" else min(available, int(limit) - int(used))
    except (OSError, ValueError):  # no container, or an older kind of one
        return available


def _access(online: bool) -> Iterator[Finding]:
    from huggingface_hub import constants, get_token

    group, asks = "Hub", online and not constants.HF_HUB_OFFLINE
    if online and not asks:
        yield Finding(group, "connection", "HF_HUB_OFFLINE is set", "wrong", "unset HF_HUB_OFFLINE")
    if get_token() is None:
        yield Finding(group, "token", "none: the official weights need one", "missing", "hf auth login")
    else:
        yield _owner(group) if asks else Finding(group, "token", "there is one")
    rows = [row for row in STARTING_POINTS.values() if row.file or row.folder]
    here = [finding for row in rows if (finding := _here(group, row))]
    elsewhere = [row for row in rows if row.name not in {finding.name for finding in here}]
    yield from here
    if asks:
        yield from (_on_hub(group, row) for row in elsewhere)
    elif elsewhere:
        names = ", ".join(row.name for row in elsewhere)
        found = f"not here, and whether {constants.ENDPOINT} gives them was not asked: {names}"
        yield Finding(group, "other weights", found, "missing", "retfound doctor --online")


def _owner(group: str) -> Finding:
    from huggingface_hub import HfApi

    try:
        with translate_hub_errors("the account", "asked for"):
            return Finding(group, "token", f"of {HfApi().whoami()['name']}")
    except HubAccessError as error:
        return Finding(group, "token", str(error), "wrong", "hf auth login")


def _here(group: str, row: StartingPoint) -> Finding | None:
    """Weights of the package, of the working folder or of the Hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    if row.folder:
        return Finding(group, row.name, "comes with the package")
    if (Path(row.name) / "config.json").is_file():
        return Finding(group, row.name, "a folder here")
    if isinstance(try_to_load_from_cache(row.hub_id, row.file), str):
        return Finding(group, row.name, "in the Hub cache", "missing", f"retfound fetch {row.name}")
    return None


def _on_hub(group: str, row: StartingPoint) -> Finding:
    from huggingface_hub import constants, get_hf_file_metadata, get_token, hf_hub_url

    try:
        with translate_hub_errors(row.hub_id, "fetched"):
            size = get_hf_file_metadata(hf_hub_url(row.hub_id, row.file)).size
    except HubAccessError as error:
        fix = f"ask for access on {constants.ENDPOINT}/{row.hub_id}" if get_token() else "hf auth login"
        return Finding(group, row.name, str(error), "missing", fix)
    return Finding(group, row.name, f"may be fetched, {_gb(size or 0)}", "missing", f"retfound fetch {row.name}")


def _decoders() -> Iterator[Finding]:
    from PIL import features

    group = "decoders and extras"
    absent = [kind for kind in ("jpg", "zlib", "libtiff", "jpg_2000") if not features.check(kind)]
    if absent:
        fix = "pip install --force-reinstall pillow"
        yield Finding(group, "pillow", f"built without {', '.join(absent)}", "wrong", fix)
    else:
        yield Finding(group, "pillow", "reads JPEG, PNG, TIFF and JPEG 2000")
    for extra in _extras():
        lacking = [name for name, _, will_do in _required(extra) if not will_do]
        if lacking:
            fix = f"pip install '{PACKAGE}[{extra}]'"
            yield Finding(group, extra, f"lacks {', '.join(lacking)}", "missing", fix)
        else:
            yield Finding(group, extra, "installed")


def _extras() -> list[str]:
    try:
        return [name for name in metadata.metadata(PACKAGE).get_all("Provides-Extra") or () if name != "test"]
    except metadata.PackageNotFoundError:
        return []


@dataclass
class DoctorArguments:
    online: bool = field(
        default=False, metadata={"help": "ask the Hub about the token and the official weights; else nothing is asked"}
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Command `doctor`: print the diagnosis.

    Raises:
        RetFoundError: something is wrong, so that the command's exit status tells.
    """
    description = "What this machine has and lacks, and the command that mends it."
    (arguments,) = parse_arguments(DoctorArguments, argv=argv, description=description)
    found = diagnose(arguments.online)
    print(found)
    if found.wrong:
        names = ", ".join(finding.name for finding in found.wrong)
        raise RetFoundError(f"{len(found.wrong)} to mend, see above: {names}")
