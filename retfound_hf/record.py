"""Records of runs: `run.json`, and text of data within the Markdown of cards, where it stays text."""

import dataclasses
import html
import json
import platform
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from .files import read_json, write_json
from .processes import usable_cores

RUN_FILE = "run.json"
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
    """Devices that compute here: the GPUs if PyTorch is in use and sees any, else the processor."""
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
    path = Path(output_dir) / RUN_FILE
    write_json(path, record)
    return path


def read_run_record(folder: str | Path) -> dict[str, Any]:
    """The `run.json` of a folder, empty where there is none, as on the Hub.

    Raises:
        BadDataError: a file that is damaged.
    """
    return read_json(Path(folder, RUN_FILE), absent={})


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


# Signs of Markdown, with those of tables, formulas and addresses; an underscore within a word is none.
SIGNS = re.compile(r"[\\`*\[\]|~$]|(?<![^\W_])_|_(?![^\W_])|:(?=//)|(?<=www)\.|&(?=#?\w+;)")
# Control signs, those that turn the direction of writing, and halves of signs, as names of files may hold.
HIDDEN = "\\x00-\\x1f\\x7f-\\x9f\\u2028-\\u202e\\u2066-\\u2069\\ud800-\\udfff"
NO_CODE = re.compile(rf"[`<|{HIDDEN}]|^\s|\s\s|\s$|^$")
NUMERIC = re.compile(r"(-?\d[\d.]*( to .*| \(.*)?|undefined)?")


def as_text(text: str) -> str:
    """Markdown that shows `text` on one line."""
    text = re.sub(f"[{HIDDEN}]", "\ufffd", " ".join(str(text).split()))
    return SIGNS.sub(r"\\\g<0>", text).replace("<", "&lt;").replace(">", "&gt;")


def as_code(text: str) -> str:
    """`text` between backticks, or as `as_text` writes it where backticks would not hold it."""
    return as_text(text) if NO_CODE.search(text) else f"`{text}`"


def as_literal(text: str) -> str:
    """`text` as Python code writes it, in double quotes."""
    return re.sub(f"[<{HIDDEN}]", lambda sign: f"\\u{ord(sign[0]):04x}", json.dumps(text, ensure_ascii=False))


def without_escapes(line: str) -> str:
    """A line without marks of code and escapes, and with a slash for a bar, as older cards have names in tables."""
    bare = re.sub(r"\\([^\w\s]|_)", lambda sign: sign[1].replace("|", "/"), line)
    return html.unescape(bare.replace("`", ""))


def markdown_table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Table of cells that are Markdown; columns of numbers to the right, those without any cell left out."""
    columns = [column for column in zip(heading, *rows, strict=True) if any(column[1:])]
    right = [all(NUMERIC.fullmatch(cell) for cell in column[1:]) for column in columns]
    heading, *rows = zip(*columns, strict=True)
    lines = [heading, ["---:" if numbers else "---" for numbers in right], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
