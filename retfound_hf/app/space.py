"""The page as a Hugging Face Space: the files that a Space is made of."""

import re
from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from ..runs.files import whole_file

PACKAGE = "retfound-hf[app,dicom]"
APP = '''"""The page of {model_id}."""

from retfound_hf.app.server import serve

serve("{model_id}", host="0.0.0.0", port=7860)
'''
TEXT = """
# {title}

The web page of [{model_id}](https://huggingface.co/{model_id}): probabilities, relevance map and quality of a retinal
image, one or many. For research; not a medical device.

Whoever can open this Space can send images to it. Send none that could tell who a patient is: a Space is another
party's computer.
"""


def write_space(
    folder: str | Path,
    model_id: str,
    title: str | None = None,
    license: str | None = None,
    package: str = PACKAGE,
    sdk_version: str | None = None,
) -> list[Path]:
    """Write `app.py`, `requirements.txt` and `README.md` of a Space that shows a model of the Hub.

    Args:
        model_id: `ORG/NAME` of a fine-tuned model; a private one needs the secret HF_TOKEN in the Space's settings.
        title: shown on the Space; the model's name without one.
        package: requirement that installs this package, such as `retfound-hf[app,dicom] @ git+https://...`.
        sdk_version: of gradio; the installed one, or the oldest that works where none is.

    Returns:
        The three files.

    Raises:
        RetFoundError: a model that is not named as on the Hub.
    """
    import yaml

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id, re.ASCII):
        raise RetFoundError(f"{model_id!r} is no model of the Hub; give ORG/NAME")
    title = title or model_id.split("/")[-1]
    front: dict[str, Any] = {
        "title": title, "emoji": "👁️", "colorFrom": "green", "colorTo": "blue", "sdk": "gradio",
        "sdk_version": sdk_version or _installed_gradio(), "app_file": "app.py", "models": [model_id], "pinned": False,
        "license": license,
    }  # fmt: skip
    front = {name: value for name, value in front.items() if value is not None}
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    contents = {
        "app.py": APP.format(model_id=model_id),
        "requirements.txt": f"{package}\n",
        "README.md": f"---\n{header}---\n{TEXT.format(title=title, model_id=model_id)}",
    }
    for name, content in contents.items():
        with whole_file(Path(folder) / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return [Path(folder) / name for name in contents]


def _installed_gradio() -> str:
    from importlib import metadata

    try:
        return metadata.version("gradio")
    except metadata.PackageNotFoundError:
        return "6.31.0"
