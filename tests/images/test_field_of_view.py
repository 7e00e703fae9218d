from io import BytesIO

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from retfound_hf.errors import BadDataError
from retfound_hf.images.field_of_view import (
    FieldOfView,
    crop_field_of_view,
    find_field_of_view,
    median_of_nine,
    square_box,
    with_neighbours,
    without_holes,
)
from retfound_hf.images.synthetic import CLASSES, draw_patient, render

Box = tuple[int, int, int, int]


def plant_disc(
    height: int = 480, width: int = 640, centre: tuple[float, float] = (320, 240), radius: float = 200,
    background: float = 3, noise: float = 2, brightness: float = 1.0, vignette: float = 0.4, seed: int = 0,
) -> tuple[np.ndarray, Box]:  # fmt: skip
    """A textured, vignetted disc and its exact box (left, top, right, bottom)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] + 0.5
    r = np.hypot(x - centre[0], y - centre[1]) / radius
    waves = 1 + 0.1 * np.sin(x / 23) * np.cos(y / 31)
    colour = np.array([190, 95, 50]) * brightness
    image = np.where((r < 1)[..., None], (waves * (1 - vignette * r**2))[..., None] * colour, background)
    image = np.clip(image + rng.normal(0, noise, image.shape), 0, 255).astype(np.uint8)
    left, top = max(0, centre[0] - radius), max(0, centre[1] - radius)
    right, bottom = min(width, centre[0] + radius), min(height, centre[1] + radius)
    return image, (round(left), round(top), round(right), round(bottom))


def box_of(field: FieldOfView) -> Box:
    return field.left, field.top, field.right, field.bottom


def iou(a: Box, b: Box) -> float:
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


@pytest.mark.parametrize("size", [(480, 640), (700, 700), (900, 600)])
@pytest.mark.parametrize("share", [0.3, 0.4, 0.47])
@pytest.mark.parametrize("background, noise", [(0, 0), (3, 2), (25, 6), (10, 12)])
def test_the_disc_is_found_whatever_its_size_place_and_background(size, share, background, noise):
    height, width = size
    radius = share * min(size)
    spare = np.array([width / 2 - radius, height / 2 - radius])
    offset = np.random.default_rng(int(100 * share + noise)).uniform(-0.8, 0.8, 2) * spare
    image, box = plant_disc(height, width, (width / 2 + offset[0], height / 2 + offset[1]), radius, background, noise)
    field = find_field_of_view(image)
    assert field.found
    assert iou(box_of(field), box) > 0.97
    assert np.abs(np.subtract(box_of(field), box)).max() <= max(0.02 * radius, 2)


@pytest.mark.parametrize("brightness, vignette", [(0.25, 0.2), (0.5, 0.7), (1.3, 0.0), (1.0, 0.85)])
def test_dark_bright_and_vignetted_discs_are_found(brightness, vignette):
    image, box = plant_disc(brightness=brightness, vignette=vignette)
    assert iou(box_of(find_field_of_view(image)), box) > 0.97


@pytest.mark.parametrize("centre", [(320, 240), (300, 225), (320, 150), (330, 300)])
def test_a_disc_that_is_higher_than_the_sensor_keeps_its_cut(centre):
    image, box = plant_disc(centre=centre, radius=260)
    field = find_field_of_view(image)
    assert field.found and iou(box_of(field), box) > 0.97
    assert field.side == pytest.approx(520, rel=0.02)


def test_black_bands_across_the_disc_are_cut_away_too():
    image, _ = plant_disc(600, 800, (400, 300), 290)
    image[:80] = image[-90:] = 0
    assert iou(box_of(find_field_of_view(image)), (110, 80, 690, 510)) > 0.97


def test_captions_specks_notches_and_jpeg_noise_do_not_move_the_box():
    image, box = plant_disc()
    picture = Image.fromarray(image)
    draw = ImageDraw.Draw(picture)
    draw.text((5, 5), "OD 2019-03-02 14:11\nID 00417", fill="white")
    draw.rectangle((560, 440, 635, 475), fill=(240, 240, 240))
    draw.ellipse((600, 20, 612, 32), fill=(255, 255, 255))
    draw.polygon([(455, 95), (480, 70), (495, 85), (470, 110)], fill=(190, 95, 50))
    buffer = BytesIO()
    picture.save(buffer, "JPEG", quality=40)
    assert iou(box_of(find_field_of_view(Image.open(buffer))), box) > 0.97


def test_a_large_dark_shadow_at_the_rim_does_not_move_the_box():
    image, box = plant_disc()
    y, x = np.mgrid[:480, :640]
    shadow = 1 - np.exp(-((((x - 130) / 90) ** 2 + ((y - 260) / 80) ** 2) ** 2))
    image = (image * shadow[..., None]).astype(np.uint8)
    assert image[250:270, 120:150].max() < 10
    assert iou(box_of(find_field_of_view(image)), box) > 0.97


def test_an_unevenly_lit_camera_background_is_not_the_field():
    image, box = plant_disc(background=10, noise=3)
    ramp = np.linspace(0, 20, 640)[None, :, None]
    image = np.clip(image + ramp, 0, 255).astype(np.uint8)
    assert iou(box_of(find_field_of_view(image)), box) > 0.97


@pytest.mark.parametrize("condition", CLASSES["oct"])
def test_oct_scans_pass_unchanged(condition):
    rng = np.random.default_rng(3)
    for size in (128, 300, 512):
        eye = draw_patient(rng, "oct")[0]
        image = Image.fromarray(render(eye, condition, 0.8, size, rng).image)
        assert crop_field_of_view(image) is image
        square = image.resize((size, size))
        assert crop_field_of_view(square) is square


def test_images_without_a_dark_surround_pass_unchanged():
    rng = np.random.default_rng(0)
    touching, _ = plant_disc(400, 400, (200, 200), 200)
    patch, _ = plant_disc(400, 400, (200, 200), 600)
    landscape = patch[:300]
    noise = rng.integers(0, 256, (300, 300, 3), dtype=np.uint8)
    black, white = np.zeros((300, 400, 3), np.uint8), np.full((300, 400, 3), 255, np.uint8)
    corner, _ = plant_disc(400, 400, (0, 0), 500)
    for array in (touching, patch, landscape, noise, black, white, corner, patch[:8, :8], patch[:1, :1]):
        image = Image.fromarray(array)
        field = find_field_of_view(image)
        assert not field.found and box_of(field) == (0, 0, *image.size)
        assert crop_field_of_view(image) is image


def test_bright_shapes_that_are_no_disc_pass_unchanged():
    bar, frame = np.zeros((400, 600, 3), np.uint8), np.zeros((400, 600, 3), np.uint8)
    bar[150:260] = 150
    frame[60:340, 100:500] = 150
    for array in (bar, frame):
        image = Image.fromarray(array)
        assert crop_field_of_view(image) is image


@pytest.mark.parametrize(
    "radius, centre", [(150, (200, 260)), (230, (330, 240)), (270, (320, 240)), (250, (320, 160))]
)
def test_the_crop_of_a_crop_is_itself(radius, centre):
    image, _ = plant_disc(centre=centre, radius=radius)
    once = crop_field_of_view(Image.fromarray(image))
    assert once.width == once.height
    assert crop_field_of_view(once) is once


def test_the_square_is_centred_on_the_field_and_padded_with_black():
    image, _ = plant_disc(radius=300)
    field = find_field_of_view(image)
    left, top, right, bottom = square_box(field)
    crop = np.asarray(crop_field_of_view(Image.fromarray(image)))
    assert crop.shape == (field.side, field.side, 3) == (bottom - top, right - left, 3)
    assert top < 0 and not crop[:-top].any() and not crop[480 - top :].any()
    assert np.array_equal(crop[-top : 480 - top], image[:, left:right])


@pytest.mark.parametrize("array", [np.zeros((4, 4, 3)), np.zeros((4, 4), np.uint8)])
def test_other_arrays_are_refused(array):
    with pytest.raises(BadDataError):
        find_field_of_view(array)


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 5), (17, 16), (96, 128)])
@pytest.mark.parametrize("levels", [2, 256])
def test_the_median_is_that_of_scipy(shape, levels):
    value = np.random.default_rng(0).integers(0, levels, shape, dtype=np.uint8)
    np.testing.assert_array_equal(median_of_nine(value), ndimage.median_filter(value, 3))


@pytest.mark.parametrize("shape", [(1, 1), (1, 7), (2, 5), (17, 16), (96, 128)])
@pytest.mark.parametrize("share", [0.1, 0.6, 0.9, 1.0])
def test_the_operations_on_masks_are_those_of_scipy(shape, share):
    mask = np.random.default_rng(1).random(shape) < share
    for beyond in (False, True):
        eroded, dilated = (with_neighbours(way, mask, beyond) for way in (np.logical_and, np.logical_or))
        np.testing.assert_array_equal(eroded, ndimage.binary_erosion(mask, border_value=beyond))
        np.testing.assert_array_equal(dilated, ndimage.binary_dilation(mask, border_value=beyond))
    np.testing.assert_array_equal(without_holes(mask), ndimage.binary_fill_holes(mask))
