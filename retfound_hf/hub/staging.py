"""The exact folder that is uploaded: weights as they are, code beside them, names that hold on the Hub."""

import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..runs.errors import RetFoundError
from ..runs.files import write_json
from .contents import Contents, read_json
from .remote_code import MODEL_CODE, PROCESSOR_MAP, bundle
from .small_groups import SUBGROUPS, hide_small_groups

# Where a snippet loads a folder by its name, which need not be the folder's any more; ids of the Hub have a slash.
LOADED = re.compile(r"""(\bfrom_pretrained\((?:\w+, *)?|\bload_\w+\(|\bmodel=)(["'])[^"'/\n]+\2""")


@contextmanager
def staged(contents: Contents, repo_id: str, base_model: str | None = None) -> Iterator[Path]:
    """Yield a temporary folder with all that is published under `repo_id`.

    Args:
        base_model: Hub id of what it was made from, for the card; for an adapter, the model that it is loaded onto.

    Raises:
        RetFoundError: an adapter whose base nobody else can load.
    """
    with tempfile.TemporaryDirectory(prefix=".publish-", dir=contents.folder) as name:
        stage = Path(name)
        for path in contents.files:
            (stage / path).parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(contents.folder / path, stage / path)
            if Path(path).name == SUBGROUPS:
                hide_small_groups(stage / path)
        for path in stage.glob("*config.json"):
            write_json(path, _without_paths(read_json(path)))
        _add_code(contents, stage)
        if contents.kind == "adapter":
            _name_base(stage, base_model)
        _rewrite_card(contents, stage, repo_id, base_model)
        yield stage


def _link_or_copy(source: Path, target: Path) -> None:
    if source.suffix != ".safetensors":
        shutil.copyfile(source, target)  # may be rewritten
        return
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copyfile(source, target)


def _without_paths(value: Any) -> Any:
    """A configuration without the places, on this machine, that it and those within it were loaded from."""
    if isinstance(value, dict):
        return {key: _without_paths(item) for key, item in value.items() if key != "_name_or_path"}
    return [_without_paths(item) for item in value] if isinstance(value, list) else value


def _add_code(contents: Contents, stage: Path) -> None:
    """Name the code files in the configurations and write them, as far as the classes are not stock ones."""
    entries = []
    processor = read_json(stage / "preprocessor_config.json")
    if processor.get("image_processor_type") == "RetFoundImageProcessor":
        entries.append("models/image_processing.py")
        write_json(stage / "preprocessor_config.json", processor | {"auto_map": PROCESSOR_MAP})
    if contents.config.get("model_type") in MODEL_CODE:
        needed, classes = MODEL_CODE[contents.config["model_type"]]
        entries += needed
        lacking = {"AutoModelForPreTraining"} if contents.config.get("encoder_only") else set()
        classes = {auto: name for auto, name in classes.items() if auto not in lacking}
        write_json(stage / "config.json", read_json(stage / "config.json") | {"auto_map": classes})
    for name, text in bundle(entries).items():
        (stage / name).write_text(text, encoding="utf-8")


def _name_base(stage: Path, base_model: str | None) -> None:
    config = read_json(stage / "adapter_config.json")
    base = base_model or config.get("base_model_name_or_path")
    if not base or not is_hub_id(base):
        raise RetFoundError(
            f"the adapter was made on {base or 'an unknown model'}, which is no Hub id: nobody else could load it; "
            "publish that folder first, then this one with --base_model ORG/NAME"
        )
    write_json(stage / "adapter_config.json", config | {"base_model_name_or_path": base})


def _rewrite_card(contents: Contents, stage: Path, repo_id: str, base_model: str | None) -> None:
    """Let the snippets load by name, and the metadata name bases that exist on the Hub."""
    from huggingface_hub import ModelCard

    path = stage / "README.md"
    text = LOADED.sub(rf'\1"{repo_id}"', path.read_text(encoding="utf-8"))
    card = ModelCard(text, ignore_metadata_errors=True)
    bases = _ids(base_model or card.data.to_dict().get("base_model"))
    if contents.kind == "adapter":
        bases = [read_json(stage / "adapter_config.json")["base_model_name_or_path"]]
    if bases:
        card.data.base_model = bases[0] if len(bases) == 1 else bases
        if contents.kind == "adapter" or base_model:
            card.data.base_model_relation = "adapter" if contents.kind == "adapter" else "finetune"
    elif "base_model" in card.data.to_dict():
        del card.data.base_model
    path.write_text(str(card), encoding="utf-8")


def _ids(named: Any) -> list[str]:
    return [base for base in ([named] if isinstance(named, str) else named or []) if is_hub_id(base)]


def is_hub_id(name: str) -> bool:
    """Whether a name can be a repository of the Hub, and is not a folder here."""
    return re.fullmatch(r"[\w.-]+/[\w.-]+", name) is not None and not Path(name).exists()
