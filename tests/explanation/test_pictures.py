import unicodedata

import numpy as np
import pytest
from PIL import Image

from retfound_hf.explanation.outputs import FileNames
from retfound_hf.images.drawing import colour_layer, heat_on_image, overlay, with_scale
from retfound_hf.images.field_of_view import ImageRegion

WINDOW = ImageRegion(20, 10, 60, 50)


def test_heat_is_in_multiples_of_the_average():
    patches = np.ones((4, 4))
    patches[1, 2] = 9  # the average is 1.5
    heat = heat_on_image(patches, WINDOW, (80, 60))
    assert heat.top == pytest.approx(6) and heat.values.shape == (60, 80)
    assert heat.values.max() == pytest.approx(1, abs=0.11)  # pixels lie beside the patch's very centre
    y, x = np.unravel_index(heat.values.argmax(), heat.values.shape)
    assert abs(x + 0.5 - (20 + 2.5 * 10)) <= 0.5 and abs(y + 0.5 - (10 + 1.5 * 10)) <= 0.5
    outside = heat.values.copy()
    outside[10:50, 20:60] = 0
    assert (outside == 0).all() and heat.values[12, 22] == 0


def test_even_and_empty_maps_stay_pale():
    small_differences = 1 + 0.1 * np.random.default_rng(0).random((4, 4))
    heat = heat_on_image(small_differences, WINDOW, (80, 60))
    assert heat.top == 3 and heat.values.max() < 0.05
    for patches in (np.zeros((4, 4)), -np.ones((4, 4))):
        assert (heat_on_image(patches, WINDOW, (80, 60)).values == 0).all()


def test_what_speaks_against_the_target_is_not_drawn():
    patches = np.full((4, 4), -5.0)
    patches[0, 0] = 1
    heat = heat_on_image(patches, WINDOW, (80, 60))
    assert heat.top == pytest.approx(16) and (heat.values[35:, 45:] == 0).all()


def test_the_overlay_leaves_cold_pixels_and_covers_hot_ones():
    image = Image.new("RGB", (40, 30), (180, 70, 20))
    values = np.zeros((30, 40), np.float32)
    values[:, 20:] = 1
    drawn = np.asarray(overlay(image, values, opacity=1.0))
    assert (drawn[:, :20] == (180, 70, 20)).all()
    assert (drawn[:, 20:] == (253, 231, 37)).all()  # the last colour of viridis
    assert np.array_equal(np.asarray(overlay(image, values, opacity=0)), np.asarray(image))
    assert np.asarray(image)[0, 0].tolist() == [180, 70, 20]
    layer = np.asarray(colour_layer(values, opacity=0.5))
    assert layer.shape == (30, 40, 4) and set(np.unique(layer[..., 3])) == {0, 128}


@pytest.mark.parametrize("width", [60, 340, 2000])
def test_the_scale_keeps_the_picture(width):
    picture = Image.new("RGB", (width, 50), (1, 2, 3))
    page = with_scale(picture, "a caption that is far too long for the small picture " * 5, 4.2)
    left = (page.width - width) // 2
    assert page.height > 80 and np.array_equal(np.asarray(page)[:50, left : left + width], np.asarray(picture))


def test_every_id_has_a_file_name_of_its_own():
    names = FileNames()
    ids = ["a/b.jpg", "a/b.png", "a_b", "../../etc/passwd", "A/B.tif", "/x/y.z.png", "", "é ü.jpg", "n" * 300, "a_b-2"]
    ids += ["眼底" * 90 + "/" + "患者" * 60 + f"{number}.png" for number in range(12)]
    ids += [
        "x" + "患" * 200,
        "患" * 200,
        "患" * 201,
        "É.jpg",
        "e\u0301.jpg",
        "ﬁ",
        "fi",
        "\udce9.png",
        "?.png",
        "*.png",
    ]
    found = [names(name) for name in ids]
    assert found[:4] == ["a_b", "a_b-2", "a_b-3", "etc_passwd"]
    assert len({unicodedata.normalize("NFKC", name).casefold() for name in found}) == len(ids)
    assert all(name and len(name.encode()) < 140 and "/" not in name and "." not in name for name in found)
