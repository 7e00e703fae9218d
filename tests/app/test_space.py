"""The files of a Space, and that they run where the package is not installed."""

import configparser
import re
import shutil
import sys
import urllib.request
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml

from retfound_hf.app.server import AppArguments
from retfound_hf.app.space import CODE, write_space
from retfound_hf.errors import BadArgumentError, RetFoundError
from retfound_hf.options import parse_arguments

ROOT = Path(__file__).parents[2]
# Nothing but the Space's folder may know the package: its installation for development is taken out.
ALONE = """
import importlib.util, runpy, sys
sys.meta_path[:] = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
sys.path[:] = [path for path in sys.path if path and "editable" not in path]
assert importlib.util.find_spec("retfound_hf") is None, importlib.util.find_spec("retfound_hf")
space = sys.argv[1]
sys.path.insert(0, space)
runpy.run_path(f"{space}/app.py", run_name="__main__")
"""


def test_the_files_of_a_space(tmp_path, monkeypatch):
    package = "retfound-hf[app] @ git+https://x"
    files = write_space(tmp_path, "org/my-classifier", license="cc-by-nc-4.0", package=package)
    assert [path.name for path in files] == ["app.py", "requirements.txt", "README.md"]
    assert (tmp_path / "requirements.txt").read_text() == f"{package}\n"
    facts = yaml.safe_load((tmp_path / "README.md").read_text().split("---\n")[1])
    assert (facts["sdk"], facts["app_file"], facts["models"]) == ("gradio", "app.py", ["org/my-classifier"])
    assert (facts["title"], facts["license"]) == ("my-classifier", "cc-by-nc-4.0")
    assert tuple(map(int, facts["sdk_version"].split(".")[:2])) >= (6, 31)
    main = Mock()
    monkeypatch.setattr("retfound_hf.app.server.main", main)
    exec(compile((tmp_path / "app.py").read_text(), "app.py", "exec"), {})
    (arguments,) = parse_arguments(AppArguments, argv=main.call_args.args[0])
    assert arguments == AppArguments("org/my-classifier", host="0.0.0.0", port=7860)


def test_the_space_installs_nothing_of_the_projects_name(tmp_path):
    write_space(tmp_path, "org/my-classifier")
    lines = (tmp_path / "requirements.txt").read_text().splitlines()
    names = [re.split(r"[<>=~! \[;@]", line)[0] for line in lines]
    stated = configparser.ConfigParser()
    stated.read(ROOT / "setup.cfg")
    wanted = [stated["options"]["install_requires"]]
    wanted += [stated["options.extras_require"][extra] for extra in ("dicom", "app")]
    assert sorted(names) == sorted(re.findall(r"^([\w-]+)", "\n".join(wanted), re.M))
    assert not [line for line in lines if "retfound" in line or ";" in line]


def test_the_space_carries_code_and_nothing_that_lies_beside_it(tmp_path, monkeypatch):
    egg = tmp_path / "checkout" / "retfound_hf.egg-info"
    egg.mkdir(parents=True)
    (egg / "PKG-INFO").write_text("Name: retfound-hf\nVersion: 0\n")
    monkeypatch.syspath_prepend(egg.parent)
    package = Path(shutil.copytree(ROOT / "retfound_hf", tmp_path / "retfound_hf"))
    (package / "patients.csv").write_text("P0001")
    monkeypatch.setattr("retfound_hf.app.space.PACKAGE", package)
    files = [path.relative_to(tmp_path / "space") for path in write_space(tmp_path / "space", "org/mine")]
    assert {path.suffix for path in files} <= {".py", ".css", ".html", ".yaml", ".typed", ".md", ".txt", ""}
    assert Path("retfound_hf/LICENSE") in files and Path("retfound_hf/model_cards/finetuned.md") in files
    for path in (ROOT / "retfound_hf").rglob("*"):
        if path.suffix in CODE:
            assert (tmp_path / "space" / path.relative_to(ROOT)).read_bytes() == path.read_bytes()


def test_the_space_runs_where_the_package_is_not_installed(tmp_path_factory, classifier_folder, run_page, port):
    folder = tmp_path_factory.mktemp("space")  # beside the session's, until its program has ended
    write_space(folder / "space", "org/my-classifier")
    shutil.copytree(classifier_folder, folder / "org" / "my-classifier")  # read from here, for want of a Hub
    app = folder / "space" / "app.py"
    app.write_text(app.read_text().replace("7860", str(port)).replace("0.0.0.0", "127.0.0.1"))
    alone = {"PYTHONPATH": ""}
    served = run_page([sys.executable, "-c", ALONE, str(folder / "space")], port, cwd=folder, env=alone)
    with urllib.request.urlopen(served.url, timeout=20) as answer:
        assert "my-classifier" in answer.read().decode()


def test_unknown_requirements_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("retfound_hf.app.space.metadata.distributions", lambda **wanted: [])
    with pytest.raises(RetFoundError) as error:
        write_space(tmp_path, "org/my-classifier")
    assert "retfound-hf" in str(error.value) and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ['a"b', "no slash", "a/b/c", "a/b\n"])
def test_names_that_are_not_of_a_model_are_refused(tmp_path, name):
    with pytest.raises(BadArgumentError) as error:
        write_space(tmp_path, name)
    assert (error.value.field, error.value.value) == ("model_id", name)
