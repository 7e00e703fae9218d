"""Image quality by simple rules: a verdict with reasons in plain words.

The rules find gross faults: an image that is tiny, empty, dark, overexposed, blurred, without its field of view, or of
the other modality. Anatomy is unknown to them: artefacts, a wrong region of the eye or a disease that hides the
retina pass, and noise counts as detail. The thresholds were set on the synthetic images of this package, degraded
step by step, not on graded photographs.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from PIL import Image

from ..vocabulary import MODALITIES
from .field_of_view import FieldOfView, as_rgb_image, find_field_of_view
from .reading import GRAY

Verdict = Literal["ok", "doubtful", "reject"]
FLAT = 2.0  # deviation of luma
LOOKED_AT_SIDE = 512
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Rule:
    """A measure that is doubtful beyond `doubtful` and rejected beyond `reject`; `above` tells on which side."""

    measure: str
    doubtful: float
    reject: float
    above: bool
    reason: str

    def verdict(self, value: float) -> Verdict:
        beyond = [value > limit if self.above else value < limit for limit in (self.reject, self.doubtful)]
        return "reject" if beyond[0] else "doubtful" if beyond[1] else "ok"


RULES = (
    Rule("side", 224, 64, False, "too small: the retina is only {side:.0f} pixels wide"),
    Rule("overexposed", 0.1, 0.3, True, "overexposed: {overexposed:.0%} of the retina is white"),
    Rule("sharpness", 0.30, 0.145, False, "blurred: hardly any fine detail"),
)
COLOUR_RULES = (
    Rule("brightness", 35, 15, False, "too dark: mean brightness {brightness:.0f} of 255"),
    Rule("shape", 0.75, 0.4, False, "the field of view is cut: its height and width differ much"),
)
GRAY_RULES = (Rule("highlights", 70, 30, False, "too dark: the brightest layers reach {highlights:.0f} of 255"),)


@dataclass(frozen=True)
class Quality:
    """Verdict with its reasons, the gravest first, and the measures behind it.

    Attributes:
        sentences: the reasons before `str.format` fills the measures in.
        measures: of the field of view: `side` (pixels), `brightness` and `highlights` (mean and 99th percentile of
            luma, of 255), `overexposed` (share of white pixels), `contrast` (deviation of luma), `sharpness` (fine
            over coarse detail), `shape` (shorter over longer side), `colour` (see `reading.GRAY`).
    """

    verdict: Verdict
    sentences: tuple[str, ...] = ()
    measures: dict[str, float] = field(default_factory=dict)

    @property
    def reasons(self) -> tuple[str, ...]:
        return tuple(sentence.format(**self.measures) for sentence in self.sentences)


def assess_quality(image: np.ndarray | Image.Image, modality: str | None = None) -> Quality:
    """Assess one image, reduced to at most 512 pixels.

    Args:
        image: RGB, uint8, as an array (height, width, 3) or a PIL image.
        modality: one of `MODALITIES` where the model's is known; None judges the image by its looks.

    Raises:
        BadDataError: an image of another shape or type.
    """
    image = as_rgb_image(image)
    if min(image.size) < 16:
        size = {"width": image.width, "height": image.height}
        return Quality("reject", ("too small: {width} x {height} pixels",), size)
    fov = find_field_of_view(image)
    pixels, inside = _field(image, fov)
    measures = _measure(pixels, inside)
    measures["side"] = float(fov.side if fov.found else min(image.size))
    is_round = fov.found or not inside.all()
    if fov.found:
        measures["shape"] = min(fov.right - fov.left, fov.bottom - fov.top) / fov.side
    if measures["contrast"] < (FLAT if measures["brightness"] > 20 else FLAT / 4):
        return Quality("reject", ("blank: the image is one flat colour",), measures)
    found: list[tuple[Verdict, str]] = []
    looks_gray = measures["colour"] < GRAY and not is_round
    is_gray = MODALITIES[modality].gray if modality else looks_gray
    for rule in (*RULES, *(GRAY_RULES if is_gray else COLOUR_RULES)):
        if rule.measure in measures:
            found.append((rule.verdict(measures[rule.measure]), rule.reason))
    found.append(_modality_verdict(modality, measures["colour"], is_round))
    faults = sorted((fault for fault in found if fault[0] != "ok"), key=lambda fault: fault[0] != "reject")
    return Quality(faults[0][0] if faults else "ok", tuple(sentence for _, sentence in faults), measures)


def _modality_verdict(modality: str | None, colour: float, is_round: bool) -> tuple[Verdict, str]:
    if modality is None:
        return "ok", ""
    expected, is_gray = MODALITIES[modality], colour < GRAY
    if is_gray == expected.gray:
        if expected.crop and not is_round:
            return "doubtful", "no round field of view found: a detail, or not a fundus photograph"
        return "ok", ""
    others = [row.title for row in MODALITIES.values() if row.gray == is_gray]
    like = f", as {others[0]} are," if others else ""
    mismatch = f"it is {'gray' if is_gray else 'coloured'}{like} and the model is of {expected.title}"
    # A gray photograph still shows its round field; without one nothing speaks for the model's modality.
    return ("reject" if is_round == expected.gray else "doubtful"), mismatch


def _field(image: Image.Image, fov: FieldOfView) -> tuple[np.ndarray, np.ndarray]:
    """The field of view at reduced size, uint8 (height, width, 3), and the retina in it, bool (height, width)."""
    if fov.found:
        image = image.crop((fov.left, fov.top, fov.right, fov.bottom))
    small = image.copy()
    small.thumbnail((LOOKED_AT_SIDE, LOOKED_AT_SIDE), Image.Resampling.BICUBIC, reducing_gap=3)
    pixels = np.asarray(small)
    height, width = pixels.shape[:2]
    y, x = np.mgrid[:height, :width] + 0.5
    from_centre = np.hypot(y - height / 2, x - width / 2) / (max(height, width) / 2)
    # A photograph that is cropped to its field already still has the dark corners.
    corners = pixels.max(axis=2)[from_centre > 1.3]
    is_disc = fov.found or (
        corners.size > 0 and corners.mean() < 20 and abs(height - width) < 0.1 * max(height, width)
    )
    # Short of the rim, whose edge would count as detail.
    return pixels, from_centre < 0.85 if is_disc else np.ones((height, width), bool)


def _measure(pixels: np.ndarray, inside: np.ndarray) -> dict[str, float]:
    from scipy import ndimage

    luma = pixels @ LUMA
    seen = luma[inside]
    fine, middle, coarse, coarsest = (ndimage.gaussian_filter(luma, sigma) for sigma in (1, 2, 4, 8))
    # A difference of Gaussians is a Laplacian at one scale; the ratio of two scales does not depend on the contrast.
    detail, content = np.std((fine - middle)[inside]), np.std((coarse - coarsest)[inside])
    return {
        "brightness": float(seen.mean()),
        "highlights": float(np.percentile(seen, 99)),
        "overexposed": float((seen >= 250).mean()),
        "contrast": float(seen.std()),
        "sharpness": float(detail / content) if content > 0 else 0.0,
        "colour": float(np.ptp(pixels.astype(np.int16), axis=2)[inside].mean()),
    }
