"""`run.json`: what a command was asked, with what versions, from which revision."""

import dataclasses
import platform
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import write_json
from .processes import usable_cores

__version__ = "0.1.0"  # setup.cfg, run.json and the cards read it here
RECORDED_PACKAGES = (
    "torch", "torchvision", "transformers", "accelerate", "datasets", "evaluate", "peft",
    "safetensors", "huggingface-hub", "scikit-learn", "scipy", "statsmodels", "numpy", "pillow",
)  # fmt: skip


def versions() -> dict[str, str | None]:
    """Version of this package, and of the installed ones that can change a result, `None` for one that is absent."""
    found: dict[str, str | None] = {"python": platform.python_version(), "retfound-hf": __version__}
    for package in RECORDED_PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def git_revision() -> str | None:
    """The commit of the checkout this package runs from, with `-dirty` for uncommitted changes; None if installed."""
    here = Path(__file__).parent
    try:
        tracked = subprocess.run(
            ["git", "ls-files", "--error-unmatch", Path(__file__).name], cwd=here, capture_output=True, timeout=10
        )
        if tracked.returncode != 0:
            return None
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
            cwd=here, capture_output=True, text=True, timeout=10,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return None
    return described.stdout.strip() or None


def hardware() -> str:
    """What computes here: the GPUs if PyTorch is in use and sees any, else the processor."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        return ", ".join(f"{names.count(name)} x {name}" for name in dict.fromkeys(names))
    cores = usable_cores()
    return f"{cores} CPU core{'s' if cores > 1 else ''}"


def write_run_record(output_dir: str | Path, command: str, arguments: Any, **facts: Any) -> Path:
    """Write `run.json` into `output_dir`; the values of arguments whose names end in `_token` are left out of it.

    Args:
        command: name of the command, such as `finetune`.
        arguments: a dataclass, several of them in a list, or a dict; stored by field name.
        facts: anything else worth keeping, such as `seconds` or `rejected_images`.
    """
    plain = _plain(arguments)
    secrets = {value: f"<{name.upper()}>" for name, value in plain.items() if _is_secret(name, value)}
    record = {
        "command": command,
        "arguments": {name: secrets[value] if _is_secret(name, value) else value for name, value in plain.items()},
        "seed": plain.get("seed"),
        "versions": versions(),
        "hardware": hardware(),
        "git_revision": git_revision(),
        "command_line": [_masked(word, secrets) for word in sys.argv],
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        **facts,
    }
    path = Path(output_dir) / "run.json"
    write_json(path, record)
    return path


def _is_secret(name: str, value: Any) -> bool:
    return name.endswith("_token") and isinstance(value, str) and value != ""


def _masked(word: str, secrets: dict[str, str]) -> str:
    """A word of the command line, which may be `--name=value`."""
    name, equals, value = word.partition("=")
    return name + equals + secrets[value] if value in secrets else secrets.get(word, word)


def _plain(arguments: Any) -> dict[str, Any]:
    if isinstance(arguments, (list, tuple)):
        return {name: value for part in arguments for name, value in _plain(part).items()}
    if dataclasses.is_dataclass(arguments):
        arguments = {field.name: getattr(arguments, field.name) for field in dataclasses.fields(arguments)}
    return {name: _jsonable(value) for name, value in arguments.items()}


def _jsonable(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if value == value and abs(value) != float("inf") else str(value)
    if isinstance(value, dict):
        return {str(key): _jsonable(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set)):
        return [_jsonable(item) for item in value]
    return str(value)
