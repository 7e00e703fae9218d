"""One image: what the worker makes of it equals the image processor's way, and bad ones get a reason."""

import hashlib
from io import BytesIO

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from retfound_hf.data.shards import Job, Preparer
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.reading import read_image
from retfound_hf.models.image_processing_retfound import RetFoundImageProcessor


def opened(content: bytes) -> Image.Image:
    return Image.open(BytesIO(content))


@pytest.mark.parametrize("crop", [True, False])
def test_the_pixels_are_those_of_the_image_processor(fundus, tmp_path, crop):
    path = tmp_path / "eye.png"
    fundus(0, 200, 150).save(path)
    prepared = Preparer(size=64, crop=crop, min_side=64, format="png")(str(path))
    size = {"height": 64, "width": 64}
    processor = RetFoundImageProcessor(do_fundus_crop=crop, size=size, do_center_crop=False)
    expected = processor(str(path), do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    pixels = np.asarray(opened(prepared.image))
    np.testing.assert_array_equal(pixels, expected.transpose(1, 2, 0))
    assert prepared.hash == hashlib.blake2b(pixels.tobytes(), digest_size=16).hexdigest()
    assert prepared.reason == ""


def test_the_crop_fills_the_square(fundus, tmp_path):
    path = tmp_path / "eye.png"
    fundus(0, 200, 150).save(path)
    rows = [opened(Preparer(64, crop, 64, "png")(str(path)).image).getpixel((2, 32))[0] for crop in (True, False)]
    assert rows[0] > 100 and rows[1] < 20


def test_jpeg_keeps_colour_at_full_resolution_and_no_metadata(fundus, tmp_path):
    path = tmp_path / "eye.jpg"
    exif = Image.Exif()
    exif[0x0110] = "Camera of Dr Secret"
    exif[0x0112] = 6  # to be turned by 90 degrees
    fundus(0, 150, 200).save(path, quality=95, exif=exif, icc_profile=b"Secret", comment=b"Secret")
    prepared = Preparer(64, True, 64)(str(path))
    image = opened(prepared.image)
    assert JpegImagePlugin.get_sampling(image) == 0  # 4:4:4
    assert b"Secret" not in prepared.image and not image.getexif() and "icc_profile" not in image.info
    turned = np.asarray(opened(Preparer(64, False, 64, "png")(str(path)).image), int)
    upright = np.asarray(fundus(0, 150, 200).rotate(-90, expand=True).resize((64, 64), Image.Resampling.BICUBIC), int)
    assert np.abs(turned - upright).mean() < 4


def test_a_large_jpeg_is_decoded_at_reduced_size_and_looks_the_same(fundus, tmp_path, monkeypatch):
    path = tmp_path / "large.jpg"
    fundus(1, 2048, 1536).save(path, quality=95)
    sizes = []

    def seen(*arguments, **options):
        image = read_image(*arguments, **options)
        sizes.append(image.size)
        return image

    monkeypatch.setattr("retfound_hf.data.shards.read_image", seen)
    quick = np.asarray(Preparer(128, True, 64).prepare(str(path)), float)
    assert sizes == [(512, 384)]
    full = crop_field_of_view(read_image(path)).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(quick - np.asarray(full, float)).mean() < 1
    Preparer(128, True, 1000).prepare(str(path))
    assert sizes[1] == (2048, 1536)  # no less than --min_side asks about


def test_bad_images_get_a_reason(photos, damaged):
    preparer = Preparer(32, True, 64)
    for name, reason in damaged.items():
        prepared = preparer(str(photos / name))
        assert prepared.reason.startswith(reason) and prepared[:2] == (b"", "")
    assert preparer(str(photos / "absent.png")).reason == "the file does not exist"
    assert preparer(b"").reason == "the file is empty"


@pytest.mark.parametrize("spread, is_blank", [(6, True), (10, False)])
def test_blank_is_a_narrow_range_of_gray(tmp_path, spread, is_blank):
    pixels = np.tile(np.linspace(100, 100 + spread, 64).round().astype(np.uint8), (64, 1))
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    assert Preparer(64, False, 64)(str(tmp_path / "scan.png")).reason.startswith("it is blank") == is_blank


def test_no_error_of_one_image_stops_a_job(tmp_path):
    prepared = Job(lambda ref: 1 / ref, Preparer(32, True, 64))(0)
    assert prepared.reason == "it cannot be prepared (division by zero)"
