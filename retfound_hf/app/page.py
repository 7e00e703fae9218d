"""The whole page: header, tabs, and the texts between them."""

from pathlib import Path
from typing import Any

from .card import intended_use
from .examples import draw_examples
from .limits import Limits
from .many_images import many_images_tab
from .markup import own_html, render
from .one_image import one_image_tab
from .reader import Reader
from .reconstruction import Painter, reconstruction_tab

STYLE = Path(__file__).with_name("style.css")
SWEPT_EVERY, SWEPT_AFTER = 60, 600  # seconds; of uploads for which no answer was ever asked
KINDS = {
    "single_label_classification": "Classifier",
    "multi_label_classification": "Classifier of findings that may occur together",
    "regression": "Regression",
}
SEES = {"cfp": "colour fundus photographs", "oct": "OCT B-scans", None: "retinal images"}


def build_page(reader: Reader | None, painter: Painter | None, limits: Limits) -> Any:
    """The page as gradio `Blocks`; it holds nothing of a visitor beside his session."""
    import gradio

    title = _title((reader or painter).name_or_path)
    with gradio.Blocks(title=f"RETFound: {title}", delete_cache=(SWEPT_EVERY, SWEPT_AFTER)) as page:
        own_html(render("header", title=title, description=_description(reader)))
        with gradio.Tabs():
            if reader is not None:
                with gradio.Tab("One image"):
                    one_image_tab(reader, limits, draw_examples(reader.modality), intended_use(reader.name_or_path))
                with gradio.Tab("Many images"):
                    many_images_tab(reader, limits)
            if painter is not None:
                with gradio.Tab("Reconstruction"):
                    reconstruction_tab(painter, limits)
    return page


def _title(name_or_path: str) -> str:
    """The folder's own name, or the whole id on the Hub."""
    return Path(name_or_path).resolve().name if Path(name_or_path).is_dir() else name_or_path


def _description(reader: Reader | None) -> str:
    if reader is None:
        return "Masked autoencoder of retinal images"
    names = ", ".join(reader.class_names[:8]) + (" …" if len(reader.class_names) > 8 else "")
    return f"{KINDS[reader.problem_type]} of {SEES[reader.modality]}: {names}"
