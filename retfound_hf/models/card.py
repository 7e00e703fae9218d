"""The card of a model folder: its README.md, made from a template and from facts alone."""

from pathlib import Path
from typing import Any

from ..runs.files import whole_file
from .image_processing import RetFoundImageProcessor
from .starting_points import OFFICIAL_LICENSE, published

# An installed package has its templates inside, a checkout beside it.
PACKAGE = Path(__file__).parents[1]
TEMPLATES = (PACKAGE / "model_cards", PACKAGE.parent / "model_cards")
TAGS = ("retfound", "ophthalmology", "retina", "medical-imaging")


def write_card(folder: str | Path, template: str, metadata: dict[str, Any] | None, **facts: Any) -> Path:
    """Write `README.md` into `folder`.

    Args:
        template: name of a file in `model_cards/`, without `.md`.
        metadata: the YAML block that the Hub reads; `tags` and `library_name` are added. None for a finished card.
        facts: the values of the template's placeholders; `folder_name` is added.

    Raises:
        jinja2.UndefinedError: a placeholder without a value.
    """
    import jinja2
    import yaml

    folder = Path(folder)
    templates = next(path for path in TEMPLATES if path.is_dir())
    metadata = {"library_name": "transformers", "tags": list(TAGS), **(metadata or {})}
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(templates, encoding="utf-8"),
        undefined=jinja2.StrictUndefined,
        keep_trailing_newline=True,
        autoescape=False,
    )
    facts.setdefault("folder_name", folder.name)
    card = environment.get_template(f"{template}.md").render(
        card_data=yaml.safe_dump(metadata, sort_keys=False).strip(), **facts
    )
    path = folder / "README.md"
    with whole_file(path) as partial:
        partial.write_text(card, encoding="utf-8")
    return path


def describe_preprocessing(processor: RetFoundImageProcessor) -> str:
    """One sentence that says what the image processor does, read from its settings."""
    crop = "Crop to the field of view and pad to a square; then r" if processor.do_fundus_crop else "R"
    size = dict(processor.size)
    resized = f"the shorter side to {size['shortest_edge']}" if "shortest_edge" in size else f"to {_by(size)}"
    return (
        f"{crop}esize {resized} pixels (bicubic, antialiased), crop the centre {_by(dict(processor.crop_size))}, "
        f"scale to [0, 1] and normalise by mean "
        f"{tuple(processor.image_mean)} and deviation {tuple(processor.image_std)}."
    )


def license_of(base: str) -> str:
    """The licence of the base, which holds for what is made from it; the official weights' where none is stated."""
    known = published(base)
    if known is not None and known.license is not None:
        return known.license
    return _card_data(base).get("license") or OFFICIAL_LICENSE


def hub_id_of(base: str) -> str | None:
    """The Hub id that a card can name for a base: that of the name or folder, or what the folder was made from."""
    known = published(base)
    if known is not None:
        return known.hub_id
    if not Path(base).exists():
        return base
    named = _card_data(base).get("base_model")
    return named[0] if isinstance(named, list) else named


def _card_data(folder: str) -> dict[str, Any]:
    path = Path(folder) / "README.md"
    if not path.is_file():
        return {}
    from huggingface_hub import ModelCard

    return ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()


def _by(size: dict[str, int]) -> str:
    return f"{size['width']} x {size['height']}"
