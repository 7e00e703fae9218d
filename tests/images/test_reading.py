"""Images as they are read: formats, modes, depths, orientation, errors; and maps laid on a region of an image."""

import os
import pickle
import struct
import subprocess
import sys
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from retfound_hf.errors import BadDataError, UnreadableImageError
from retfound_hf.images import bounds
from retfound_hf.images.field_of_view import ImageRegion
from retfound_hf.images.reading import IMAGE_SUFFIXES, find_images, read_image, to_rgb


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
    rgba = Image.fromarray(np.array([[[200, 100, 50, 128], [200, 100, 50, 0], [9, 8, 7, 255]]], np.uint8))
    assert np.asarray(to_rgb(rgba))[0, 0].tolist() == pytest.approx([100, 50, 25], abs=1)
    assert np.asarray(to_rgb(rgba))[0, 1:].tolist() == [[0, 0, 0], [9, 8, 7]]
    gray = Image.fromarray(np.array([[[180, 0], [180, 255]]], np.uint8))
    assert grey(to_rgb(gray)).tolist() == [[0, 180]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([250, 250, 250, 9, 8, 7])
    palette.putdata([0, 1])
    image = read_image(encoded(palette, "PNG", transparency=0))
    assert np.asarray(image).tolist() == [[[0, 0, 0], [9, 8, 7]]]


@pytest.mark.parametrize("alpha", [0, 1, 15, 128])
def test_transparency_that_hides_all_hides_nothing(picture, alpha):
    image = Image.fromarray(picture)
    image.putalpha(alpha)
    assert np.array_equal(to_rgb(image), picture)
    gray = Image.fromarray(picture).convert("L")
    expected = np.asarray(gray)
    gray.putalpha(alpha)
    assert np.array_equal(grey(read_image(encoded(gray, "PNG"))), expected)
    colours = Image.fromarray(picture).quantize(16)
    again = read_image(encoded(colours, "PNG", transparency=bytes([alpha] * 16)))
    assert np.array_equal(again, colours.convert("RGB"))
    image.putpixel((0, 0), (255, 255, 255, 255))  # a mark that alone is opaque
    assert np.asarray(to_rgb(image)).mean() == pytest.approx(picture.mean() * (1 if alpha < 5 else alpha / 255), abs=2)


def deep_png(values: np.ndarray) -> bytes:
    """PNG of 16 bits, (rows, columns, 2: gray and alpha, 3 or 4), which Pillow cannot write."""
    rows, columns, bands = values.shape
    chunks = {b"IHDR": struct.pack(">IIBBBBB", columns, rows, 16, {2: 4, 3: 2, 4: 6}[bands], 0, 0, 0)}
    chunks[b"IDAT"] = zlib.compress(b"".join(b"\0" + row.astype(">u2").tobytes() for row in values))
    whole = [(len(data), name + data, zlib.crc32(name + data)) for name, data in [*chunks.items(), (b"IEND", b"")]]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", n) + data + struct.pack(">I", crc) for n, data, crc in whole
    )


def deep_tiff(values: np.ndarray, order: str = "<", planar: bool = False, photometric: int = 2) -> bytes:
    """Uncompressed TIFF of 16 bits, (rows, columns) or (rows, columns, 3 or 4)."""
    rows, columns = values.shape[:2]
    bands = values.shape[2] if values.ndim == 3 else 1
    data = (np.moveaxis(values, -1, 0) if planar else values).astype(f"{order}u2").tobytes()
    starts = [8 + n * len(data) // bands for n in range(bands if planar else 1)]
    sizes = [len(data) // len(starts)] * len(starts)
    tags = [(256, [columns]), (257, [rows]), (258, [16] * bands), (259, [1]), (262, [photometric]), (273, starts),
            (277, [bands]), (278, [rows]), (279, sizes), (284, [2 if planar else 1])]  # fmt: skip
    tags += [(338, [2])] if bands == 4 else []
    place = 8 + len(data) + 2 + 12 * len(tags) + 4
    entries, longer = b"", b""
    for tag, numbers in tags:
        packed = struct.pack(f"{order}{len(numbers)}I", *numbers)
        if len(packed) > 4:
            longer, packed = longer + packed, struct.pack(f"{order}I", place + len(longer))
        entries += struct.pack(f"{order}HHI", tag, 4, len(numbers)) + packed
    head = struct.pack(f"{order}2sHI", b"II" if order == "<" else b"MM", 42, 8 + len(data))
    return head + data + struct.pack(f"{order}H", len(tags)) + entries + bytes(4) + longer


@pytest.mark.parametrize(("times", "error"), [(1, 0), (4, 1), (16, 1), (64, 1), (257, 0)])
@pytest.mark.parametrize("write", [deep_png, deep_tiff, lambda values: deep_tiff(values, ">")])
def test_deep_colours_span_the_range_of_their_sensor(picture, times, error, write):
    deep = picture.astype(np.int64) * times
    for alpha in (
        [],
        [np.zeros_like(deep[..., :1])],
        [np.full_like(deep[..., :1], 65535)],
        [np.ones_like(deep[..., :1])],
    ):
        read = np.asarray(read_image(write(np.concatenate([deep, *alpha], axis=2))), int)
        assert np.abs(read - picture).max() <= error
    opened = Image.open(BytesIO(write(deep)))
    assert np.abs(np.asarray(read_image(opened), int) - picture).max() <= error


def test_deep_files_that_cannot_be_read_right_are_refused(picture):
    planar = picture.astype(np.int64)
    alpha = np.stack([planar[..., 0], planar[..., 1]], axis=2)
    assert np.abs(np.asarray(read_image(deep_png(alpha * 257)), int).max()) > 200
    for content in (deep_tiff(planar * 257, planar=True), deep_tiff(planar, planar=True), deep_png(alpha)):
        with pytest.raises(UnreadableImageError):
            read_image(content)


def test_white_is_zero_at_any_depth():
    values = np.array([[0, 100, 255]])
    assert grey(read_image(deep_tiff(values * 16, photometric=0))).tolist() == [[255, 155, 1]]
    assert grey(read_image(deep_tiff(values * 257, photometric=0))).tolist() == [[255, 155, 0]]


def test_marks_and_offsets_of_deep_values():
    values = np.array([[0, 2048, 4095, 65535]])
    assert grey(read_image(deep_tiff(values, photometric=1))).tolist() == [[0, 128, 255, 255]]
    assert grey(to_rgb(Image.fromarray(np.array([[0, 65535]], np.uint16)))).tolist() == [[0, 255]]
    signed = Image.fromarray(np.array([[-32768, 0, 32767]], np.int32))
    assert grey(to_rgb(signed)).tolist() == [[0, 128, 255]]


def test_a_long_text_of_a_png_file_is_left_out(picture):
    info = PngImagePlugin.PngInfo()
    info.add_text("k", "A" * 3_000_000, zip=True)
    assert np.array_equal(read_image(encoded(Image.fromarray(picture), "PNG", pnginfo=info)), picture)


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
    for values, expected in [([0, 0.5, 1.04], [0, 128, 255]), ([0, 2048 / 65535, 4095 / 65535], [0, 128, 255])]:
        assert grey(to_rgb(Image.fromarray(np.array([values], np.float32)))).tolist() == [expected]
    with pytest.raises(UnreadableImageError):  # standardised
        read_image(encoded(Image.fromarray(np.array([[-2.1, 0, 2.4]], np.float32)), "TIFF"))


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


@pytest.mark.parametrize("kind", ["TIFF", "GIF", "PNG", "WEBP"])
@pytest.mark.parametrize("count", [1, 2, 24, 25])
def test_the_central_frame_of_a_stack_is_read(kind, count):
    frames = [Image.new("L", (30, 20), 10 * number) for number in range(count)]
    image = read_image(encoded(frames[0], kind, save_all=True, append_images=frames[1:]))
    assert grey(image)[0, 0] == pytest.approx(10 * (count // 2), abs=1)


def test_previews_and_masks_are_no_slices(picture):
    large, small = Image.fromarray(picture), Image.new("RGB", (15, 10))
    mask = Image.new("1", (30, 20))
    for first, *others in ([large, small, small], [small, large], [large, mask], [small, large, mask, small]):
        image = read_image(encoded(first, "TIFF", save_all=True, append_images=others))
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


def test_links_are_followed_without_loops_and_nothing_counts_twice(tmp_path):
    root, away = tmp_path / "root", tmp_path / "away"
    for name in ("root/a/1.png", "root/b/2.png", "root/.store/3.png", "away/x/4.png", "away/y/5.png"):
        Path(tmp_path, name).parent.mkdir(parents=True, exist_ok=True)
        Path(tmp_path, name).touch()
    links = {"a/up": "..", "a/self": ".", "a/sibling": "../b", "top": tmp_path, "b/again.png": "../a/1.png",
             "b/3.png": "../.store/3.png", "z": away, "b/within": away / "x", "nowhere.png": "gone.png"}  # fmt: skip
    for name, target in links.items():
        (root / name).symlink_to(target)
    (away / "x/back").symlink_to(away)
    os.mkfifo(root / "pipe.png")
    found = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert found == ["a/1.png", "b/2.png", "b/3.png", "b/within/4.png", "b/within/back/y/5.png"]
    assert [path.name for path in find_images(root / "a")] == [f"{n}.png" for n in (1, 2, 3, 4, 5)]  # from b


def test_only_regular_files_of_known_formats_are_opened(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "eye.png")
    for path in (tmp_path / "eye.png", "/dev/zero"):
        with pytest.raises(UnreadableImageError) as error:
            read_image(path)
        assert error.value.path == str(path)
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/called\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"
    with pytest.raises(UnreadableImageError):
        read_image(postscript)
    assert not (tmp_path / "called").exists()


def tiff_of(entries: list[tuple[int, int, int, int]], size: int, repeats: int = 1) -> bytes:
    """TIFF whose directory lists `entries` (tag, type, count, value); further directories begin within it."""
    most = len(entries) + size
    content = bytearray(12 * (most + repeats) + 64)
    content[:8] = b"II*\0" + struct.pack("<I", len(content))
    for number in range(repeats):
        struct.pack_into("<H", content, 8 + 12 * number, most)
        struct.pack_into("<I", content, 10 + 12 * (number + most), 8 + 12 * (number + 1) if repeats > 1 else 0)
    for number, entry in enumerate(entries):
        struct.pack_into("<HHII", content, 10 + 12 * (repeats + number), *entry)
    first = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return bytes(content) + first + struct.pack("<I", 8)


def pixels_of_tiff(**changed: int) -> list[tuple[int, int, int, int]]:
    tags = {"width": 256, "height": 257, "bits": 258, "compression": 259, "photometric": 262, "offsets": 273,
            "samples": 277, "rows": 278, "counts": 279, "tile_width": 322, "tile_height": 323}  # fmt: skip
    values = {"width": 8, "height": 8, "bits": 8, "compression": 1, "photometric": 1, "offsets": 8, "samples": 1,
              "rows": 8, "counts": 64} | changed  # fmt: skip
    return sorted((tags[name], 4, 1, value) for name, value in values.items())


def run_length_bitmap(width: int, height: int, runs: bytes) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(runs), 0, 0, 256, 0)
    return b"BM" + struct.pack("<IHHI", 1078 + len(runs), 0, 0, 1078) + header + bytes(range(256)) * 4 + runs


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "content",
    [
        tiff_of(pixels_of_tiff(), 9000, repeats=2000),  # 18 million entries, some minutes
        tiff_of([*pixels_of_tiff(), *((tag, 1, 2_000_000, 0) for tag in range(900, 1500))], 1)
        + bytes(2_000_000),  # 1.2 GB
        tiff_of(pixels_of_tiff(tile_width=40_000, tile_height=40_000), 1),
        encoded(Image.new("L", (8, 8)), "GIF")[:-1] + b"!\xfe\1a\0" * 500_000 + b";",
        encoded(Image.new("L", (8, 8)), "PNG")[:33] + png_chunk(b"abCd", b"") * 500_000,
        encoded(Image.new("L", (8, 8)), "JPEG")[:2]
        + (b"\xff\xe1\xff\xffExif\0\0" + bytes(65527)) * 110  # each copies those before it
        + encoded(Image.new("L", (8, 8)), "JPEG")[2:],
        run_length_bitmap(9999, 9999, b"\1\1\0\0" * 9999),  # 10 s
        run_length_bitmap(10**8, 1, b"\0\2\xff\xff"),  # 25 GB
        run_length_bitmap(99, 99, b"\xff\1" * 500_000),
        b"P3\n99 99\n255\n" + b"#\n" * 400_000 + b"1 " * 3 * 99**2,  # some minutes
        b"P1\n9999 9999\n" + b"1" * 10**6,
    ],
    ids=["directories", "copies", "tile", "GIF", "PNG", "EXIF", "runs", "steps", "no runs", "comments", "text"],
)
def test_small_files_that_ask_for_much_are_refused(content, monkeypatch):
    monkeypatch.setattr(bounds, "MAX_READS", 100_000)
    with pytest.raises(UnreadableImageError) as error:
        read_image(content)
    assert "damaged" not in error.value.reason and "format" not in error.value.reason


@pytest.mark.parametrize(
    "content",
    [
        run_length_bitmap(3, 2, b"\3\5\0\0\3\5\0\1"),
        b"P3\n3 2\n255\n# white\n" + b"5 " * 18,
        tiff_of(pixels_of_tiff(), 1),
    ],
    ids=["runs", "text", "TIFF"],
)
def test_the_same_kinds_of_files_are_read_where_they_are_small(content):
    assert read_image(content).size in ((3, 2), (8, 8))


def test_files_that_would_take_all_time_or_memory_are_refused(monkeypatch):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8))
    jpeg = encoded(picture, "JPEG", progressive=True)
    scan = jpeg[jpeg.rfind(b"\xff\xda") : -2]
    bomb = jpeg[:-2] + scan * 90 + jpeg[-2:]
    frames = {kind: encoded(picture, kind, save_all=True, append_images=[picture.rotate(n) for n in range(11)])
              for kind in ("GIF", "TIFF")}  # fmt: skip
    for content in (bomb, *frames.values()):
        assert read_image(content).size == (50, 40)
    monkeypatch.setattr(bounds, "MAX_PASSED_PIXELS", 50 * 40 * 90)
    assert read_image(jpeg).size == (50, 40)
    with pytest.raises(UnreadableImageError):
        read_image(bomb)
    monkeypatch.setattr(bounds, "MAX_ANIMATED_PIXELS", 50 * 40 * 4)
    with pytest.raises(UnreadableImageError):
        read_image(frames["GIF"])
    monkeypatch.setattr(bounds, "MAX_FRAMES", 11)
    with pytest.raises(UnreadableImageError):
        read_image(frames["TIFF"])
    large = Image.new("1", (bounds.MAX_PIXELS // 8000 + 1, 8000))
    with pytest.raises(UnreadableImageError):
        read_image(encoded(large, "PNG"))


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


@pytest.mark.parametrize(("mode", "fill", "copies"), [("RGB", (90, 60, 30), 1.6), ("RGBA", (90, 60, 30, 99), 3.2)])
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="tells the peak of memory")
def test_a_large_image_is_held_once(tmp_path, mode, fill, copies):
    """Memory of reading, in copies of four bytes for each pixel."""
    Image.new(mode, (3000, 3000), fill).save(tmp_path / "large.tif", compression="tiff_lzw")
    code = (  # the peak of `getrusage` would be that of this process
        "import sys; from retfound_hf.images.reading import read_image\n"
        "peak = lambda: next(int(line.split()[1]) for line in open('/proc/self/status') if line.startswith('VmHWM'))\n"
        "before = peak(); image = read_image(sys.argv[1]); print((peak() - before) / 36e3, *image.getpixel((9, 9)))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "large.tif")], capture_output=True, text=True)
    held, *colour = map(float, done.stdout.split())
    assert held < copies and colour == [90, 60, 30]
