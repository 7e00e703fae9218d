"""Sources: the same items in the same order, whatever kind of source they come from."""

import os

import datasets
import pandas as pd
import pytest

from retfound_hf.data.image_sources import FolderSource, cut_units, identity, open_source, walk_images
from retfound_hf.errors import RetFoundError
from retfound_hf.images.reading import find_images


def read(source, item) -> bytes:
    """Bytes of an item's file, however the source gives them."""
    opened = source.opener()(item.ref)
    if isinstance(opened, bytes):
        return opened
    with open(opened, "rb") as file:
        return file.read()


def test_a_folder_is_walked_in_the_order_of_find_images(tmp_path):
    names = [
        "b/x.png",
        "b-c/x.png",
        "b.d/x.png",
        "a/z.JPG",
        "a/b/c.tiff",
        "Z.png",
        "é.png",
        "a0.png",
        "a.txt",
    ]
    for name in [*names, ".hidden/x.png", "a/.hidden.png"]:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "tree" / "linked").symlink_to(tmp_path / "tree" / "a")
    (tmp_path / "tree" / "b.png").mkdir()  # a folder by the name of an image
    (tmp_path / "tree" / "b.png" / "x.png").touch()
    root = tmp_path / "tree"
    expected = [path.relative_to(root).as_posix() for path in find_images(root)]
    assert list(walk_images(str(root))) == expected
    assert len(expected) == 11
    source = FolderSource(root)
    assert [item.id for item in source.items()] == expected and len(source) == 11


def test_names_that_are_not_utf8_can_be_stored(tmp_path):
    try:
        open(os.path.join(os.fsencode(tmp_path), b"\xff.png"), "wb").close()
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    (item,) = FolderSource(tmp_path).items()
    assert item.id == "?.png" and os.path.isfile(item.ref)


def test_units_and_their_identity(photos):
    source = open_source(str(photos))
    units = list(cut_units(source, 10))
    assert [(unit.index, len(unit.items)) for unit in units] == [(0, 10), (1, 10), (2, 3)]
    before = [identity(source, unit) for unit in units]
    os.utime(units[1].items[4].ref, ns=(5, 5))
    after = [identity(source, unit) for unit in cut_units(open_source(str(photos)), 10)]
    assert [one == two for one, two in zip(before, after, strict=True)] == [True, False, True]


def test_the_identity_does_not_depend_on_where_the_folder_is_mounted(photos, tmp_path):
    (tmp_path / "mount").symlink_to(photos)
    first, second = open_source(str(photos)), open_source(str(tmp_path / "mount"))
    digests = [[identity(source, unit) for unit in cut_units(source, 10)] for source in (first, second)]
    assert digests[0] == digests[1] and first.name != second.name


@pytest.fixture
def table(photos):
    paths = [path.relative_to(photos).as_posix() for path in find_images(photos)][:6]
    return pd.DataFrame(
        {"image": ["./" + paths[0], *paths[1:5], str(photos / paths[5])], "age": [61, 50, 7, 8, 9, 33]}
    )


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table(photos, table, suffix):
    path = photos / f"table{suffix}"
    table.to_csv(path, index=False) if suffix == ".csv" else table.to_parquet(path)
    source = open_source(str(path), keep_columns=["age"])
    items = list(source.items())
    paths = [path.relative_to(photos).as_posix() for path in find_images(photos)][:6]
    assert [item.id for item in items] == paths
    assert [item.kept for item in items] == [(61,), (50,), (7,), (8,), (9,), (33,)]
    assert source.kept_features == {"age": datasets.Value("int64")}
    assert [read(source, item) for item in items] == [(photos / name).read_bytes() for name in paths]
    assert len(source) == 6


def test_a_table_with_ids_and_other_names(photos, table):
    path = photos / "table.csv"
    table.rename(columns={"image": "photo"}).assign(id=[f"P{k}" for k in range(6)]).to_csv(path, index=False)
    items = list(open_source(str(path), image_column="photo").items())
    assert [item.id for item in items] == ["P0", "P1", "P2", "P3", "P4", "P5"]
    assert {item.kept for item in items} == {()}


def test_a_carried_value_is_part_of_the_identity(photos, table):
    digests = []
    for age in (61, 62):
        table.loc[0, "age"] = age
        table.to_csv(photos / "table.csv", index=False)
        source = open_source(str(photos / "table.csv"), keep_columns=["age"])
        digests.append([identity(source, unit) for unit in cut_units(source, 3)])
    assert digests[0][0] != digests[1][0] and digests[0][1] == digests[1][1]


@pytest.fixture
def stored(photos):
    """Two splits: photographs as bytes under two labels."""
    contents = [path.read_bytes() for path in find_images(photos)]
    features = datasets.Features({"image": datasets.Image(), "grade": datasets.ClassLabel(names=["none", "some"])})

    def part(some):
        images = [{"bytes": content, "path": f"eye{number}.jpg"} for number, content in enumerate(some)]
        return datasets.Dataset.from_dict(
            {"image": images, "grade": [k % 2 for k in range(len(some))]}, features=features
        )

    return datasets.DatasetDict({"train": part(contents[:5]), "test": part(contents[5:8])}), contents


@pytest.mark.parametrize("kind", ["save_to_disk", "parquet"])
def test_a_stored_data_set(stored, tmp_path, kind, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits, contents = stored
    folder = tmp_path / "set"
    if kind == "save_to_disk":
        splits.save_to_disk(str(folder))
    else:
        for name, part in splits.items():
            (folder / "data").mkdir(parents=True, exist_ok=True)
            part.to_parquet(str(folder / "data" / f"{name}-00000.parquet"))
    source = open_source(str(folder), keep_columns=["grade"])
    items = list(source.items())
    assert [read(source, item) for item in items] == contents[:8]
    assert [item.id for item in items] == [f"train/{k}/eye{k}.jpg" for k in range(5)] + [
        f"test/{k}/eye{k}.jpg" for k in range(3)
    ]
    assert [item.kept for item in items] == [(k % 2,) for k in (0, 1, 2, 3, 4, 0, 1, 2)]
    assert source.kept_features["grade"] == datasets.ClassLabel(names=["none", "some"])
    again = open_source(str(folder), keep_columns=["grade"])
    assert [identity(source, unit) for unit in cut_units(source, 3)] == [
        identity(again, unit) for unit in cut_units(again, 3)
    ]
    test = open_source(str(folder), split="test")
    assert [read(test, item) for item in test.items()] == contents[5:8] and len(test) == 3
    with pytest.raises(RetFoundError, match=r"has no split 'tests'; it has .*did you mean test\?"):
        open_source(str(folder), split="tests")
    with pytest.raises(RetFoundError, match=r"has no column 'grades'; its columns are image, grade"):
        open_source(str(folder), keep_columns=["grades"])


def test_one_parquet_file_with_ids_and_a_null(stored, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    splits, contents = stored
    part = splits["train"].add_column("id", ["a", "b", "c", "d", "e"])
    part.to_parquet(str(tmp_path / "one.parquet"))
    source = open_source(str(tmp_path / "one.parquet"))
    items = list(source.items())
    assert [item.id for item in items] == ["a", "b", "c", "d", "e"]
    assert read(source, items[3]) == contents[3]


def test_what_is_refused(photos, table, tmp_path):
    table.to_csv(photos / "table.csv", index=False)
    (tmp_path / "empty").mkdir()
    for source, options, message in [
        (photos, {"keep_columns": ["age"]}, "--keep_columns does not apply to .*, a folder of image files"),
        (photos, {"split": "train"}, "--split does not apply to .*, a folder of image files"),
        (photos / "table.csv", {"split": "train"}, "--split does not apply to .*, a table"),
        (photos / "table.csv", {"image_column": "photo"}, "has no column 'photo'.*--image_column"),
        (photos / "table.csv", {"keep_columns": ["agee"]}, r"has no column 'agee'.*did you mean age\?"),
        (photos / "table.csv", {"keep_columns": ["id"]}, "--keep_columns id: the shards have a column of this name"),
        (photos / "clinic-0" / "eye00.jpg", {}, "eye00.jpg is no table"),
        (tmp_path / "empty", {}, "empty holds no image; give a folder of images"),
        (tmp_path / "absent", {}, "absent does not exist; give a folder of images"),
        ("absent.csv", {}, "absent.csv does not exist"),
    ]:
        with pytest.raises(RetFoundError, match=message):
            open_source(str(source), **options)
    table.loc[2, "image"] = None
    table.to_csv(photos / "table.csv", index=False)
    with pytest.raises(RetFoundError, match=r"rows without a value in column image \(row 3\)"):
        open_source(str(photos / "table.csv"))
