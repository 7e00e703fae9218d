"""Shards in, uint8 batches out; what cannot be read is named and replaced."""

import io
import shutil

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from retfound_hf.errors import RetFoundError
from retfound_hf.images.reading import UnreadableImageError, read_image
from retfound_hf.pretraining.data import ImageReader, decode, fingerprint, open_shards


@pytest.fixture
def table(write_shard, tmp_path):
    """Makes a table of the given encoded images, with ids a, b, c..."""

    def make(images: list[bytes]) -> datasets.Dataset:
        path = write_shard(tmp_path / "own.parquet", images, [chr(97 + n) for n in range(len(images))])
        return open_shards([str(path)], str(tmp_path / "cache"))

    return make


def as_array(data: bytes) -> np.ndarray:
    return np.asarray(read_image(data)).transpose(2, 0, 1).astype(int)


def saved(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (48, 40, 3), dtype=np.uint8))
DEEP = Image.fromarray(np.linspace(0, 65535, 48 * 40).reshape(48, 40).astype(np.uint16))
TURNED = Image.Exif()
TURNED[0x0112] = 6
KINDS = {
    "JPEG": saved(NOISE, "JPEG", quality=90, subsampling=2),
    "JPEG, gray": saved(NOISE.convert("L"), "JPEG"),
    "JPEG, CMYK": saved(NOISE.convert("CMYK"), "JPEG"),
    "JPEG, progressive": saved(NOISE, "JPEG", progressive=True),
    "JPEG, turned": saved(NOISE, "JPEG", exif=TURNED),
    "JPEG, padded": saved(NOISE, "JPEG") + bytes(500),
    "PNG": saved(NOISE, "PNG"),
    "PNG, 16 bits": saved(DEEP, "PNG"),
    "PNG, palette": saved(NOISE.convert("P"), "PNG"),
    "PNG, one bit": saved(NOISE.convert("1"), "PNG"),
    "TIFF": saved(NOISE, "TIFF"),
    "WebP": saved(NOISE, "WEBP", lossless=True),
    "GIF of two frames": saved(NOISE, "GIF", save_all=True, append_images=[NOISE.rotate(180)]),
}


@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_pillow_does(kind):
    found = decode(KINDS[kind])
    assert found.dtype == torch.uint8
    difference = np.abs(found.numpy().astype(int) - as_array(KINDS[kind]))
    # Two JPEG decoders may round a colour conversion differently.
    assert difference.max() <= (2 if "JPEG" in kind else 0)
    assert found.float().std() > 20


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (KINDS["JPEG"][: len(KINDS["JPEG"]) // 2], "truncated"),
        (KINDS["JPEG"][:-40], "truncated"),
        (KINDS["PNG"][:-500], "truncated"),
        (b"\xff\xd8" + bytes(300) + b"\xff\xd9", "not an image"),
        (b"not an image at all", "not an image"),
        (b"", "empty"),
    ],
)
def test_refuses_what_is_damaged(data, reason):
    with pytest.raises(UnreadableImageError, match=reason):
        decode(data)


def test_the_next_readable_image_takes_the_place(table, encode, make_picture):
    good = [encode(make_picture(n), "PNG") for n in range(7)]
    small = encode(make_picture(9, 32), "PNG")
    images = [good[0], good[1][:-300], b"rubbish", good[3], small, good[5], b""]
    reader = ImageReader(table(images), max_bad_share=0.5)
    pixels, ids, rejected = reader.read([0, 1, 5, 4, 6, 3])
    assert ids == ["a", "d", "f", "f", "a", "d"]
    assert pixels.dtype == torch.uint8 and pixels.shape == (6, 3, 64, 64)
    expected = [good[number] for number in (0, 3, 5, 5, 0, 3)]
    assert np.array_equal(pixels.numpy(), np.stack([as_array(data) for data in expected]))
    assert [name for name, _ in rejected] == ["b", "c", "e", "g"]
    reasons = dict(rejected)
    assert "truncated" in reasons["b"] and "not an image" in reasons["c"] and "empty" in reasons["g"]
    assert reasons["e"] == "its size is 32 x 32, others have 64 x 64"


def test_too_many_unreadable_images_in_a_row_stop(table, encode, make_picture):
    images = [encode(make_picture(n)) for n in range(4)] + [b"rubbish"] * 6
    reader = ImageReader(table(images), max_bad_share=0.5)
    assert reader.read([6])[1] == ["a"]  # g, h, i, j, then the first
    with pytest.raises(RetFoundError, match=r"6 images in a row are unreadable, from e on .*raise --max_bad_share"):
        reader.read([3, 4])
    with pytest.raises(RetFoundError, match="1 images in a row are unreadable, from e on"):
        ImageReader(table(images), max_bad_share=0).read([3, 4])


def test_rows_without_image_and_rows_of_paths(encode, make_picture, tmp_path):
    """As `datasets` gives a folder of image files on the Hub."""
    (tmp_path / "img.png").write_bytes(encode(make_picture(1), "PNG"))
    cells = [
        {"bytes": encode(make_picture(0)), "path": None},
        {"bytes": None, "path": str(tmp_path / "img.png")},
        None,
        {"bytes": None, "path": str(tmp_path / "gone.png")},
    ]
    rows = datasets.Dataset.from_dict({"image": cells, "id": list("abcd")})
    reader = ImageReader(rows.cast_column("image", datasets.Image(decode=False)), max_bad_share=1)
    pixels, ids, rejected = reader.read([1, 2])
    assert ids == ["b", "a"]
    assert np.array_equal(pixels[0].numpy(), as_array((tmp_path / "img.png").read_bytes()))
    assert [name for name, _ in rejected] == ["c", "d"]
    assert rejected[0][1] == "the row holds no image"
    assert "gone.png: No such file" in rejected[1][1]


def test_the_first_readable_image_tells_the_size_and_must_be_square(table, encode, make_picture):
    images = [b"rubbish", *(encode(make_picture(n)) for n in range(3))]
    assert ImageReader(table(images)).side == 64
    with pytest.raises(RetFoundError, match="the first 1 images of --train_data cannot be read; mend the shards"):
        ImageReader(table(images), max_bad_share=0)
    with pytest.raises(RetFoundError, match="image a is 40 x 48, and pretraining takes squares; make shards with"):
        ImageReader(table([KINDS["PNG"]] * 2))


def test_a_folder_a_file_and_several_join_in_order(shards, cache_dir, tmp_path):
    files = sorted(map(str, shards.glob("*.parquet")))
    whole = open_shards([str(shards)], str(cache_dir))
    assert whole["id"][:] == [f"img{number}" for number in range(203)]
    assert open_shards(files[1:], str(cache_dir))["id"][:] == [f"img{number}" for number in range(150, 203)]
    joined = open_shards(files[::-1], str(cache_dir))
    assert joined["id"][:] == [f"img{number}" for number in (*range(150, 203), *range(150))]
    deeper = tmp_path / "above" / "below"
    shutil.copytree(shards, deeper)
    (deeper / ".train-00002-x1y2.parquet").write_bytes(b"half a shard")
    assert len(open_shards([str(deeper.parent)], str(cache_dir))) == 203


def test_ids_are_made_up_or_made_text(write_shard, encode, make_picture, tmp_path):
    images = [encode(make_picture(n)) for n in range(3)]
    bare = write_shard(tmp_path / "bare.parquet", images, label=[1, 2, 3])
    table = open_shards([str(bare)], str(tmp_path / "cache"))
    assert table["id"][:] == [f"{bare}/{number}" for number in range(3)]
    assert table.column_names == ["image", "id"]
    numbered = write_shard(tmp_path / "numbered.parquet", images, id=[7, 8, 9])
    assert open_shards([str(numbered)], str(tmp_path / "cache"))["id"][:] == ["7", "8", "9"]
    both = open_shards([str(bare), str(numbered)], str(tmp_path / "cache"))
    assert ImageReader(both).read([5, 0])[1] == ["9", f"{bare}/0"]


def test_wrong_sources_are_named_in_one_line(write_shard, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"half a shard")
    datasets.Dataset.from_dict({"picture": ["x"], "label": [0]}).to_parquet(tmp_path / "other.parquet")
    for name, reason in {
        "empty": "holds no parquet shards; make them with prepare_images",
        "list.csv": "holds no parquet shards",
        "broken.parquet": "cannot be read .*; give a folder made by prepare_images",
        "other.parquet": "has no column image; its columns are picture, label",
        "absent/folder": "cannot be read .*; give a folder made by prepare_images",
    }.items():
        with pytest.raises(RetFoundError, match=reason) as error:
            open_shards([str(tmp_path / name)], str(tmp_path / "cache"))
        assert f"--train_data {tmp_path / name}" in str(error.value)
        assert "\n" not in str(error.value)


def test_the_fingerprint_tells_ids_order_and_number_apart(shards, cache_dir):
    whole = open_shards([str(shards)], str(cache_dir))
    files = sorted(map(str, shards.glob("*.parquet")))
    same = fingerprint(open_shards([str(shards)], str(cache_dir)))
    assert fingerprint(whole) == same == fingerprint(open_shards(files, str(cache_dir)))
    renamed = whole.map(lambda row, index: {"id": "new" if index == 100 else row["id"]}, with_indices=True)
    others = [whole.select(range(202)), open_shards(files[::-1], str(cache_dir)), renamed]
    assert len({same, *map(fingerprint, others)}) == 4


def test_the_stream_fingerprint_many_rows_looks_at_some_and_counts_all():
    ids = [str(number) for number in range(5000)]

    def of(ids: list[str]) -> str:
        return fingerprint(datasets.Dataset.from_dict({"id": ids, "image": [None] * len(ids)}))

    assert of(["same"] * 5000) != of(["same"] * 5001)
    assert of(ids) == of(list(ids)) != of(ids[1:] + ids[:1])


def test_the_fingerprint_tells_other_pixels_under_the_same_names():
    def table(*contents: bytes) -> datasets.Dataset:
        rows = {"id": [f"{row}" for row in range(len(contents))], "image": [{"bytes": one} for one in contents]}
        features = datasets.Features({"id": datasets.Value("string"), "image": datasets.Image(decode=False)})
        return datasets.Dataset.from_dict(rows, features=features)

    assert fingerprint(table(b"a", b"b")) == fingerprint(table(b"a", b"b"))
    assert (
        len({fingerprint(table(*contents)) for contents in ((b"a", b"b"), (b"a", b"c"), (b"a",), (b"b", b"a"))}) == 4
    )
