import ast
import json
import platform
import re
import subprocess
import sys
from dataclasses import dataclass
from datetime import datetime
from importlib import metadata
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

import retfound_hf
from retfound_hf import record
from retfound_hf.record import (
    as_code,
    as_literal,
    as_text,
    git_revision,
    markdown_table,
    versions,
    without_escapes,
    write_run_record,
)


@dataclass
class Data:
    data: Path
    columns: list[str]


@dataclass
class Training:
    seed: int = 3
    limit: float = float("inf")


def written(folder) -> dict:
    return json.loads((folder / "run.json").read_text())


def test_record_holds_arguments_versions_seed_and_revision(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["scripts/finetune.py", "--seed", "3"])
    path = write_run_record(tmp_path, "finetune", [Data(Path("a/b"), ["x", "y"]), Training()], seconds=1.5)
    assert path == tmp_path / "run.json"
    found = written(tmp_path)
    assert found["command"] == "finetune"
    assert found["arguments"] == {"data": "a/b", "columns": ["x", "y"], "seed": 3, "limit": "inf"}
    assert found["seed"] == 3 and found["seconds"] == 1.5
    assert found["versions"]["torch"] == metadata.version("torch")
    assert found["versions"]["transformers"] == metadata.version("transformers")
    assert found["versions"]["python"] == platform.python_version()
    assert found["git_revision"] == git_revision()
    assert found["command_line"] == ["scripts/finetune.py", "--seed", "3"]
    assert (
        abs((datetime.now().astimezone() - datetime.strptime(found["finished"], "%Y-%m-%dT%H:%M:%S%z")).seconds) < 60
    )


@dataclass
class Secret(Training):
    hub_token: str | None = None
    push_to_hub_token: str | None = None


@pytest.mark.parametrize("words", [["--hub_token", "hf_abc"], ["--hub_token=hf_abc"], ["--hub-token", "hf_abc"]])
def test_tokens_are_not_recorded(tmp_path, monkeypatch, words):
    monkeypatch.setattr(sys, "argv", ["finetune", "--seed", "3", *words])
    path = write_run_record(tmp_path, "finetune", [Data(Path("a"), []), Secret(hub_token="hf_abc")])
    assert "hf_abc" not in path.read_text()
    found = written(tmp_path)
    assert found["arguments"]["hub_token"] == "<HUB_TOKEN>" and found["arguments"]["push_to_hub_token"] is None
    assert found["command_line"] == ["finetune", "--seed", "3", *(w.replace("hf_abc", "<HUB_TOKEN>") for w in words)]


@pytest.mark.parametrize("arguments", [{"data": "x", "depth": {1: (2, None)}}, Data(Path("x"), [])])
def test_record_of_a_command_without_seed(tmp_path, arguments):
    write_run_record(tmp_path, "embed", arguments)
    found = written(tmp_path)
    assert found["seed"] is None and found["arguments"]["data"] == "x"
    assert found["arguments"].get("depth", {"1": [2, None]}) == {"1": [2, None]}


def test_packages_that_are_absent_are_recorded_as_such(monkeypatch):
    monkeypatch.setattr(record, "RECORDED_PACKAGES", ("torch", "no-such-package"))
    assert versions() == {
        "python": platform.python_version(),
        "retfound-hf": retfound_hf.__version__,
        "torch": metadata.version("torch"),
        "no-such-package": None,
    }


def git(folder, *words: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    return subprocess.run(
        ["git", *identity, *words], cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def package_copy(tmp_path, monkeypatch):
    """The module as if it lay in another place."""
    here = tmp_path / "checkout" / "runs"
    here.mkdir(parents=True)
    module = here / "record.py"
    module.write_text("a")
    monkeypatch.setattr(record, "__file__", str(module))
    return module


def test_revision_of_a_checkout(package_copy):
    root = package_copy.parents[1]
    git(root, "init")
    git(root, "add", ".")
    git(root, "commit", "-m", "first")
    commit = git(root, "rev-parse", "HEAD")
    git(root, "tag", "v1")  # tags do not replace the hash
    assert git_revision() == commit
    package_copy.write_text("b")
    assert git_revision() == f"{commit}-dirty"


def test_no_revision_for_an_installed_package(package_copy):
    """One inside an environment inside somebody's own repository is not that repository's."""
    assert git_revision() is None
    root = package_copy.parents[1]
    (root / "other").touch()
    git(root, "init")
    git(root, "add", "other")
    git(root, "commit", "-m", "first")
    assert git_revision() is None


def test_no_revision_without_git(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert git_revision() is None


NAMES = [
    "stage 3", "no_dr", "a & b", "<script>alert(1)</script>", "<img src=x onerror=alert(1)>",
    "<!-- x", "]]>", "a|b", "|",
    "\\|", "`code`", "`", "``x", "[x](http://evil.org)", "![x](y)", "<http://evil.org>", "*bold*", "_it_", "__b__ _",
    "a\n# b", "a\n\n<div>", "a\r\n---\r\nb", "&lt;b&gt;", "&#60;", "~~x~~", "\\*x\\*", "\\", "ends in \\", "a\x1b[31m",
    "a\u202eb", "caf\udce9", "{{ x }}", "$x$", "[^1]", "x ", 'say "yes"', "it's", "眼底", "-1", "",
]  # fmt: skip
READ = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def texts(block: str) -> list[str]:
    """Text of each paragraph and cell, all of whose parts have to be text or code."""
    found = []
    for token in READ.parse(block):
        assert not token.type.startswith(("html", "heading", "hr", "fence")), token
        if token.type == "inline":
            assert {part.type for part in token.children} <= {"text", "code_inline"}, token.children
            found.append("".join(part.content for part in token.children))
    return found


def plain(name: str) -> str:
    return re.sub("[\x1b\u202e\udce9]", "\ufffd", " ".join(name.split()))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("write", [as_text, as_code])
def test_names_stay_text(name, write):
    assert texts(f"Said: {write(name)}, {write(name)}.") == [f"Said: {plain(name)}, {plain(name)}."]
    rows = [["first", "1", "x"], [write(name), "2", write(name)]]
    assert texts(markdown_table([write(f"{name} of"), "number", "of"], rows)) == [
        plain(f"{name} of"), "number", "of", "first", "1", "x", plain(name), "2", plain(name)
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["stage 3", "no_dr", "HDL (mmol/l)", "A & B", "60+", "x, y", "眼底", "model-0.5"])
def test_ordinary_names_are_written_as_they_are(name):
    assert (as_text(name), as_code(name)) == (name, f"`{name}`")


@pytest.mark.parametrize("name", NAMES)
def test_code_holds_the_name(name):
    written = as_literal(name)
    assert ast.literal_eval(written) == name and written.isprintable() and "<" not in written


@pytest.mark.parametrize("name", [name for name in NAMES if "\\" not in name])
def test_cells_of_older_cards_are_known_again(name):
    older = without_escapes(plain(name).replace("|", "/"))
    assert without_escapes(as_text(name)) == without_escapes(as_code(name)) == older
