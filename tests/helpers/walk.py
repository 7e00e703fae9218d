"""Files that a run goes through, counted."""

import gc
import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import retfound_hf

PACKAGE = str(Path(retfound_hf.__file__).parent) + "/"


def files_entered(function: Callable[..., Any], *args: Any, **kwargs: Any) -> set[str]:
    """Files of the package, relative to it, in which `function(*args, **kwargs)` enters a function.

    Bodies of modules and classes, which run on import, do not count.
    """
    found: set[str] = set()

    def profile(frame: Any, event: str, arg: Any) -> None:
        code = frame.f_code
        if event == "call" and code.co_flags & inspect.CO_OPTIMIZED and code.co_filename.startswith(PACKAGE):
            found.add(code.co_filename.removeprefix(PACKAGE))

    gc.collect()  # generators that earlier tests left open would enter their files when they are collected
    sys.setprofile(profile)
    try:
        function(*args, **kwargs)
    finally:
        sys.setprofile(None)
    return found
