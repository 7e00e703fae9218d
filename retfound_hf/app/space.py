"""The page as a Hugging Face Space: the files that a Space consists of.

A Space contains the code of this package: installed by name, it would be whatever an index has under that name.
"""

import re
from importlib import metadata
from pathlib import Path

from ..errors import BadArgumentError, RetFoundError
from ..files import atomic_file
from ..models.cards import PACKAGE, TEMPLATES
from ..record import as_text

NAME = "retfound-hf"
EXTRAS = ("app", "dicom")
OLDEST_GRADIO = "6.31.0"
CODE = (".py", ".typed", ".css", ".html", ".yaml")  # not other files that happen to lie in a checkout
APP = '''"""Web page of {model_id}."""

from retfound_hf.app.server import main

main(["--model", "{model_id}", "--host", "0.0.0.0", "--port", "7860"])
'''
TEXT = """
# {title}

The web page of [{model_id}](https://huggingface.co/{model_id}): probabilities, relevance map and quality of a retinal
image, one or many. For research; not a medical device.

Everyone who can open this Space can send images to it. Do not send images that reveal who a patient is: a Space runs
on someone else's computer.
"""


def write_space(
    folder: str | Path, model_id: str, title: str | None = None, license: str | None = None,
    package: str | None = None, sdk_version: str | None = None,
) -> list[Path]:  # fmt: skip
    """Write `app.py`, `requirements.txt`, `README.md` and `retfound_hf/` of a Space that shows a model of the Hub.

    Args:
        folder: to write to.
        model_id: `ORG/NAME` of a fine-tuned model; a private one needs the secret HF_TOKEN in the Space's settings.
        title: shown on the Space; the model's name without one.
        license: of the Space, as in its front matter.
        package: requirement that installs this package, such as `retfound-hf[app,dicom] @ git+https://...`; without
            one the Space gets the code that runs here, and the requirements of that.
        sdk_version: of gradio; the installed one, or the oldest that works where none is.

    Returns:
        The files.

    Raises:
        BadArgumentError: a model that is not named as on the Hub.
        RetFoundError: this package is not installed, so its requirements are unknown.
    """
    import yaml

    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model_id, re.ASCII):
        reason = f"`model_id={model_id!r}` is not the name of a model on the Hub; give ORG/NAME"
        raise BadArgumentError(reason, field="model_id", value=model_id)
    title = title or model_id.split("/")[-1]
    sdk_version = sdk_version or getattr(_installed("gradio"), "version", OLDEST_GRADIO)
    front = {
        "title": title, "emoji": "👁️", "colorFrom": "green", "colorTo": "blue", "sdk": "gradio",
        "sdk_version": sdk_version, "app_file": "app.py", "models": [model_id], "pinned": False,
        **({"license": license} if license else {}),
    }  # fmt: skip
    header = yaml.safe_dump(front, sort_keys=False, allow_unicode=True)
    contents = {
        "app.py": APP.format(model_id=model_id),
        "requirements.txt": "".join(f"{line}\n" for line in ([package] if package else _requirements())),
        "README.md": f"---\n{header}---\n{TEXT.format(title=as_text(title), model_id=model_id)}",
    }
    if package is None:
        contents |= _code()
    for name, content in contents.items():
        with atomic_file(Path(folder) / name) as partial:
            partial.write_text(content, encoding="utf-8")
    return [Path(folder) / name for name in contents]


def _code() -> dict[str, str]:
    """This package as files of a Space: paths and texts."""
    paths = {path.relative_to(PACKAGE): path for path in PACKAGE.rglob("*") if path.suffix in CODE}
    templates = next(path for path in TEMPLATES if path.is_dir())
    paths |= {Path("model_cards") / path.name: path for path in templates.glob("*.md")}
    found = {f"retfound_hf/{inside.as_posix()}": paths[inside].read_text(encoding="utf-8") for inside in sorted(paths)}
    installed = _installed()
    if text := installed and installed.read_text("licenses/LICENSE"):
        found["retfound_hf/LICENSE"] = text
    return found


def _installed(name: str = NAME) -> metadata.Distribution | None:
    """A package as pip installed it; a Python started in a checkout sees its egg-info first, which may be old."""
    return next((known for known in metadata.distributions(name=name) if known.read_text("WHEEL")), None)


def _requirements() -> list[str]:
    """Requirements of this package and its page, as it was installed."""
    installed = _installed()
    if installed is None:
        raise RetFoundError(
            f"the requirements of {NAME} are unknown, as it is not installed; pip install the checkout"
        )
    wanted = {"", *(f'extra == "{extra}"' for extra in EXTRAS)}
    lines = [line.partition(";") for line in installed.requires or []]
    return [requirement.strip() for requirement, _, marker in lines if marker.strip() in wanted]
