"""transformers' own common tests, from its source package on PyPI, run on classes that a short module names.

The source package has the mixins (`tests/test_modeling_common.py`, `tests/test_image_processing_common.py`), but not
all that they import: `STUBS` stands for the rest, which no class of ours calls.
"""

import os
import shutil
import subprocess
import sys
import tarfile
import xml.etree.ElementTree as xml
from importlib import metadata
from pathlib import Path

import pytest

STUBS = {
    "tests/__init__.py": "", "tests/utils/__init__.py": "", "tests/generation/__init__.py": "",
    "tests/exporters/__init__.py": "", "tests/own/__init__.py": "",
    "tests/generation/test_utils.py": "class GenerationTesterMixin:\n    pass\n",
    "tests/exporters/test_export.py": "class ExportTesterMixin:\n    pass\n",
    "tests/utils/test_configuration_utils.py": 'config_common_kwargs = {"return_dict": False, "dtype": "float16"}\n',
    "fetch_hub_objects_for_ci.py": "def url_to_local_path(url, return_url_if_not_found=True):\n    return url\n",
}  # fmt: skip


def make_tree(target: Path) -> Path:
    """Lay out the common tests of the installed transformers in a folder, or skip the test where PyPI is away.

    Args:
        target: an empty folder. `RETFOUND_COMMON_TESTS` names one that was made before.
    """
    if made := os.environ.get("RETFOUND_COMMON_TESTS"):
        return Path(made)
    version = metadata.version("transformers")
    pip = [sys.executable, "-m", "pip", "--quiet"]
    source = ["download", "--no-deps", "--no-binary", "transformers", "--no-build-isolation", "--dest", str(target)]
    for command in (
        [*pip, *source, f"transformers=={version}"],
        [*pip, "install", "--no-deps", "--target", str(target / "packages"), "parameterized"],
    ):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        if done.returncode:
            pytest.skip(f"transformers' tests cannot be had here: {done.stderr.strip().splitlines()[-1]}")
    with tarfile.open(target / f"transformers-{version}.tar.gz") as archive:
        archive.extractall(target / "source", filter="data")
    tree = target / "tree"
    (tree / "tests").mkdir(parents=True)
    for path in (target / "source" / f"transformers-{version}" / "tests").glob("*.py"):
        shutil.copy(path, tree / "tests")
    for name, text in STUBS.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    shutil.copytree(target / "packages" / "parameterized", tree / "parameterized")
    return tree


def run(tree: Path, code: str, timeout: float = 1800) -> dict[str, str]:
    """Outcome of each test of a module that is put into the tree: class and name to `passed`, `failure`, `skipped`.

    Args:
        tree: of `make_tree`.
        code: of the module; it imports the mixins by `from ..test_... import`.
        timeout: seconds for all of its tests.
    """
    (tree / "tests" / "own" / "test_own.py").write_text(code)
    options = ["-q", "-c", os.devnull, "--rootdir", str(tree), "-p", "no:cacheprovider", "-W", "ignore"]
    path = os.pathsep.join([str(Path(__file__).parents[2]), str(tree)])
    subprocess.run(
        [sys.executable, "-m", "pytest", *options, "--junitxml", "found.xml", "tests/own/test_own.py"],
        cwd=tree, env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"}, timeout=timeout,
        stdout=subprocess.DEVNULL,
    )  # fmt: skip
    outcomes: dict[str, str] = {}
    for case in xml.parse(tree / "found.xml").iter("testcase"):
        found = next((child.tag for child in case if child.tag in ("failure", "error", "skipped")), "passed")
        outcomes[f"{case.get('classname', '').rsplit('.', 1)[-1]}.{case.get('name')}"] = found
    return outcomes
