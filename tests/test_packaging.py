"""What `pip install .` brings: every room, the card templates, a command, and no more than the README says."""

import configparser
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def settings() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def lines(text: str) -> set[str]:
    return {line.strip() for line in text.strip().splitlines()}


def test_every_package_is_listed():
    found = {".".join(path.parent.relative_to(ROOT).parts) for path in (ROOT / "retfound_hf").rglob("__init__.py")}
    assert lines(settings()["options"]["packages"]) == found | {"retfound_hf.model_cards"}


def test_version_is_said_once():
    import retfound_hf

    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert settings()["metadata"]["version"] == retfound_hf.__version__ == citation["version"]
    assert citation["license"] == settings()["metadata"]["license"]


def test_no_file_names_a_machine_or_a_registry():
    """Public files speak of the project alone."""
    forbidden = ("/home/", "/root/", "/tmp/", "localhost:", "file://")
    texts = [
        *ROOT.glob("*.md"),
        *ROOT.glob("retfound_hf/*/README.md"),
        *ROOT.glob("scripts/**/*"),
        *ROOT.glob("model_cards/*"),
        ROOT / "setup.cfg",
    ]
    for path in texts:
        if path.is_file() and path.suffix not in (".pyc", ".png"):
            text = path.read_text(encoding="utf-8")
            assert not [word for word in forbidden if word in text], path
