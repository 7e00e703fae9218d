"""The package's own models as flat files for `trust_remote_code=True`: they load where the package is not installed.

Nothing is written twice: the files are the modules of the package, found by their relative imports from the three
entries, with these imports rewritten to one flat folder.
"""

import ast
from collections.abc import Iterable
from pathlib import Path

from ..errors import RetFoundError
from ..record import versions
from . import remote_compat

PACKAGE = Path(__file__).parents[1]
# Entry module -> name in the published folder; every other file is called `retfound_<module>.py`.
ENTRIES = {
    "models/configuration_retfound.py": "configuration_retfound",
    "models/modeling_retfound.py": "modeling_retfound",
    "models/image_processing_retfound.py": "image_processing_retfound",
    "models/backbones.py": "modeling_retfound_stock",
}
PROCESSOR_MAP = {"AutoImageProcessor": "image_processing_retfound.RetFoundImageProcessor"}
# model_type -> the entries that it needs, and the class behind each Auto class.
MODEL_CODE = {
    "retfound": (
        ("models/configuration_retfound.py", "models/modeling_retfound.py"),
        {
            "AutoConfig": "configuration_retfound.RetFoundConfig",
            "AutoModel": "modeling_retfound.RetFoundModel",
            "AutoModelForPreTraining": "modeling_retfound.RetFoundForPreTraining",
            "AutoModelForImageClassification": "modeling_retfound.RetFoundForImageClassification",
        },
    ),
    "retfound_stock": (
        ("models/backbones.py",),
        {
            "AutoConfig": "modeling_retfound_stock.StockEncoderConfig",
            "AutoModelForImageClassification": "modeling_retfound_stock.StockEncoderForImageClassification",
        },
    ),
}
HEADER = "# Generated from retfound_hf {version}, module {module}.\n"
OPTIONAL = ("pydicom",)  # packages of the extras, which few users of the models need
# transformers 4.57 copies the files of a local folder no deeper than one import: each entry names all that it needs.
LISTING = "\n\nfrom typing import TYPE_CHECKING\n\nif TYPE_CHECKING:  # every file that this one needs\n"


def bundle(entries: Iterable[str] = ENTRIES) -> dict[str, str]:
    """File names and contents that `entries`, modules of the package, need to run by themselves.

    Raises:
        RetFoundError: a module that cannot be published, with the reason.
    """
    closures = {entry: _closure(PACKAGE / entry) for entry in entries}
    files = {f"{flat_name(path)}.py": text for needed in closures.values() for path, text in needed.items()}
    for entry, needed in closures.items():
        own = flat_name(PACKAGE / entry)
        names = sorted(flat_name(path) for path in needed if flat_name(path) != own)
        if names:
            files[f"{own}.py"] += LISTING + "".join(f"    from .{name} import __name__ as _{name}\n" for name in names)
    return dict(sorted(files.items()))


def _closure(entry: Path) -> dict[Path, str]:
    """A module and all that it imports, to the last, with their flat texts."""
    found: dict[Path, str] = {}
    waiting = [entry]
    while waiting:
        path = waiting.pop()
        if path not in found:
            found[path], needed = flatten(path)
            waiting += needed
    return found


def flatten(path: Path) -> tuple[str, list[Path]]:
    """A module's text with its relative imports made flat, and the modules that it imports."""
    text = path.read_text(encoding="utf-8")
    if path == Path(remote_compat.__file__):
        return text, []
    lines = text.splitlines()
    needed: list[Path] = []
    imports = [node for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.ImportFrom, ast.Import))]
    # From the last import to the first, so that line numbers stay true.
    for node in sorted(imports, key=lambda node: -node.lineno):
        replacement, modules = _rewritten(path, node)
        needed += modules
        if replacement is not None:
            indent = " " * node.col_offset
            lines[node.lineno - 1 : node.end_lineno] = [indent + line for line in replacement]
    header = HEADER.format(version=versions()["retfound-hf"], module=path.relative_to(PACKAGE).as_posix())
    return header + "\n".join(lines) + "\n", needed


def _rewritten(path: Path, node: ast.ImportFrom | ast.Import) -> tuple[list[str] | None, list[Path]]:
    """The lines that replace an import, None where it may stay, and the modules of the package that it needs."""
    origin = (node.module or "" if isinstance(node, ast.ImportFrom) else node.names[0].name).split(".")[0]
    if isinstance(node, ast.ImportFrom) and node.level:
        target = _module_of(path, node)
        return [_import(flat_name(target), node.names)], [target]
    if origin in OPTIONAL:
        # transformers refuses the whole model where an import outside a `try` is missing.
        return ["try:", f"    {ast.unparse(node)}", "except ImportError:", "    raise"], []
    moved = [alias for alias in node.names if alias.name in remote_compat.__all__]
    if origin == "transformers" and moved:
        compat = Path(remote_compat.__file__)
        kept = [alias for alias in node.names if alias not in moved]
        lines = [f"from {node.module} import {_names(kept)}"] if kept else []
        return [*lines, _import(flat_name(compat), moved)], [compat]
    return None, []


def flat_name(path: Path) -> str:
    """The name, without suffix, under which a module is published."""
    inside = path.relative_to(PACKAGE).as_posix()
    return ENTRIES.get(inside, f"retfound_{path.stem.removeprefix('remote_')}")


def _module_of(path: Path, node: ast.ImportFrom) -> Path:
    target = path.parents[node.level - 1].joinpath(*(node.module or "").split("."))
    if not target.with_suffix(".py").is_file():
        raise RetFoundError(
            f"{path.relative_to(PACKAGE)} line {node.lineno} imports a package, not a module: its code cannot be "
            "published in one flat folder"
        )
    return target.with_suffix(".py")


def _import(module: str, names: list[ast.alias]) -> str:
    return f"from .{module} import {_names(names)}"


def _names(names: list[ast.alias]) -> str:
    return ", ".join(f"{alias.name} as {alias.asname}" if alias.asname else alias.name for alias in names)
