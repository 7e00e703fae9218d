"""Order, decoding, tables and batches: the same for any number of processes and workers, from any position on."""

import io
import itertools
import shutil
from collections.abc import Iterable

import datasets
import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from small_runs import encoded, picture, write_parquet

from retfound_hf.errors import BadDataError, UnreadableImageError
from retfound_hf.images.reading import read_image
from retfound_hf.pretraining.data import (
    ImageReader,
    Order,
    Position,
    decode,
    fingerprint,
    make_loader,
    next_batch,
    open_shards,
    step_generator,
)
from retfound_hf.pretraining.objectives.mae import MaskedAutoencodingDraw

SHAPES = [
    (num_images, batch, accumulation, processes)
    for num_images, batch, accumulation, processes in itertools.product((7, 48, 203), (1, 3, 8), (1, 2, 3), (1, 2, 4))
    if num_images >= batch * accumulation * processes
]
START = Position()
SAME_PRODUCT = [(16, 1, 1), (8, 2, 1), (8, 1, 2), (4, 2, 2), (2, 2, 4), (1, 16, 1), (1, 1, 16)]


def orders(num_images: int, batch: int, accumulation: int, processes: int, **options) -> list[Order]:
    return [Order(num_images, batch, accumulation, processes, process, **options) for process in range(processes)]


def global_batches(parts: list[Order], position: Position = START) -> dict[int, list[int]]:
    """Of every step the rows by their places in the global batch; no place may be missing or taken twice."""
    batches: dict[int, dict[int, int]] = {}
    for part in parts:
        for batch in part.batches(position):
            assert len(batch.rows) == part.batch_size
            for offset, row in enumerate(batch.rows):
                assert batches.setdefault(batch.step, {}).setdefault(batch.start + offset, row) == row
    found = {}
    for step, rows in batches.items():
        assert sorted(rows) == list(range(parts[0].global_batch))
        found[step] = [rows[place] for place in range(parts[0].global_batch)]
    return found


def joined(parts: Iterable[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def walk(order: Order, position: Position = START) -> list[Position]:
    """All positions to the end."""
    found = [position]
    while not order.is_finished(found[-1]):
        found.append(order.after(found[-1]))
        assert len(found) < 10_000
    return found


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_every_image_at_most_once_in_an_epoch_and_the_incomplete_batch_left_out(shape):
    parts = orders(*shape, seed=3, num_epochs=3)
    batches = global_batches(parts)
    per_epoch = shape[0] // parts[0].global_batch
    assert sorted(batches) == list(range(3 * per_epoch))
    for epoch in range(3):
        rows = joined(batches[step] for step in range(epoch * per_epoch, (epoch + 1) * per_epoch))
        assert len(set(rows)) == len(rows) == per_epoch * parts[0].global_batch
        assert set(rows) <= set(range(shape[0]))


def test_every_image_has_its_turn_and_epochs_and_seeds_differ():
    order = Order(50, 8, seed=0, num_epochs=40)
    batches = global_batches([order])
    assert {row for rows in batches.values() for row in rows} == set(range(50))
    epochs = [joined(batches[6 * epoch + step] for step in range(6)) for epoch in range(40)]
    assert len({tuple(rows) for rows in epochs}) == 40
    # Positions of an image in the epochs are those of uniform permutations: mean 23.5 of 0..47, sd 13.85 / sqrt(n).
    places = [rows.index(7) for rows in epochs if 7 in rows]
    assert np.mean(places) == pytest.approx(23.5, abs=4 * 13.85 / np.sqrt(len(places)))
    assert global_batches([Order(50, 8, seed=1, num_epochs=1)])[0] != batches[0]
    assert global_batches([Order(50, 8, seed=0, num_epochs=1)])[0] == batches[0]


def test_the_global_batches_do_not_depend_on_how_they_are_cut():
    streams = [
        global_batches(orders(203, batch, accumulation, processes, seed=5, num_epochs=2))
        for batch, accumulation, processes in SAME_PRODUCT
    ]
    assert len(streams[0]) == 24
    assert all(stream == streams[0] for stream in streams[1:])


@pytest.mark.parametrize("length", [{"num_epochs": 2.5}, {"max_steps": 29}], ids=str)
@pytest.mark.parametrize("cut", [(16, 1, 1), (4, 2, 2)], ids=str)
def test_resumed_anywhere_the_rest_is_the_rest(length, cut):
    parts = orders(203, *cut, seed=1, **length)
    whole = [list(part.batches(Position())) for part in parts]
    positions = walk(parts[0])
    for position in positions:
        for part, batches in zip(parts, whole, strict=True):
            assert list(part.batches(position)) == batches[position.step * cut[1] :]
    assert positions[-1].step == parts[0].total_steps


@pytest.mark.parametrize("before", [8, 16, 30])
@pytest.mark.parametrize("after", [(8, 1, 1), (5, 2, 1), (7, 1, 3), (64, 1, 1)], ids=str)
def test_another_batch_goes_on_with_unseen_images_and_the_same_schedule(before, after):
    first = Order(203, before, seed=2, num_epochs=3)
    for stop in (1, 3, first.steps_per_epoch - 1, first.steps_per_epoch + 2):
        position = walk(first)[stop]
        used = [rows for step, rows in global_batches([first]).items() if step < stop]
        seen = {row for rows in used[position.epoch * first.steps_per_epoch :] for row in rows}
        assert len(seen) == position.offset
        parts = orders(203, *after, seed=2, num_epochs=3)
        batches = global_batches(parts, position)
        places = walk(parts[0], parts[0].at_epoch(position))
        assert [place.step for place in places[:-1]] == list(batches)
        for epoch in range(position.epoch, 3):
            rows = joined(batches[place.step] for place in places[:-1] if place.epoch == epoch)
            assert len(set(rows)) == len(rows)
            assert 203 - len(rows) - (len(seen) if epoch == position.epoch else 0) < parts[0].global_batch
            if epoch == position.epoch:
                assert not seen & set(rows)
        progress = [parts[0].progress(place) for place in places]
        assert progress == sorted(progress) and progress[-1] == 1
        assert progress[0] == pytest.approx(
            first.progress(position), abs=max(first.global_batch, parts[0].global_batch) / 203 / 3
        )


@pytest.mark.parametrize("num_images", [8, 9, 100, 203, 904_170])
@pytest.mark.parametrize("batch", [1, 3, 7, 8])
@pytest.mark.parametrize("length", [0.1, 0.5, 1, 1.7, 3, 33], ids=str)
def test_a_run_of_epochs_ends_exactly_at_its_total_steps(num_images, batch, length):
    batch = batch if num_images < 1000 else batch * 1792
    order = Order(num_images, batch, num_epochs=length)
    assert order.total_steps == max(1, round(length * order.steps_per_epoch))
    if order.total_steps < 10_000:
        assert walk(order)[-1].step == order.total_steps


@pytest.mark.parametrize("num_images", [8, 203])
@pytest.mark.parametrize("max_steps", [1, 2, 3, 49, 997])
def test_a_run_of_steps_ends_exactly_there(num_images, max_steps):
    order = Order(num_images, 8, max_steps=max_steps, num_epochs=0.01)
    positions = walk(order)
    assert positions[-1].step == order.total_steps == max_steps
    assert [order.progress(place) for place in positions] == pytest.approx(np.linspace(0, 1, max_steps + 1))


def test_epochs_and_progress_of_epochs():
    order = Order(203, 10, num_epochs=2)
    positions = walk(order)
    assert [order.epochs(place) for place in positions] == pytest.approx(np.arange(41) / 20)
    assert [order.progress(place) for place in positions] == pytest.approx(np.linspace(0, 1, 41))
    assert positions[20] == Position(20, 1, 0)


def test_the_stream_is_read_lazily():
    """Millions of steps lie before the position and after it."""
    order = Order(904_170, 224, 1, 8, process=5, num_epochs=800_000)
    position = Position(step=504 * 700_000 + 3, epoch=700_000, offset=1792 * 3)
    first = next(order.batches(position))
    assert len(first.rows) == 224
    assert (first.step, first.start) == (504 * 700_000 + 3, 5 * 224)


def test_the_generators_of_steps_and_seeds_are_apart():
    drawn = {
        tuple(torch.rand(4, generator=step_generator(seed, step)).tolist())
        for seed in range(20)
        for step in (*range(200), 2**31)
    }
    assert len(drawn) == 20 * 201
    again = [torch.rand(4, generator=step_generator(3, 9)) for _ in range(2)]
    assert torch.equal(*again)


@pytest.fixture
def table(tmp_path):
    """Makes a table of the given encoded images, with ids a, b, c..."""

    def make(images: list[bytes]) -> datasets.Dataset:
        path = write_parquet(tmp_path / "own.parquet", images, [chr(97 + n) for n in range(len(images))])
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


@pytest.mark.parametrize("torchvision_has_it", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_decodes_as_pillow_does(kind, torchvision_has_it, monkeypatch):
    if not torchvision_has_it:
        monkeypatch.delattr(torchvision.io, "decode_jpeg")
    found = decode(KINDS[kind])
    assert found.dtype == torch.uint8
    difference = np.abs(found.numpy().astype(int) - as_array(KINDS[kind]))
    # Two JPEG decoders may round a colour conversion differently.
    assert difference.max() <= (2 if "JPEG" in kind and torchvision_has_it else 0)
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
    with pytest.raises(UnreadableImageError) as error:
        decode(data)
    assert reason in str(error.value)


@pytest.mark.parametrize("start", [b"\xff\xc0", b"\xff\xc2"])
def test_a_size_that_a_file_only_claims_costs_nothing(start):
    data = bytearray(KINDS["JPEG" if start == b"\xff\xc0" else "JPEG, progressive"])
    place = data.index(start) + 5
    data[place : place + 4] = b"\xff\xf0\xff\xf0"  # 4.3 billion pixels
    with pytest.raises(UnreadableImageError):
        decode(bytes(data))


def test_no_damage_of_a_png_ends_the_process():
    whole, generator = KINDS["PNG"], np.random.default_rng(0)
    refused = 0
    for place in generator.integers(40, len(whole), 200):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << generator.integers(8)
        try:
            assert decode(bytes(damaged)).shape == (3, 48, 40)
        except UnreadableImageError:
            refused += 1
    assert refused > 150


def test_the_next_readable_image_takes_the_place(table):
    good = [encoded(picture(n), "PNG") for n in range(7)]
    small = encoded(picture(9, 32), "PNG")
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


def test_too_many_unreadable_images_in_a_row_stop(table):
    images = [encoded(picture(n)) for n in range(4)] + [b"rubbish"] * 6
    reader = ImageReader(table(images), max_bad_share=0.5)
    assert reader.read([6])[1] == ["a"]  # g, h, i, j, then the first
    for one, rows in ((reader, tuple("efghij")), (ImageReader(table(images), max_bad_share=0), ("e",))):
        with pytest.raises(BadDataError) as error:
            one.read([3, 4])
        assert error.value.rows == rows


def test_rows_without_image_and_rows_of_paths(tmp_path):
    """As `datasets` gives a folder of image files on the Hub."""
    (tmp_path / "img.png").write_bytes(encoded(picture(1), "PNG"))
    cells = [
        {"bytes": encoded(picture(0)), "path": None},
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


def test_the_first_readable_image_tells_the_size_and_must_be_square(table):
    images = [b"rubbish", *(encoded(picture(n)) for n in range(3))]
    assert ImageReader(table(images)).side == 64
    with pytest.raises(BadDataError):
        ImageReader(table(images), max_bad_share=0)
    with pytest.raises(BadDataError) as error:
        ImageReader(table([KINDS["PNG"]] * 2))
    assert error.value.rows == ("a",) and "40 x 48" in str(error.value)


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


def test_ids_are_made_up_or_made_text(tmp_path):
    images = [encoded(picture(n)) for n in range(3)]
    bare = write_parquet(tmp_path / "bare.parquet", images, label=[1, 2, 3])
    table = open_shards([str(bare)], str(tmp_path / "cache"))
    assert table["id"][:] == [f"{bare}/{number}" for number in range(3)]
    assert table.column_names == ["image", "id"]
    numbered = write_parquet(tmp_path / "numbered.parquet", images, id=[7, 8, 9])
    assert open_shards([str(numbered)], str(tmp_path / "cache"))["id"][:] == ["7", "8", "9"]
    both = open_shards([str(bare), str(numbered)], str(tmp_path / "cache"))
    assert ImageReader(both).read([5, 0])[1] == ["9", f"{bare}/0"]


def test_wrong_sources_are_named_in_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "list.csv").write_text("a,b\n1,2\n")
    (tmp_path / "broken.parquet").write_bytes(b"half a shard")
    datasets.Dataset.from_dict({"picture": ["x"], "label": [0]}).to_parquet(tmp_path / "other.parquet")
    for name in ("empty", "list.csv", "broken.parquet", "other.parquet", "absent/folder"):
        with pytest.raises(BadDataError) as error:
            open_shards([str(tmp_path / name)], str(tmp_path / "cache"))
        assert error.value.source == str(tmp_path / name) and "\n" not in str(error.value)


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


DRAW = MaskedAutoencodingDraw(side=64, patches=16)


class CountingReader(ImageReader):
    """Keeps the rows that it was asked for, so that reading ahead would show."""

    def __init__(self, table):
        super().__init__(table)
        self.asked = []

    def read(self, rows):
        self.asked += rows
        return super().read(rows)


@pytest.fixture
def reader(shards, cache_dir) -> CountingReader:
    return CountingReader(open_shards([str(shards)], str(cache_dir)))


def batches(reader: ImageReader, order: Order, position: Position = START, workers: int = 0) -> list[dict]:
    return list(make_loader(reader, DRAW, order, position, workers, pin_memory=False))


def assert_same(found: list[dict], expected: list[dict]) -> None:
    assert len(found) == len(expected) > 0
    for one, other in zip(found, expected, strict=True):
        assert one["ids"] == other["ids"] and one["rejected"] == other["rejected"]
        assert torch.equal(one["images"], other["images"])
        assert one["draws"].keys() == other["draws"].keys() == {"crops", "flips", "noise"}
        for name, values in one["draws"].items():
            assert torch.equal(values, other["draws"][name]), name


def test_a_batch_has_the_images_of_its_ids(reader):
    order = Order(203, 8, max_steps=3, seed=4)
    rows = [batch.rows for batch in order.batches(START)]
    for batch, expected in zip(batches(reader, order), rows, strict=True):
        assert batch["ids"] == [f"img{row}" for row in expected]
        assert torch.equal(batch["images"], reader.read(expected)[0])
        assert batch["rejected"] == []
        assert len({tuple(noise.tolist()) for noise in batch["draws"]["noise"]}) == 8


def test_draws_differ_from_step_to_step_and_seed_to_seed(reader):
    noise = [
        batch["draws"]["noise"] for seed in (0, 1) for batch in batches(reader, Order(203, 8, max_steps=3, seed=seed))
    ]
    assert len({tuple(values[0].tolist()) for values in noise}) == 6


@pytest.mark.parametrize(("batch", "accumulation", "processes"), [(4, 1, 2), (2, 2, 2), (8, 1, 1), (2, 4, 1)])
def test_processes_and_accumulation_cut_the_same_batches_and_draws(reader, batch, accumulation, processes):
    whole = batches(reader, Order(203, 8, max_steps=5, seed=4))
    parts = [
        batches(reader, Order(203, batch, accumulation, processes, process, seed=4, max_steps=5))
        for process in range(processes)
    ]
    for step, expected in enumerate(whole):
        pieces = [
            parts[process][step * accumulation + number]
            for number in range(accumulation)
            for process in range(processes)
        ]
        assert sum((piece["ids"] for piece in pieces), []) == expected["ids"]  # noqa: RUF017
        assert torch.equal(torch.cat([piece["images"] for piece in pieces]), expected["images"])
        for name, values in expected["draws"].items():
            assert torch.equal(torch.cat([piece["draws"][name] for piece in pieces]), values), name


def test_workers_change_nothing(reader):
    order = Order(203, 8, 2, max_steps=7, seed=1)
    assert_same(batches(reader, order, workers=2), batches(reader, order))


@pytest.mark.parametrize("stop", [1, 24, 25, 26])
def test_a_resumed_loader_gives_the_rest_and_reads_nothing_before_it(reader, stop):
    order = Order(203, 8, num_epochs=1.2, seed=2)
    position = START
    for _ in range(stop):
        position = order.after(position)
    whole = batches(reader, order)
    reader.asked.clear()
    rest = batches(reader, order, position)
    assert_same(rest, whole[stop:])
    assert len(reader.asked) == 8 * (30 - stop)
    assert [f"img{row}" for row in reader.asked] == [name for batch in rest for name in batch["ids"]]


def test_batches_are_read_when_they_are_asked_for(reader):
    loader = iter(make_loader(reader, DRAW, Order(203, 8, num_epochs=800), START, 0, pin_memory=False))
    for count in (1, 2):
        next(loader)
        assert len(reader.asked) == 8 * count


def test_an_unreadable_image_is_reported_with_its_batch(tmp_path):
    images = [encoded(picture(number)) for number in range(12)]
    images[5] = images[5][:200]
    path = write_parquet(tmp_path / "own.parquet", images, [str(number) for number in range(12)])
    reader = ImageReader(open_shards([str(path)], str(tmp_path / "cache")))
    found = batches(reader, Order(12, 4, num_epochs=1), workers=1)
    rejected = [(batch["ids"], name) for batch in found for name, _ in batch["rejected"]]
    assert len(rejected) == 1
    assert rejected[0][1] == "5" and "6" in rejected[0][0] and "5" not in rejected[0][0]
    strict = ImageReader(open_shards([str(path)], str(tmp_path / "cache")), max_bad_share=0)
    for workers in (0, 1):
        order = Order(12, 4, num_epochs=1)
        loader = iter(make_loader(strict, DRAW, order, START, workers, pin_memory=False))
        with pytest.raises(BadDataError) as error:
            for _ in range(3):
                next_batch(loader)
        assert error.value.rows == ("5",), "an error of another process has its attributes"
        if workers:  # the error's traceback holds them
            loader._shutdown_workers()
