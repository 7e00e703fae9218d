"""How much a visitor may ask of the server."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Largest upload (bytes, each file), largest image (pixels) and most images of a batch."""

    upload_bytes: int = 200 * 2**20
    pixels: int = 100_000_000
    images: int = 5000
