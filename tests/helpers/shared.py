"""Costly things of several test files, made once for all processes of a run of the tests."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from retfound_hf.files import file_lock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """Folder that `make(folder)` filled, in whichever process asked first; nobody may change it.

    Args:
        factory: the fixture `tmp_path_factory`.
        name: of the folder.
        make: is given the folder, which is there and empty.
    """
    root = factory.getbasetemp()
    folder = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "shared" / name
    done = folder.with_name(f"{name}.done")
    with file_lock(done):
        if not done.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a try that failed
            folder.mkdir(parents=True)
            make(folder)
            done.touch()
    return folder
