"""Images prepared as the image processor does: cached once for a labelled set, or encoded for shards."""

import hashlib
import logging
import os
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, JpegImagePlugin

from retfound_hf.data import image_cache
from retfound_hf.data.image_cache import Preparer, cache_images, content_digests
from retfound_hf.errors import BadArgumentError, BadDataError, UnreadableImageError
from retfound_hf.images.field_of_view import crop_field_of_view
from retfound_hf.images.reading import read_image
from retfound_hf.models.image_processing_retfound import RetFoundImageProcessor


@pytest.fixture
def rows(tmp_path, fundus):
    table = []
    for seed, suffix in enumerate(["jpg", "png", "jpg"]):
        path = tmp_path / f"photo{seed}.{suffix}"
        fundus(seed, 200 + 16 * seed, 150).save(path)
        table.append({"id": path.name, "image": str(path)})
    return pd.DataFrame(table)


@pytest.fixture
def prepare(rows, tmp_path):
    def call(table=rows, **options):
        options = {"size": 64, "crop": True, "exact": True, "cache_dir": tmp_path / "cache", **options}
        return cache_images(table, **options)

    return call


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("size", [{"height": 64, "width": 64}, {"height": 60, "width": 72}, {"shortest_edge": 64}])
def test_exact_images_equal_the_image_processor_on_the_originals(prepare, rows, crop, size):
    prepared = prepare(crop=crop, size=size)
    processor = RetFoundImageProcessor(do_fundus_crop=crop, size=size, crop_size={"height": 56, "width": 56})
    from_originals = processor(rows["image"].tolist(), return_tensors="np")["pixel_values"]
    from_prepared = processor(prepared.images["image"][:], do_fundus_crop=False, do_resize=False, return_tensors="np")[
        "pixel_values"
    ]
    np.testing.assert_array_equal(from_prepared, from_originals)
    assert prepared.rejected == []
    assert prepared.images["id"][:] == rows["id"].tolist()
    assert prepared.images["row"][:] == [0, 1, 2]


def test_shrinking_keeps_the_shape_and_never_enlarges(prepare):
    small = prepare(exact=False, crop=False).images["image"][:]
    assert [image.size for image in small] == [(85, 64), (92, 64), (99, 64)]
    large = prepare(exact=False, crop=False, size={"shortest_edge": 500}).images["image"][:]
    assert [image.size for image in large] == [(200, 150), (216, 150), (232, 150)]
    cropped = prepare(exact=False).images["image"][:]
    assert all(image.size == (64, 64) for image in cropped)


def test_shrinking_a_large_photograph_reads_less_and_sees_the_same(tmp_path, prepare, fundus):
    path = tmp_path / "large.jpg"
    fundus(0, 2000, 1500).save(path, quality=95)
    rows = pd.DataFrame([{"id": "large", "image": str(path)}])
    quick = np.asarray(prepare(rows, exact=False).images["image"][0], dtype=float)
    exact = np.asarray(prepare(rows).images["image"][0], dtype=float)
    assert np.abs(quick - exact).mean() < 3


def test_images_held_as_bytes(prepare, rows):
    in_memory = rows.assign(image=pd.Series([Path(path).read_bytes() for path in rows["image"]], dtype=object))
    for first, second in zip(prepare().images["image"][:], prepare(in_memory).images["image"][:], strict=True):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_worker_processes_give_the_same(prepare, tmp_path):
    one = prepare().images["image"][:]
    two = prepare(num_workers=2, cache_dir=tmp_path / "other").images["image"][:]
    for first, second in zip(one, two, strict=True):
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))


def test_second_call_decodes_nothing(prepare, rows, monkeypatch):
    first = prepare()
    monkeypatch.setattr(image_cache, "read_image", lambda *_, **__: pytest.fail("decoded again"))
    second = prepare()
    assert second.images.cache_files == first.images.cache_files
    np.testing.assert_array_equal(np.asarray(second.images["image"][2]), np.asarray(first.images["image"][2]))


def test_content_is_read_once_unless_the_file_changes(rows, tmp_path, monkeypatch):
    def plain(image):
        return hashlib.blake2b(image, digest_size=16).hexdigest()

    paths, absent = rows["image"].tolist(), str(tmp_path / "absent.png")
    contents = [Path(path).read_bytes() for path in paths]
    expected = [*map(plain, contents), plain(b"x"), ""]
    assert content_digests([*paths, b"x", absent]) == expected
    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", lambda path: pytest.fail(f"{path} is read again"))
        assert content_digests([*paths, b"x", absent]) == expected
    Path(paths[1]).write_bytes(contents[1] + b"x")
    assert content_digests(paths) == [expected[0], plain(contents[1] + b"x"), expected[2]]


def test_another_option_order_file_or_crop_rule_is_decoded_anew(prepare, rows, tmp_path, monkeypatch):
    def folders():
        return len(list((tmp_path / "cache").iterdir()))

    prepare()
    for number, options in enumerate([{"size": 32}, {"crop": False}, {"exact": False}, {"table": rows[::-1]}]):
        prepare(**options)
        assert folders() == number + 2
    path = rows["image"][0]
    os.utime(path, ns=(0, 1))
    prepare()
    assert folders() == 6
    prepare(num_workers=1)
    assert folders() == 6
    monkeypatch.setattr(image_cache, "CROP_VERSION", image_cache.CROP_VERSION + 1)
    prepare()
    assert folders() == 7


def test_nothing_is_left_of_an_interrupted_run(prepare, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(image_cache, "read_image", interrupt)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    assert list((tmp_path / "cache").iterdir()) == []
    monkeypatch.undo()
    assert len(prepare().images) == 3


@pytest.fixture
def damaged(rows, tmp_path):
    """Seven broken files among ten: truncated, not an image, absent."""
    whole = (tmp_path / "photo0.jpg").read_bytes()
    (tmp_path / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("not an image")
    names = ["truncated.jpg", "text.png", *[f"absent{number}.png" for number in range(5)]]
    bad = pd.DataFrame([{"id": name, "image": str(tmp_path / name)} for name in names])
    return pd.concat([rows[:1], bad, rows[1:]], ignore_index=True)


def test_bad_images_are_an_error(prepare, damaged):
    with pytest.raises(BadDataError) as error:
        prepare(damaged)
    assert error.value.rows == tuple(damaged["image"][1:8])
    message = str(error.value)
    assert "7 of 10" in message and "absent2.png: the file does not exist and 2 more" in message
    assert "`on_bad_image='skip'`" in message and "cannot read " not in message and "\n" not in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_can_be_left_out(prepare, damaged, caplog, num_workers):
    with caplog.at_level(logging.WARNING):
        prepared = prepare(damaged, on_bad_image="skip", num_workers=num_workers)
    assert prepared.images["row"][:] == [0, 8, 9]
    assert prepared.images["id"][:] == damaged["id"][[0, 8, 9]].tolist()
    assert len(prepared.rejected) == 7
    assert prepared.rejected[1] == (damaged["image"][2], "it is not an image in a format that Pillow knows")
    assert len([record for record in caplog.records if record.name == "retfound_hf.data.image_cache"]) == 1


def test_good_images_are_not_decoded_again_to_skip_the_others(prepare, damaged, monkeypatch):
    reading, done = image_cache.read_image, []
    with pytest.raises(BadDataError):
        prepare(damaged)
    monkeypatch.setattr(image_cache, "read_image", lambda *words, **more: done.append(reading(*words, **more)))
    assert len(prepare(damaged, on_bad_image="skip").images) == 3
    assert done == []


def test_a_file_that_could_not_be_read_for_a_moment_is_read_later(prepare, rows, monkeypatch):
    reading = image_cache.read_image

    def away(source, **options):
        if str(source) == rows["image"][1]:
            raise UnreadableImageError(f"cannot read {source}: the share is away", path=source, reason="away")
        return reading(source, **options)

    monkeypatch.setattr(image_cache, "read_image", away)
    assert prepare(on_bad_image="skip").images["row"][:] == [0, 2]
    with pytest.raises(BadDataError) as error:
        prepare()
    assert error.value.rows == (rows["image"][1],)
    monkeypatch.undo()
    prepared = prepare()
    assert prepared.images["row"][:] == [0, 1, 2] and prepared.rejected == []


def test_nothing_left_and_bad_options(prepare, damaged):
    with pytest.raises(BadDataError) as error:
        prepare(damaged[1:8], on_bad_image="skip")
    assert len(error.value.rows) == 7
    with pytest.raises(BadDataError):
        prepare(damaged[:0])
    for field, options in (("on_bad_image", {"on_bad_image": "ignore"}), ("size", {"size": 0})):
        with pytest.raises(BadArgumentError) as error:
            prepare(**options)
        assert error.value.field == field


# ---- one image for a shard


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

    monkeypatch.setattr("retfound_hf.data.image_cache.read_image", seen)
    quick = np.asarray(Preparer(128, True, 64).prepare(str(path)), float)
    assert sizes == [(512, 384)]
    full = crop_field_of_view(read_image(path)).resize((128, 128), Image.Resampling.BICUBIC)
    assert np.abs(quick - np.asarray(full, float)).mean() < 1
    Preparer(128, True, 1000).prepare(str(path))
    assert sizes[1] == (2048, 1536)  # no less than --min_side asks about


def test_bad_images_get_a_reason(photos, damaged_photos):
    preparer = Preparer(32, True, 64)
    for name, reason in damaged_photos.items():
        prepared = preparer(str(photos / name))
        assert prepared.reason.startswith(reason) and prepared[:2] == (b"", "")
    assert preparer(str(photos / "absent.png")).reason == "the file does not exist"
    assert preparer(b"").reason == "the file is empty"


@pytest.mark.parametrize("spread, is_blank", [(6, True), (10, False)])
def test_blank_is_a_narrow_range_of_gray(tmp_path, spread, is_blank):
    pixels = np.tile(np.linspace(100, 100 + spread, 64).round().astype(np.uint8), (64, 1))
    Image.fromarray(pixels).save(tmp_path / "scan.png")
    assert Preparer(64, False, 64)(str(tmp_path / "scan.png")).reason.startswith("it is blank") == is_blank
