"""Colours and fonts of gradio's own parts; fonts are those that the reader's machine has."""

from typing import Any


def theme() -> Any:
    """A calm theme without a font from elsewhere."""
    import gradio
    from gradio.themes import Color, Font

    ink = Color(
        c50="#eef6f7", c100="#d6e9eb", c200="#aed3d7", c300="#7fb8be", c400="#4b979f", c500="#217780", c600="#0f5f68",
        c700="#0c4d55", c800="#0b3f45", c900="#0a3338", c950="#062125",
    )  # fmt: skip
    fonts = [Font("system-ui"), Font("-apple-system"), Font("Segoe UI"), Font("Roboto"), Font("sans-serif")]
    mono = [Font("ui-monospace"), Font("Consolas"), Font("monospace")]
    return gradio.themes.Base(primary_hue=ink, neutral_hue="slate", font=fonts, font_mono=mono, radius_size="md")
