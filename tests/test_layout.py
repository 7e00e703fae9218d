"""Floors of the package: imports run down, never up, and modules have the size of one subject."""

import ast
import re
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "retfound_hf"
FLOORS = {
    "errors": 0, "options": 0, "files": 0, "cluster": 0, "record": 0, "vocabulary": 0, "hub_access": 0, "processes": 0,
    "images": 1, "evaluation": 1,
    "models": 2, "data": 2,
    "inference": 3,
    "pretraining": 4, "finetuning": 4, "explanation": 4,
    "study": 5, "app": 5,
    "hub": 6,
    "cli": 7, "__init__": 7,
}  # fmt: skip
LONGEST = 450
# One file by transformers' convention, one table with its functions, one object with its reports.
LONGER = {"models/modeling_retfound.py": 715, "evaluation/metrics.py": 550, "evaluation/predictions.py": 490}
MODULES = sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_rooms(path: Path) -> set[str]:
    """Rooms that a module imports, at the top or inside a function."""
    package = ["retfound_hf", *path.relative_to(PACKAGE).parent.parts]
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            parts = base + (node.module.split(".") if node.module else [])
            targets = [parts] if len(parts) > 1 else [[*parts, alias.name] for alias in node.names]
        elif isinstance(node, ast.Import):
            targets = [alias.name.split(".") for alias in node.names]
        else:
            continue
        rooms |= {target[1] for target in targets if target[0] == "retfound_hf" and len(target) > 1}
    return rooms


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_run_down_the_floors(path: Path):
    room = room_of(path)
    for imported in imported_rooms(path) - {room}:
        assert FLOORS[imported] < FLOORS[room] or FLOORS[imported] == FLOORS[room] == 0, (path, imported)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_modules_have_the_size_of_one_subject(path: Path):
    limit = LONGER.get(path.relative_to(PACKAGE).as_posix(), LONGEST)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= limit


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_docstrings_open_with_what_a_thing_is(path: Path):
    tree, kinds = ast.parse(path.read_text(encoding="utf-8")), (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]
    assert not [text for text in texts if re.match(r"(What|Which|Where|That|How|Who|Why)\b", text)]


def test_places_that_contributors_are_sent_to_exist():
    root = PACKAGE.parent
    named = re.findall(
        r"`((?:tests|retfound_hf|scripts)/[\w/.]*)`", (root / "CONTRIBUTING.md").read_text(encoding="utf-8")
    )
    assert len(named) > 10 and [name for name in named if not (root / name).exists()] == []


def test_the_promises_of_security_are_held_by_tests_that_exist():
    root = PACKAGE.parent
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (root / "SECURITY.md").read_text(encoding="utf-8"))
    assert len(named) > 10
    for path, name in named:
        text = (root / path).read_text(encoding="utf-8")
        assert not name or re.search(rf"^(def|class) {name}\b", text, re.M), (path, name)
