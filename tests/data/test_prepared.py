import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageDraw

from retfound_hf.data import image_cache as decoding
from retfound_hf.data.image_cache import prepare_images
from retfound_hf.errors import RetFoundError
from retfound_hf.images.reading import UnreadableImageError
from retfound_hf.models.image_processing_retfound import RetFoundImageProcessor


def fundus(width: int, height: int, seed: int) -> Image.Image:
    """A textured disc on black, wider than high."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height))
    draw = ImageDraw.Draw(image)
    radius, x, y = 0.42 * height, width / 2 + seed, height / 2
    draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=(190, 90, 40))
    for _ in range(30):
        cx, cy = x + rng.normal(0, radius / 3), y + rng.normal(0, radius / 3)
        draw.ellipse((cx - 5, cy - 5, cx + 5, cy + 5), fill=tuple(rng.integers(60, 250, 3).tolist()))
    return image


@pytest.fixture
def rows(tmp_path):
    table = []
    for seed, suffix in enumerate(["jpg", "png", "jpg"]):
        path = tmp_path / f"photo{seed}.{suffix}"
        fundus(200 + 16 * seed, 150, seed).save(path)
        table.append({"id": path.name, "image": str(path)})
    return pd.DataFrame(table)


@pytest.fixture
def prepare(rows, tmp_path):
    def call(table=rows, **options):
        options = {"size": 64, "crop": True, "exact": True, "cache_dir": tmp_path / "cache", **options}
        return prepare_images(table, **options)

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


def test_shrinking_a_large_photograph_reads_less_and_sees_the_same(tmp_path, prepare):
    path = tmp_path / "large.jpg"
    fundus(2000, 1500, 0).save(path, quality=95)
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
    monkeypatch.setattr(decoding, "read_image", lambda *_, **__: pytest.fail("decoded again"))
    second = prepare()
    assert second.images.cache_files == first.images.cache_files
    np.testing.assert_array_equal(np.asarray(second.images["image"][2]), np.asarray(first.images["image"][2]))


def test_another_option_order_or_file_is_decoded_anew(prepare, rows, tmp_path):
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


def test_nothing_is_left_of_an_interrupted_run(prepare, monkeypatch, tmp_path):
    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(decoding, "read_image", interrupt)
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


def test_bad_images_are_an_error_that_names_five(prepare, damaged):
    with pytest.raises(RetFoundError, match=r"^7 of 10 images cannot be read") as caught:
        prepare(damaged)
    message = str(caught.value)
    assert "truncated.jpg: the file is truncated" in message
    assert "text.png: it is not an image in a format that Pillow knows" in message
    assert "absent2.png: the file does not exist and 2 more" in message
    assert "--on_bad_image skip" in message
    assert "cannot read" not in message
    assert "\n" not in message


@pytest.mark.parametrize("num_workers", [0, 2])
def test_bad_images_can_be_left_out(prepare, damaged, caplog, num_workers):
    with caplog.at_level(logging.WARNING):
        prepared = prepare(damaged, on_bad_image="skip", num_workers=num_workers)
    assert prepared.images["row"][:] == [0, 8, 9]
    assert prepared.images["id"][:] == damaged["id"][[0, 8, 9]].tolist()
    assert len(prepared.rejected) == 7
    assert prepared.rejected[1] == (damaged["image"][2], "it is not an image in a format that Pillow knows")
    assert [record.levelname for record in caplog.records if record.name == "retfound_hf.data.image_cache"] == [
        "WARNING"
    ]
    assert "7 of 10 images cannot be read and are left out" in caplog.text


def test_good_images_are_not_decoded_again_to_skip_the_others(prepare, damaged, monkeypatch):
    reading, done = decoding.read_image, []
    with pytest.raises(RetFoundError):
        prepare(damaged)
    monkeypatch.setattr(decoding, "read_image", lambda *words, **more: done.append(reading(*words, **more)))
    assert len(prepare(damaged, on_bad_image="skip").images) == 3
    assert done == []


def test_a_file_that_could_not_be_read_for_a_moment_is_read_later(prepare, rows, monkeypatch):
    reading = decoding.read_image

    def away(source, **options):
        if str(source) == rows["image"][1]:
            raise UnreadableImageError(f"cannot read {source}: the share is away")
        return reading(source, **options)

    monkeypatch.setattr(decoding, "read_image", away)
    assert prepare(on_bad_image="skip").images["row"][:] == [0, 2]
    with pytest.raises(RetFoundError, match=r"1 of 3 images cannot be read .*the share is away"):
        prepare()
    monkeypatch.undo()
    prepared = prepare()
    assert prepared.images["row"][:] == [0, 1, 2] and prepared.rejected == []


def test_nothing_left(prepare, damaged):
    with pytest.raises(RetFoundError, match="none of the 7 images can be read"):
        prepare(damaged[1:8], on_bad_image="skip")
    with pytest.raises(RetFoundError, match="no images to prepare"):
        prepare(damaged[:0])


def test_bad_options(prepare):
    with pytest.raises(RetFoundError, match="on_bad_image 'ignore' is unknown; choose error or skip"):
        prepare(on_bad_image="ignore")
    with pytest.raises(RetFoundError, match=r"size \{'height': 0, 'width': 0\} must be at least 1"):
        prepare(size=0)
