"""Code for `trust_remote_code=True`: published folders load where the package is not installed.

The code files are the package's own modules: the classes' modules and all that these import from the package, copied
into one flat folder. `register_for_auto_class` of transformers copies modules of the same folder only.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..models.backbones import AUTO_CLASSES
from ..models.image_processing_retfound import RetFoundImageProcessor
from ..record import __version__

PACKAGE = Path(__file__).parents[1]
RELATIVE = re.compile(r"^( *)from (\.+)([\w.]+) import ", re.M)
# Packages that few users of a model need; transformers asks for all that are imported outside of a `try`.
OPTIONAL = re.compile(r"^( *)((?:from|import) (?:pydicom|peft)\b.*)$", re.M)


def auto_maps(config: dict[str, Any], processor: dict[str, Any]) -> dict[type, dict[str, str]]:
    """The `auto_map` of a folder's configuration and image processor, by the class behind each of them.

    Args:
        config: content of `config.json`.
        processor: content of `preprocessor_config.json`.

    Returns:
        Class to `auto_map`; without an entry for classes of transformers itself.
    """
    found: dict[type, dict[str, str]] = {}
    for config_class, classes in AUTO_CLASSES.items():
        if config.get("model_type") == config_class.model_type:
            named = {auto_class.__name__: model for auto_class, model in classes.items()}
            if config.get("encoder_only"):
                named.pop("AutoModelForPreTraining", None)
            found[config_class] = {
                name: _reference(kind) for name, kind in {"AutoConfig": config_class, **named}.items()
            }
    if processor.get("image_processor_type") == RetFoundImageProcessor.__name__:
        found[RetFoundImageProcessor] = {"AutoImageProcessor": _reference(RetFoundImageProcessor)}
    return found


def code_files(references: Iterable[str]) -> dict[str, str]:
    """Names and contents of the files that `references` ("module.Class", of `auto_maps`) need, to the last import."""
    paths = {_flat(path): path for path in PACKAGE.glob("models/*.py")}
    entries = sorted({reference.split(".")[0] for reference in references})
    files: dict[str, str] = {}
    for entry in entries:
        needed: dict[str, str] = {}
        waiting = [paths[entry]]
        while waiting:
            path = waiting.pop()
            if _flat(path) not in needed:
                needed[_flat(path)] = _flattened(path)
                waiting += _imported(path)
        files |= {name: text for name, text in needed.items() if name not in files}
        # transformers 4.57 copies the files of a local folder no deeper than one import: each entry names all.
        listed = "".join(f"    from .{name} import __name__ as _{name}\n" for name in sorted(needed) if name != entry)
        files[entry] += f"\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:\n{listed}" if listed else ""
    return {f"{name}.py": files[name] for name in sorted(files)}


def _reference(kind: type) -> str:
    return f"{_flat(Path(str(sys.modules[kind.__module__].__file__)))}.{kind.__name__}"


def _flat(path: Path) -> str:
    """Name of a module in the published folder; all contain "retfound"."""
    return path.stem if "retfound" in path.stem else f"retfound_{path.stem}"


def _imported(path: Path) -> list[Path]:
    return [
        path.parents[len(dots) - 1].joinpath(*module.split(".")).with_suffix(".py")
        for _, dots, module in RELATIVE.findall(path.read_text(encoding="utf-8"))
    ]


def _flattened(path: Path) -> str:
    text = path.read_text(encoding="utf-8")
    text = RELATIVE.sub(lambda found: f"{found[1]}from .{_flat(Path(found[3].split('.')[-1]))} import ", text)
    text = OPTIONAL.sub(r"\1try:\n\1    \2\n\1except ImportError:\n\1    raise", text)
    origin = path.relative_to(PACKAGE).as_posix()
    return f"# Generated from retfound_hf {__version__}, module {origin}.\n{text}"
