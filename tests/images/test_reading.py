"""Images as they are read: formats, modes, depths, orientation, errors; and maps laid on a region of an image."""

import pickle
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retfound_hf.errors import BadDataError, UnreadableImageError
from retfound_hf.images.reading import IMAGE_SUFFIXES, ImageRegion, find_images, read_image, to_rgb


@pytest.fixture
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def grey(image: Image.Image) -> np.ndarray:
    """The values of a picture whose three channels must be the same."""
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP", "WEBP"])
def test_lossless_files_come_back_as_they_were(picture, tmp_path, kind):
    path = tmp_path / "eye.img"
    raw = encoded(Image.fromarray(picture), kind, **({"lossless": True} if kind == "WEBP" else {}))
    path.write_bytes(raw)
    for source in (path, str(path), raw, Image.open(path)):
        image = read_image(source)
        assert image.mode == "RGB" and np.array_equal(image, picture)


def test_eight_bit_modes_give_their_known_colours():
    levels = np.array([[0, 100, 255]], np.uint8)
    assert grey(to_rgb(Image.fromarray(levels))).tolist() == [[0, 100, 255]]
    assert grey(to_rgb(Image.fromarray(levels > 50))).tolist() == [[0, 255, 255]]
    palette = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    palette.putpalette([10, 20, 30, 200, 150, 100])
    assert np.asarray(to_rgb(palette)).tolist() == [[[10, 20, 30], [200, 150, 100]]]


def test_transparency_becomes_black():
    rgba = Image.new("RGBA", (1, 1), (200, 100, 50, 128))
    assert np.asarray(to_rgb(rgba))[0, 0].tolist() == pytest.approx([100, 50, 25], abs=1)
    assert np.asarray(to_rgb(Image.new("RGBA", (1, 1), (200, 100, 50, 0)))).max() == 0
    assert grey(to_rgb(Image.new("LA", (1, 1), (180, 0)))).max() == 0
    assert grey(to_rgb(Image.new("LA", (1, 1), (180, 255)))).tolist() == [[180]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 250, 250, 9, 8, 7])
    palette.putdata([0, 1])
    image = read_image(encoded(palette, "PNG", transparency=0))
    assert np.asarray(image).tolist() == [[[0, 0, 0], [9, 8, 7]]]


@pytest.mark.parametrize("largest", [255, 1023, 4095, 16383, 65535])
@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_deep_grey_spans_the_range_of_its_sensor(largest, kind):
    values = np.array([[0, largest // 2, largest]], np.uint16)
    image = read_image(encoded(Image.fromarray(values), kind))
    assert grey(image).tolist() == [[0, pytest.approx(127, abs=1), 255]]


def test_images_of_one_sensor_share_one_scale():
    dark = to_rgb(Image.fromarray(np.array([[1100]], np.uint16)))
    bright = to_rgb(Image.fromarray(np.array([[1100, 4000]], np.uint16)))
    assert grey(dark)[0, 0] == grey(bright)[0, 0] == round(1100 / 4095 * 255)


def test_big_endian_and_wide_integers():
    big = Image.frombytes("I;16B", (2, 1), np.array([0, 65535], ">u2").tobytes())
    assert grey(to_rgb(big)).tolist() == [[0, 255]]
    wide = Image.fromarray(np.array([[-5, 0, 50_000, 100_000]], np.int32))
    assert grey(to_rgb(wide)).tolist() == [[0, 0, 128, 255]]


def test_floats():
    unit = read_image(encoded(Image.fromarray(np.array([[0, 0.5, 1, -2]], np.float32)), "TIFF"))
    assert grey(unit).tolist() == [[0, 128, 255, 0]]
    bytes_ = Image.fromarray(np.array([[0, 100.4, 255, np.nan, np.inf]], np.float32))
    assert grey(to_rgb(bytes_)).tolist() == [[0, 100, 255, 0, 0]]


def test_cmyk_jpeg_has_the_colours_of_its_rgb():
    rgb = Image.new("RGB", (16, 16), (200, 60, 30))
    image = read_image(encoded(rgb.convert("CMYK"), "JPEG", quality=95))
    assert np.asarray(image).mean(axis=(0, 1)) == pytest.approx([200, 60, 30], abs=4)


TURNED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1), 7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a, 1),
}  # fmt: skip


@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_applied(picture, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = read_image(encoded(Image.fromarray(picture), "PNG", exif=exif))
    assert np.array_equal(image, TURNED[orientation](picture))
    again = read_image(image)
    assert again.size == image.size and np.array_equal(again, image)


def test_the_first_frame_is_read(picture):
    frames = [Image.fromarray(picture), Image.new("RGB", (30, 20))]
    image = read_image(encoded(frames[0], "TIFF", save_all=True, append_images=frames[1:]))
    assert np.array_equal(image, picture)


def test_large_jpegs_are_reduced_while_they_are_decoded():
    y, x = np.mgrid[:1200, :1600]
    smooth = Image.fromarray(np.stack([x % 256, x // 8, y // 8], axis=2).astype(np.uint8))
    raw = encoded(smooth, "JPEG", quality=95)
    assert read_image(raw).size == (1600, 1200)
    assert read_image(raw, min_side=1200).size == (1600, 1200)
    assert read_image(raw, min_side=500).size == (800, 600)
    reduced = read_image(raw, min_side=300)
    assert reduced.size == (400, 300)
    difference = np.asarray(reduced, float) - np.asarray(smooth.reduce(4), float)
    assert np.abs(difference[..., 1:]).mean() < 2
    assert read_image(encoded(smooth, "PNG"), min_side=300).size == (1600, 1200)


def test_unreadable_files_are_named_with_the_reason(picture, tmp_path, monkeypatch):
    jpeg = encoded(Image.fromarray(picture).resize((400, 400)), "JPEG")
    png = encoded(Image.fromarray(picture).resize((400, 400)), "PNG")
    damaged = bytearray(png)
    damaged[2000:2400] = bytes(400)
    cases = {
        "cut.jpg": (jpeg[: len(jpeg) // 2], "truncated"),
        "cut.png": (png[: len(png) // 2], "truncated"),
        "bad.png": (bytes(damaged), "damaged"),
        "notes.jpg": (b"these are my notes", "not an image in a format that Pillow knows"),
        "empty.png": (b"", "the file is empty"),
    }
    for name, (content, reason) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        for source, known in ((path, str(path)), (content, "")):
            with pytest.raises(UnreadableImageError) as error:
                read_image(source)
            assert error.value.path == known and reason in error.value.reason and "\n" not in str(error.value)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for source, reason in ((tmp_path / "nowhere.png", "not exist"), (tmp_path, "folder"), (png, "2,000 pixels")):
        with pytest.raises(UnreadableImageError) as error:
            read_image(source)
        assert reason in error.value.reason


def test_an_error_survives_the_way_from_a_worker(tmp_path):
    with pytest.raises(UnreadableImageError) as error:
        read_image(tmp_path / "nowhere.png")
    again = pickle.loads(pickle.dumps(error.value))
    assert (str(again), again.path, again.reason) == (str(error.value), error.value.path, error.value.reason)


def test_images_are_found_in_order_without_hidden_ones(tmp_path):
    names = ["b/2.PNG", "b/10.jpeg", "a.tif", "c/d/e.webp", "c/.hidden.png", ".cache/x.png", "b/notes.txt", "jpg"]
    for name in names:
        Path(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
        Path(tmp_path, name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.tif", "b/10.jpeg", "b/2.PNG", "c/d/e.webp"]
    assert all(suffix == suffix.lower() and suffix.startswith(".") for suffix in IMAGE_SUFFIXES)


@pytest.mark.parametrize("name", ["nowhere", "file.png"])
def test_a_missing_image_folder_is_said(tmp_path, name):
    (tmp_path / "file.png").touch()
    with pytest.raises(BadDataError) as error:
        find_images(tmp_path / name)
    assert error.value.source == str(tmp_path / name)


def test_a_map_of_one_value_fills_the_region_and_nothing_else():
    placed = ImageRegion(10, 5, 30, 25).place(np.ones((4, 4)), (40, 50))
    expected = np.zeros((50, 40), np.float32)
    expected[5:25, 10:30] = 1
    assert placed.dtype == np.float32 and np.array_equal(placed, expected)


def test_a_region_beyond_the_image_is_cut():
    placed = ImageRegion(-10, -4, 10, 16).place(np.arange(4).reshape(2, 2), (8, 12))
    assert placed.shape == (12, 8)
    # The map's centre (0, 6) lies at the image's left edge: the mean of its four values.
    assert placed[5:7, 0].mean() == pytest.approx(1.5, abs=0.1)
    assert placed[-1, -1] == pytest.approx(2 + 1 * (7.5 - -5) / 10 - 0.0, abs=0.3)


def test_linear_maps_stay_linear_between_the_centres():
    x = np.linspace(0.5, 7.5, 8)
    placed = ImageRegion(0, 0, 80, 80).place(np.tile(x, (8, 1)), (80, 80))
    inner = (np.arange(80) + 0.5) / 10
    assert np.allclose(placed[40, 5:75], inner[5:75], atol=1e-4)
    assert np.allclose(placed[40, :5], 0.5) and np.allclose(placed[40, 75:], 7.5)


def test_outside_and_bad_maps():
    assert np.isnan(ImageRegion(2, 2, 4, 4).place(np.ones((1, 1)), (6, 6), outside=float("nan"))[0, 0])
    with pytest.raises(BadDataError):
        ImageRegion(0, 0, 1, 1).place(np.ones(3), (4, 4))
