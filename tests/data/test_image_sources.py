"""Sources: the same images in the same order with the same ids, whatever kind of source they come from."""

import json
import os
import shutil
from contextlib import suppress
from types import SimpleNamespace

import datasets
import fsspec
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny import save_noise

from retfound_hf.data import parquet
from retfound_hf.data.image_cache import cache_images
from retfound_hf.data.image_sources import FolderSource
from retfound_hf.data.labelled import _read_source, read_labelled
from retfound_hf.data.parquet import encoded_bytes
from retfound_hf.data.stored_images import DatasetSource, open_files, open_source
from retfound_hf.errors import BadArgumentError, BadDataError, UnreadableImageError
from retfound_hf.images.reading import find_images, read_image
from retfound_hf.pretraining.data import open_shards
from retfound_hf.pretraining.stream_shards import list_shards
from retfound_hf.pretraining.streaming import StreamedTable


def read(source, ref) -> bytes:
    """Bytes of an image's file, however the source gives them."""
    opened = source.opener()(ref.image)
    if isinstance(opened, bytes):
        return opened
    with open(opened, "rb") as file:
        return file.read()


def ids(source) -> list[str]:
    return [ref.id for ref in source]


def ids_as_labelled(data, root=None) -> list[str]:
    """Ids that a labelled set of the same images has."""
    return _read_source(str(data), ("label",), "image", root, False)["id"].tolist()


def digests(source, size: int = 3) -> list[str]:
    return [part.identity for part in source.parts(size)]


@pytest.fixture
def folder(tmp_path):
    """Seven images in two folders, and a file that is none."""
    for index in range(7):
        save_noise(tmp_path / "images" / ("b" if index % 2 else "a") / f"{index}.png", index, (24, 20))
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


NAMES = ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]


def test_a_folder_is_walked_in_the_order_of_find_images(tmp_path):
    names = ["b/x.png", "b-c/x.png", "b.d/x.png", "a/z.JPG", "a/b/c.tiff", "Z.png", "é.png", "a0.png", "a.txt"]
    for name in [*names, ".hidden/x.png", "a/.hidden.png", "b.png/x.png"]:  # the last in a folder named as an image
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    root = tmp_path / "tree"
    (root / "linked").symlink_to(root / "a")
    expected = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert len(expected) == 9 and expected == sorted(expected, key=lambda name: name.split("/"))
    source = FolderSource(str(root))
    assert ids(source) == expected and len(source) == 9


def test_names_that_are_not_utf8_can_be_stored(tmp_path):
    try:
        open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb").close()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (ref,) = FolderSource(str(tmp_path))
    assert ref.id == "?.png" and os.path.isfile(ref.image)


def test_parts_of_a_folder_know_when_an_image_has_changed(folder, tmp_path):
    source = open_files(str(folder))
    parts = list(source.parts(3))
    before = [part.identity for part in parts]
    assert [(part.index, part.name, len(part.refs)) for part in parts] == [
        (0, "00000", 3),
        (1, "00001", 3),
        (2, "00002", 1),
    ]
    assert ids(source) == NAMES and [ref.id for part in parts for ref in part.refs] == NAMES
    assert [ref.image for ref in parts[1].refs] == [str(folder / name) for name in NAMES[3:6]]
    save_noise(folder / "b" / "3.png", 99, (30, 30))
    assert [one == two for one, two in zip(before, digests(source), strict=True)] == [True, False, True]
    os.utime(folder / "b" / "5.png", ns=(5, 5))
    assert [one == two for one, two in zip(before, digests(source), strict=True)] == [True, False, False]


def test_the_identity_does_not_depend_on_where_the_folder_is_mounted(folder, tmp_path):
    (tmp_path / "mount").symlink_to(folder)
    first, second = open_source(str(folder)), open_source(str(tmp_path / "mount"))
    assert digests(first) == digests(second) and first.name != second.name


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
@pytest.mark.parametrize("opened", [open_source, open_files])
def test_a_table_keeps_its_order(folder, save_table, tmp_path, suffix, opened):
    written = ["./images/b/3.png", "images/a/0.png", str(folder / "a/2.png")]
    data = save_table(pd.DataFrame({"image": written, "age": [61, 50, 7]}), f"table{suffix}")
    source = opened(data)
    assert ids(source) == ["images/b/3.png", "images/a/0.png", "images/a/2.png"]
    assert [read(source, ref) for ref in source] == [(tmp_path / path).read_bytes() for path in written]
    assert len(source) == 3 and [ref.facts for ref in source] == [{}] * 3
    named = save_table(pd.DataFrame({"image": written, "id": ["second", 1, "x"]}))
    # `prepare_images` takes the names; elsewhere such a column may name the patients.
    assert ids(opened(named)) == (["second", "1", "x"] if opened is open_source else ids(source))


@pytest.mark.parametrize("written", ["{}", "./{}", ".\\{}"])
def test_a_table_is_read_as_a_labelled_one(folder, save_table, tmp_path, written):
    (tmp_path / "tables").mkdir()
    shutil.move(folder, tmp_path / "tables/images")
    names = [f"images/{name}" for name in NAMES]
    table = pd.DataFrame({"file": map(written.format, names), "label": "x", "id": 5, "patient_id": list("aabbccd")})
    for name in ("table.csv", "table.parquet", "table.tsv"):
        data = save_table(table, f"tables/{name}")
        source = open_files(data, "file")
        assert ids(source) == names == _read_source(data, ("label",), "file", None, False)["id"].tolist()
        assert all(os.path.isfile(ref.image) for ref in source)
        assert source.columns()[["id", "patient_id"]].to_numpy().tolist() == [
            *map(list, zip(names, "aabbccd", strict=True))
        ]
    moved = save_table(table.assign(file=table["file"]), "elsewhere.csv")
    assert ids(open_files(moved, "file", str(tmp_path / "tables"))) == names


@pytest.mark.parametrize("kind", ["bytes", "paths", "relative", "named"])
@pytest.mark.parametrize("column", ["image", "photo"])
def test_parquet_of_bytes_and_paths_as_a_labelled_set(folder, tmp_path, kind, column, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    contents = [path.read_bytes() for path in find_images(folder)]
    cells = {
        "bytes": contents,
        "paths": [{"bytes": None, "path": str(folder / name)} for name in NAMES],
        "relative": [{"bytes": None, "path": f"../images/{name}"} for name in NAMES],
        "named": [
            {"bytes": content, "path": name.split("/")[1]} for content, name in zip(contents, NAMES, strict=True)
        ],
    }[kind]
    (tmp_path / "set").mkdir()
    table = pd.DataFrame({column: cells, "label": "x", "patient_id": list("aabbccd")})
    for name, some in (("train-00000-of-00001", table[:4]), ("test-00000-of-00001", table[4:])):
        some.to_parquet(tmp_path / f"set/{name}.parquet")
    for data in (tmp_path / "set", tmp_path / "set/train-00000-of-00001.parquet"):
        root = str(folder) if kind in ("paths", "relative") else None
        source, expected = open_files(data, image_root=root), ids_as_labelled(data, root)
        assert sorted(ids(source)) == sorted(expected) and len(set(expected)) == len(expected) == len(source)
        patients = dict(zip(source.columns()["id"], source.columns()["patient_id"], strict=True))
        assert all(patients[ref.id] == "aabbccd"[contents.index(read(source, ref))] for ref in source)
        stored = open_source(str(data), image_root=root)
        assert sorted(read(stored, ref) for ref in stored) == sorted(read(source, ref) for ref in source)


def test_files_that_are_passed_over_are_named_once(folder, caplog):
    (folder / "b/scan.heic").write_bytes(b"x")
    for opened in (open_files, open_source):
        caplog.clear()
        source = opened(str(folder))
        assert len(source) == len(ids(source)) == len(ids(source)) == 7
        assert len(caplog.records) == 1 and "2 files" in caplog.text and "b/scan.heic" in caplog.text


def test_carried_columns_are_part_of_the_identity(folder, save_table):
    found = []
    for age in (61, 62):
        table = pd.DataFrame({"photo": [f"images/{name}" for name in NAMES], "age": [age, 50, 7, 8, 9, 33, 1]})
        source = open_source(save_table(table), image_column="photo", keep_columns=["age"])
        assert [ref.facts for ref in source][:2] == [{"age": age}, {"age": 50}]
        assert source.features == {"age": datasets.Value("int64")}
        found.append(digests(source, 4))
    assert found[0][0] != found[1][0] and found[0][1] == found[1][1]


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_shard_is_a_part_of_its_own(folder, tmp_path, with_ids):
    contents = [path.read_bytes() for path in find_images(folder)]
    shards = tmp_path / "shards"
    shards.mkdir()
    for number, some in enumerate((contents[:4], contents[4:])):
        part = datasets.Dataset.from_dict(
            {"image": [{"bytes": image, "path": None} for image in some]},
            features=datasets.Features({"image": datasets.Image()}),
        )
        part = part.add_column("id", [f"eye-{number}-{index}" for index in range(len(some))]) if with_ids else part
        part.to_parquet(str(shards / f"part-{number}.parquet"))
    source = open_files(str(shards))
    parts = list(source.parts(1))
    assert [part.name for part in parts] == ["00000-part-0", "00001-part-1"] and len(source) == 7
    assert [ref.id for ref in parts[0].refs] == [
        f"eye-0-{index}" if with_ids else f"train/{index}" for index in range(4)
    ]
    assert [ref.image for ref in source] == contents
    (shards / ".part-2-half.parquet").write_bytes(b"PAR1")  # of a writer that was killed
    assert list(open_files(str(shards)).parts(1)) == parts
    assert ids(source) == ids_as_labelled(shards)
    (alone,) = open_files(str(shards / "part-1.parquet")).parts(1)
    assert [ref.image for ref in alone.refs] == contents[4:] and alone.identity == parts[1].identity
    before = parts[0].identity
    os.utime(shards / "part-0.parquet", ns=(5, 5))
    assert digests(open_files(str(shards)))[0] != before


@pytest.fixture
def stored(folder, tmp_path, monkeypatch):
    """Two splits: images as bytes under two labels."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    contents = [path.read_bytes() for path in find_images(folder)]
    features = datasets.Features({"image": datasets.Image(), "grade": datasets.ClassLabel(names=["none", "some"])})

    def part(some):
        images = [{"bytes": content, "path": f"eye{number}.jpg"} for number, content in enumerate(some)]
        grades = [number % 2 for number in range(len(some))]
        return datasets.Dataset.from_dict({"image": images, "grade": grades}, features=features)

    return datasets.DatasetDict({"train": part(contents[:4]), "test": part(contents[4:])}), contents


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_a_stored_data_set(stored, tmp_path, kind):
    splits, contents = stored
    place = tmp_path / "set"
    if kind == "save_to_disk":
        splits.save_to_disk(str(place))
    else:
        (place / "data").mkdir(parents=True)
        for name, part in splits.items():
            part.to_parquet(str(place / "data" / f"{name}-00000.parquet"))
    source = open_source(str(place), keep_columns=["grade"])
    refs = list(source)
    assert [read(source, ref) for ref in refs] == contents
    assert [ref.id for ref in refs] == [f"train/{k}/eye{k}.jpg" for k in range(4)] + [
        f"test/{k}/eye{k}.jpg" for k in range(3)
    ]
    assert [ref.facts for ref in refs] == [{"grade": k % 2} for k in (0, 1, 2, 3, 0, 1, 2)]
    assert source.features["grade"] == datasets.ClassLabel(names=["none", "some"])
    assert digests(source) == digests(open_source(str(place), keep_columns=["grade"]))
    test = open_source(str(place), split="test")
    assert [read(test, ref) for ref in test] == contents[4:] and len(test) == 3
    with pytest.raises(BadArgumentError) as error:
        open_source(str(place), split="tests")
    assert error.value.field == "split" and set(error.value.accepted) == {"train", "test"}
    with pytest.raises(BadDataError, match="`keep_columns`; did you mean grade"):
        open_source(str(place), keep_columns=["grades"])


def test_one_parquet_file_with_ids_and_a_null(stored, tmp_path):
    splits, contents = stored
    part = splits["train"].add_column("id", ["a", "b", "c", "d"])
    part.to_parquet(str(tmp_path / "one.parquet"))
    source = open_source(str(tmp_path / "one.parquet"))
    assert isinstance(source, DatasetSource) and ids(source) == ["a", "b", "c", "d"]
    assert read(source, list(source)[3]) == contents[3]
    empty = datasets.Dataset.from_dict({"image": [None]}, features=datasets.Features({"image": datasets.Image()}))
    empty.to_parquet(str(tmp_path / "null.parquet"))
    source = open_source(str(tmp_path / "null.parquet"))
    (ref,) = source
    with pytest.raises(UnreadableImageError):
        read(source, ref)


@pytest.mark.parametrize("cell", [None, {"bytes": None, "path": None}, {"bytes": b"", "path": None}])
def test_an_empty_cell_is_one_unreadable_image(folder, tmp_path, cell, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    content = (folder / NAMES[0]).read_bytes()
    cells = pa.array([{"bytes": content, "path": None}, cell], IMAGE_CELL)
    data = tmp_path / "one.parquet"
    pq.write_table(pa.table({"image": cells, "label": ["a", "b"]}), data)
    rows = read_labelled(str(data), need_splits=()).table
    assert rows["id"].tolist() == ids(open_files(data)) == ["train/0", "train/1"]
    for images in (rows["image"].tolist(), [ref.image for ref in open_files(data)]):
        assert images[0] == content
        with pytest.raises(UnreadableImageError):
            read_image(images[1])
    assert cache_images(rows, size=8, crop=False, exact=True, on_bad_image="skip").rejected[0][0] == "train/1"


def test_a_single_image_and_a_list(folder):
    (ref,) = open_files(str(folder / NAMES[0]))
    assert (ref.id, ref.image) == ("0.png", str(folder / NAMES[0]))
    path, content = folder / NAMES[1], (folder / NAMES[2]).read_bytes()
    source = open_files([path, content])
    assert ids(source) == [str(path), "1"] and len(source) == 2
    assert [read(source, ref) for ref in source] == [path.read_bytes(), content]
    before = digests(source, 1)
    os.utime(path, ns=(5, 5))
    assert [one == two for one, two in zip(before, digests(source, 1), strict=True)] == [False, True]


def test_what_is_refused(folder, save_table, tmp_path):
    table = pd.DataFrame({"image": [f"images/{name}" for name in NAMES], "age": 60})
    data = save_table(table)
    (tmp_path / "empty").mkdir()
    shutil.copy(folder / NAMES[0], tmp_path / "eye.png")
    for source, options, field in [
        (folder, {"keep_columns": ["age"]}, "keep_columns"),
        (folder, {"split": "train"}, "split"),
        (data, {"split": "train"}, "split"),
        (data, {"keep_columns": ["id"]}, "keep_columns"),
    ]:
        with pytest.raises(BadArgumentError) as error:
            open_source(str(source), **options)
        assert error.value.field == field
    for opened, source, options in [
        (open_source, data, {"image_column": "photo"}),
        (open_source, data, {"keep_columns": ["agee"]}),
        (open_files, save_table(table.rename(columns={"image": "picture"}), "picture.csv"), {}),
        (open_source, tmp_path / "eye.png", {}),
        *((opened, path, {}) for opened in (open_source, open_files) for path in (
            folder / "notes.txt", tmp_path / "empty", tmp_path / "absent", "absent.csv")),
    ]:  # fmt: skip
        with pytest.raises(BadDataError) as error:
            opened(str(source), **options)
        assert error.value.source.endswith(os.path.basename(str(source)))
    table.loc[2, "image"] = None
    for opened in (open_source, open_files):
        with pytest.raises(BadDataError) as error:
            opened(save_table(table))
        assert error.value.rows == (3,)
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    for source in ([], tmp_path / "none.parquet"):
        with pytest.raises(BadDataError) as error:
            open_files(source)
        assert error.value.source in ("the list", str(tmp_path / "none.parquet"))


def labelled(data, root=None):
    return list(read_labelled(str(data), image_root=root, need_splits=()).table["image"])


def listed(data, root=None):
    return [ref.image for part in open_files(data, image_root=root).parts(9) for ref in part.refs]


def prepared(data, root=None):
    source = open_source(str(data), image_root=root)
    return [source.opener()(ref.image) for ref in source]


def pretrained(data, root=None):
    table = open_shards([str(data)], str(data.parent / f"cache-{data.stem}"), root)
    return [encoded_bytes(table[row]["image"]) for row in range(len(table))]


def streamed(data, root=None):
    table = StreamedTable(list_shards([str(data)], None, root), data.parent / f"open-{data.stem}", limit=2)
    return [encoded_bytes(table[row]["image"]) for row in range(len(table))]


@pytest.fixture
def by_path(tmp_path):
    """Folder of a data set whose images are cells with the given path and no bytes; private images beside it."""
    for name in ("private/0.png", "private/1.png", "given/.images/0.png", "given/.images/1.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        save_noise(tmp_path / name, int(name[-5]), (24, 20))
    (tmp_path / "given/.link").symlink_to(tmp_path / "private")

    def write(paths, whole=False):
        cells = pa.array([{"bytes": None, "path": path} for path in paths], IMAGE_CELL)
        table = pa.table({"image": cells, "label": ["a", "b"]})
        place = tmp_path / "given/train.parquet"
        kinds = {"image": {"_type": "Image"}, "label": {"dtype": "string", "_type": "Value"}}
        pq.write_table(
            table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": kinds}})}), place
        )
        return place.parent if whole else place

    return write


IMAGE_CELL = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
READERS = [labelled, listed, prepared, pretrained, streamed]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("path", ["{}/private/{}.png", "../private/{1}.png", ".link/{1}.png"])
def test_a_stored_path_is_followed_only_below_the_data_or_the_given_folder(by_path, tmp_path, read, path):
    data = by_path([path.format(tmp_path, number) for number in range(2)])
    with pytest.raises(UnreadableImageError) as error:
        read(data)
    assert "private/0.png" in error.value.path or ".link/0.png" in error.value.path
    if "{}/" in path:
        assert [read_image(image) for image in read(data, str(tmp_path / "private"))] == [
            read_image(tmp_path / f"private/{number}.png") for number in range(2)
        ]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("read", READERS)
def test_a_stored_relative_path_starts_at_the_data(by_path, tmp_path, read, whole, monkeypatch):
    save_noise(tmp_path / ".images/0.png", 9, (24, 20))
    monkeypatch.chdir(tmp_path)  # where another image of that name lies
    found = read(by_path([".images/0.png", ".images/1.png"], whole))
    assert [read_image(image) for image in found] == [read_image(f"given/.images/{n}.png") for n in range(2)]


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize(
    "cell",
    [{"bytes": "{}/private/0.png"}, {"bytes": "{}/private/0.png", "path": None}, {"bytes": None, "path": "a\0b"},
     {"bytes": None, "path": 5}, {"bytes": b"a", "path": [1]}, {"bytes": {"bytes": b"a"}}, {"path": "x"}, 5, [1]],
)  # fmt: skip
def test_cells_of_other_types_name_no_file(by_path, tmp_path, read, cell):
    by_path([".images/0.png", ".images/1.png"])
    if isinstance(cell, dict) and isinstance(cell.get("bytes"), str):
        cell = {**cell, "bytes": cell["bytes"].format(tmp_path)}
    table = pa.table({"image": [cell, cell], "label": ["a", "b"]})
    pq.write_table(table, tmp_path / "given/other.parquet")
    with suppress(BadDataError):
        assert not any(
            os.path.exists(image) for image in read(tmp_path / "given/other.parquet") if isinstance(image, str)
        )


def repeated(values: list[bytes], rows: int) -> pa.Array:
    """Images that a parquet file stores once each, whatever its footer tells of their sum."""
    places = pa.array([row % len(values) for row in range(rows)], pa.int32())
    return pa.StructArray.from_arrays([pa.DictionaryArray.from_arrays(places, pa.array(values))], ["bytes"])


@pytest.mark.parametrize("read", READERS)
@pytest.mark.parametrize("kind", ["compressed", "rows", "repeated"])
def test_shards_that_would_unpack_to_far_more_than_they_are_are_refused(tmp_path, read, kind, monkeypatch):
    monkeypatch.setattr(parquet, "MOST_UNPACKED", 10**6)
    image = {"compressed": repeated([bytes(2 * 10**6)], 1), "rows": repeated([b"a"], 10**5),
             "repeated": repeated([bytes(10**5), b"a"], 500)}[kind]  # fmt: skip
    labels = pa.DictionaryArray.from_arrays(pa.array([0] * len(image), pa.int32()), pa.array(["a"]))
    table = pa.table({"image": image, "label": labels, "noise": np.random.default_rng(0).random(min(len(image), 500))
                      if kind == "repeated" else labels})  # fmt: skip
    place = tmp_path / "set/bomb.parquet"
    place.parent.mkdir()
    pq.write_table(table, place, compression="zstd", store_schema=False)
    with pytest.raises(BadDataError) as error:
        list(read(place))
    assert str(error.value.source) == str(place) and "bytes" in str(error.value)


@pytest.mark.parametrize("rows", [7, 0])
def test_a_table_in_parts_is_the_table(tmp_path, rows, monkeypatch):
    monkeypatch.setattr(parquet, "ROWS_AT_ONCE", 2)
    kept = pd.DataFrame({"c": pd.Categorical(list("bcabcabc"), list("dabc")), "s": ["x", None] * 4, "l": [[1, 2]] * 8,
                         "d": pd.Timestamp(2020, 1, 1), "n": range(8)})[::-1][:rows]  # fmt: skip
    kept.to_parquet(tmp_path / "table.parquet", row_group_size=5)
    read = parquet.read_bounded(tmp_path / "table.parquet").to_pandas()
    pd.testing.assert_frame_equal(read, pq.read_table(tmp_path / "table.parquet").to_pandas())


@pytest.mark.parametrize("read", READERS)
def test_a_stored_path_of_a_pipe_is_not_waited_for(by_path, tmp_path, read):
    os.mkfifo(tmp_path / "given/pipe.png")
    with pytest.raises(BadDataError):
        list(map(read_image, read(by_path([".images/0.png", "pipe.png"]))))


@pytest.fixture(params=["hub", "saved", "store"])
def elsewhere(request, folder, tmp_path, monkeypatch):
    """Data sets of the seven images with patients, with and without names of files: on the Hub, saved, in a store."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    contents = [path.read_bytes() for path in find_images(folder)]

    def make(named):
        cells = [{"bytes": one, "path": f"{k}.png" if named else None} for k, one in enumerate(contents)]
        rows = {"photo": cells, "label": list("xyxyxyx"), " patient_id": list("aabbccd")}
        whole = datasets.Dataset.from_dict(rows).cast_column("photo", datasets.Image())
        parts = datasets.DatasetDict({"train": whole.select(range(4)), "test": whole.select(range(4, 7))})
        if request.param == "hub":
            monkeypatch.setattr(datasets, "load_dataset_builder", lambda name: SimpleNamespace(cache_dir=tmp_path))
            monkeypatch.setattr(datasets, "load_dataset", lambda name: parts)
            return "someone/retinas", contents
        if request.param == "saved":
            parts.save_to_disk(tmp_path / f"saved-{named}")
            return str(tmp_path / f"saved-{named}"), contents
        monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
        system = fsspec.filesystem("memory")
        for name, part in parts.items():
            part.to_parquet(str(tmp_path / f"{name}.parquet"))
            system.pipe_file(f"/shelf-{named}/{name}.parquet", (tmp_path / f"{name}.parquet").read_bytes())
        request.addfinalizer(lambda: system.rm(f"/shelf-{named}", recursive=True))
        return f"memory://shelf-{named}", contents

    return make


@pytest.mark.parametrize("named", [True, False])
def test_data_sets_elsewhere_as_a_labelled_set(elsewhere, named):
    data, contents = elsewhere(named)
    source = open_files(data)
    refs = list(source)
    found = [(ref.id, ref.image()) for ref in refs]
    if data.startswith("memory"):  # labelled sets lie on this machine or the Hub
        assert sorted(found) == sorted(zip(ids(source), contents[4:] + contents[:4], strict=True))
        with pytest.raises(BadDataError):
            read_labelled(data)
    else:
        assert [name for name, _ in found] == ids_as_labelled(data) and [one for _, one in found] == contents
        assert source.columns()["patient_id"].tolist() == list("aabbccd")
    assert len(set(ids(source))) == len(source) == len(source.columns()) == 7
    assert [read_image(ref.image) for ref in refs] == [read_image(content) for _, content in found]
    assert digests(source) == digests(open_files(data)) and len(set(digests(source))) == 3


@pytest.mark.parametrize("opened", [open_files, open_source])
@pytest.mark.parametrize("source", ["s3://AKIA:secret456@bucket/shards", "retina://eyes", "memory://nothing"])
def test_addresses_that_are_refused(opened, source):
    with pytest.raises((BadArgumentError, BadDataError)) as error:
        opened(source)
    assert "secret456" not in str(error.value) and "cannot read" not in str(error.value)


@pytest.mark.parametrize("name", ["eyes.zip", "eyes.tar.gz"])
def test_an_archive_is_to_be_unpacked(tmp_path, name):
    (tmp_path / name).write_bytes(b"PK")
    for opened in (open_files, open_source, read_labelled):
        with pytest.raises(BadDataError, match="unpack it"):
            opened(str(tmp_path / name))


@pytest.mark.parametrize("read", [labelled, listed, prepared])
def test_ids_that_are_no_text(tmp_path, read):
    content = save_noise(tmp_path / "eye.png").read_bytes()
    for name, ids in {"lists": [[1], [2]], "bytes": pa.array([b"\xff", b"a"]).view(pa.string())}.items():
        place = tmp_path / f"{name}.parquet"
        pq.write_table(pa.table({"image": [content, content[:-1]], "id": ids, "label": ["a", "b"]}), place)
        if name == "lists":
            assert len(read(place)) == 2
        else:
            with pytest.raises(BadDataError):
                read(place)
