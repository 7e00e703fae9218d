"""Front door: what `import retfound_hf` offers, and how little it imports."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import retfound_hf as rf

SOURCE = Path(rf.__file__)


def names_for_type_checkers() -> dict[str, str]:
    """Name -> module of the imports under `if TYPE_CHECKING`."""
    blocks = [node for node in ast.parse(SOURCE.read_text(encoding="utf-8")).body if isinstance(node, ast.If)]
    imports = [node for block in blocks for node in block.body if isinstance(node, ast.ImportFrom)]
    return {alias.name: node.module for node in imports for alias in node.names}


def test_lazy_names_are_those_of_the_type_checker():
    assert names_for_type_checkers() == rf._LAZY


def test_every_export_exists():
    assert set(rf._LAZY) < set(rf.__all__) and len(set(rf.__all__)) == len(rf.__all__)
    for name in rf.__all__:
        assert getattr(rf, name) is not None and name in dir(rf)
    with pytest.raises(AttributeError):
        getattr(rf, "no_such_name")  # noqa: B009


@pytest.mark.parametrize("name", [name for name in rf.__all__ if name.islower()])
def test_functions_are_documented(name: str):
    function = getattr(rf, name)
    assert callable(function) and inspect.getdoc(function)
    if len(inspect.signature(function).parameters) > 2:
        assert "Args:" in inspect.getdoc(function)


def test_import_is_light():
    """No Trainer, no scikit-learn, no matplotlib, no pandas before they are needed."""
    code = "import retfound_hf, sys; print(*sorted(sys.modules))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    heavy = {"sklearn", "matplotlib", "pandas", "datasets", "transformers.trainer", "captum"}
    assert not heavy & set(loaded)
