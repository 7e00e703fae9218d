"""File names for images of any id."""

import re
from pathlib import PurePosixPath

LONGEST = 120


class FileNames:
    """Gives every id a name of its own without folders or suffix: `test/mild/a.jpg` becomes `test_mild_a`."""

    def __init__(self) -> None:
        self.taken: dict[str, int] = {}

    def __call__(self, name: str) -> str:
        path = PurePosixPath(name.replace("\\", "/"))
        # File systems that do not tell cases apart must hold both `A` and `a`.
        plain = re.sub(r"[^\w-]+", "_", str(path.with_suffix("") if path.name else path)).strip("_")
        plain = plain[-LONGEST:] or "image"
        count = self.taken[plain.lower()] = self.taken.get(plain.lower(), 0) + 1
        return plain if count == 1 else self(f"{plain}-{count}")
