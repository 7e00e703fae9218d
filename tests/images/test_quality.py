"""The quality gate on synthetic images, as they are and degraded step by step."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance, ImageFilter

from retfound_hf.errors import BadDataError
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.quality import assess_quality
from retfound_hf.images.synthetic import CLASSES, draw_patient, render
from retfound_hf.vocabulary import MODALITIES, Modality


def draw(modality: str, number: int, size: int = 384) -> Image.Image:
    rng = np.random.default_rng(number)
    eye = draw_patient(rng, modality)[number % 2]
    condition = CLASSES[modality][number % 3]
    return Image.fromarray(render(eye, condition, rng.uniform(), size, rng).image)


@pytest.fixture(scope="module", params=["cfp", "oct"])
def few(request) -> tuple[str, list[Image.Image]]:
    return request.param, [draw(request.param, number) for number in range(6)]


def blurred(image: Image.Image, radius: float) -> Image.Image:
    return image.filter(ImageFilter.GaussianBlur(radius * max(image.size) / 512))


def test_good_images_pass(few):
    modality, images = few
    assert [assess_quality(image, modality).reasons for image in images] == [()] * 6
    assert {assess_quality(image).verdict for image in images} == {"ok"}
    assert assess_quality(draw(modality, 1, 256), modality).verdict == "ok"  # as small as the quickstart's


def test_blur_is_found_and_grows(few):
    modality, images = few
    for image in images:
        results = [assess_quality(blurred(image, radius), modality) for radius in (0, 3, 8)]
        assert [result.verdict for result in results] == ["ok", "doubtful", "reject"]
        assert all(result.reasons == ("blurred: hardly any fine detail",) for result in results[1:])
        sharpness = [result.measures["sharpness"] for result in results]
        assert sharpness == sorted(sharpness, reverse=True)


def test_dark_and_overexposed(few):
    modality, images = few
    for image in images[:3]:
        dark = assess_quality(ImageEnhance.Brightness(image).enhance(0.1), modality)
        assert dark.verdict == "reject" and dark.reasons[0].startswith("too dark")
        white = assess_quality(Image.blend(image, Image.new("RGB", image.size, (255,) * 3), 0.995), modality)
        assert white.verdict == "reject"
    glare = assess_quality(ImageEnhance.Brightness(images[0]).enhance(5), modality)
    assert glare.verdict != "ok" and "overexposed" in glare.reasons[0]


@pytest.mark.parametrize("modality", ["cfp", "oct", None])
@pytest.mark.parametrize("colour", [(0, 0, 0), (120, 120, 120), (200, 90, 40), (255, 255, 255)])
def test_a_flat_image_is_blank(colour, modality):
    result = assess_quality(Image.new("RGB", (300, 260), colour), modality)
    assert (result.verdict, result.reasons) == ("reject", ("blank: the image is one flat colour",))


def test_size(few):
    modality, images = few
    assert assess_quality(images[0].resize((160, 120)), modality).verdict == "doubtful"
    tiny = assess_quality(images[0].resize((60, 45)), modality)
    assert tiny.verdict == "reject" and tiny.reasons[0].startswith("too small")
    assert assess_quality(images[0].resize((12, 9)), modality).reasons == ("too small: 12 x 9 pixels",)


def test_cut_field_and_detail():
    image = draw("cfp", 3)
    width, height = image.size
    half = assess_quality(image.crop((0, 0, width // 2, height)), "cfp")
    assert half.verdict == "doubtful" and "the field of view is cut" in half.reasons[0]
    detail = image.crop((width // 2 - 120, height // 2 - 120, width // 2 + 120, height // 2 + 120))
    assert any("no round field of view" in reason for reason in assess_quality(detail, "cfp").reasons)
    assert assess_quality(crop_field_of_view(image), "cfp").verdict == "ok"


def test_the_other_modality():
    cfp, oct_scan = draw("cfp", 0), draw("oct", 0)
    assert assess_quality(cfp, "oct").verdict == assess_quality(oct_scan, "cfp").verdict == "reject"
    assert MODALITIES["cfp"].title in assess_quality(oct_scan, "cfp").reasons[0]
    # A photograph without colour is still one.
    gray = assess_quality(cfp.convert("L").convert("RGB"), "cfp")
    assert gray.verdict == "doubtful" and gray.reasons[0].startswith("it is gray")


def test_a_modality_of_a_new_row_is_judged_by_its_properties(monkeypatch):
    row = Modality("octa", "OCT angiograms", 0.8, gray=True, crop=False)
    monkeypatch.setitem(MODALITIES, "octa", row)
    assert assess_quality(draw("oct", 0), "octa") == assess_quality(draw("oct", 0), "oct")
    assert row.title in assess_quality(draw("cfp", 0), "octa").reasons[0]


def test_arrays_and_images_alike_and_others_refused():
    image = draw("cfp", 2)
    assert assess_quality(np.asarray(image), "cfp") == assess_quality(image, "cfp")
    with pytest.raises(BadDataError):
        assess_quality(np.zeros((40, 40, 3)), "cfp")
