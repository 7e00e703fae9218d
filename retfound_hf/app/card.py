"""What the model's card says about its use."""

import re
from pathlib import Path

NO_CARD = "The folder has no card that says what the model is intended for."


def intended_use(name_or_path: str) -> str:
    """The section of the card whose heading speaks of intended use, as Markdown without the heading."""
    text = _card(name_or_path)
    found = re.search(r"^(#{1,4}) [^\n]*intended use[^\n]*\n(.*?)(?=^#{1,4} |\Z)", text, re.M | re.S | re.I)
    return found[2].strip() if found else NO_CARD


def _card(name_or_path: str) -> str:
    path: Path | str | None = Path(name_or_path) / "README.md"
    if not Path(name_or_path).is_dir():
        from huggingface_hub import try_to_load_from_cache

        path = try_to_load_from_cache(name_or_path, "README.md")
    return Path(path).read_text(encoding="utf-8") if isinstance(path, (str, Path)) and Path(path).is_file() else ""
