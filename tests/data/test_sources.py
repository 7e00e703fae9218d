"""Images in parts: always the same parts, which know when one of their images has changed."""

import os

import datasets
import pandas as pd
import pytest

from retfound_hf.data.image_sources import identities, list_parts
from retfound_hf.errors import RetFoundError


@pytest.fixture
def folder(tmp_path, write_image):
    for index in range(7):
        write_image(tmp_path / "images" / ("b" if index % 2 else "a") / f"{index}.png", index)
    (tmp_path / "images" / "notes.txt").write_text("no image")
    return tmp_path / "images"


def test_a_folder_in_parts(folder):
    parts = list_parts(str(folder), part_size=3)
    assert [part.name for part in parts] == ["00000", "00001", "00002"]
    ids = [name for part in parts for name in part.ids]
    assert ids == ["a/0.png", "a/2.png", "a/4.png", "a/6.png", "b/1.png", "b/3.png", "b/5.png"]
    assert [len(part.ids) for part in parts] == [3, 3, 1]
    names, sources = parts[1].load()
    assert names == ["a/6.png", "b/1.png", "b/3.png"]
    assert list(sources) == [str(folder / name) for name in names]
    assert list_parts(str(folder), part_size=3) == parts


def test_identity_changes_with_a_file(folder, write_image):
    before = list_parts(str(folder), part_size=3)
    write_image(folder / "b" / "3.png", seed=99, size=(30, 30))
    after = list_parts(str(folder), part_size=3)
    changed = [one.identity != two.identity for one, two in zip(before, after, strict=True)]
    assert changed == [False, True, False]
    os.utime(folder / "b" / "5.png", ns=(5, 5))
    assert list_parts(str(folder), part_size=3)[2].identity != after[2].identity


def test_a_table_keeps_its_order_and_its_ids(folder, save_table, tmp_path):
    table = pd.DataFrame({"image": ["images/b/3.png", "images/a/0.png"], "id": ["second", 1]})
    (part,) = list_parts(save_table(table))
    assert part.ids == ("second", "1")
    assert part.paths == (str(tmp_path / "images/b/3.png"), str(tmp_path / "images/a/0.png"))
    (part,) = list_parts(save_table(table.drop(columns="id"), "paths.parquet"))
    assert part.ids == ("images/b/3.png", "images/a/0.png")


def test_absolute_paths_in_a_table(folder, save_table, tmp_path):
    path = str(folder / "a" / "0.png")
    (part,) = list_parts(save_table(pd.DataFrame({"image": [path]})))
    assert part.paths == (path,)


@pytest.mark.parametrize("with_ids", [True, False])
def test_a_shard_is_a_part_of_its_own(folder, tmp_path, with_ids):
    contents = [path.read_bytes() for path in sorted(folder.rglob("*.png"))]
    shards = tmp_path / "shards"
    for number, images in enumerate((contents[:4], contents[4:])):
        columns = {"image": [{"bytes": image, "path": None} for image in images]}
        features = {"image": datasets.Image()}
        if with_ids:
            columns["id"] = [f"eye-{index}" for index in range(len(images))]
            features["id"] = datasets.Value("string")
        shards.mkdir(exist_ok=True)
        dataset = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
        dataset.to_parquet(str(shards / f"part-{number}.parquet"))
    parts = list_parts(str(shards), part_size=1)
    assert [part.name for part in parts] == ["00000-part-0", "00001-part-1"]
    names, sources = parts[0].load()
    assert names == [f"eye-{index}" if with_ids else f"00000-part-0/{index}" for index in range(4)]
    assert list(sources) == contents[:4]
    (shards / ".part-2-half.parquet").write_bytes(b"PAR1")  # of a writer that was killed
    assert list_parts(str(shards), part_size=1) == parts
    (alone,) = list_parts(str(shards / "part-1.parquet"))
    assert list(alone.load()[1]) == contents[4:]
    assert alone.identity == parts[1].identity
    os.utime(shards / "part-0.parquet", ns=(5, 5))
    assert list_parts(str(shards))[0].identity != parts[0].identity


def test_identities_of_a_folder(folder):
    before = identities(folder)
    assert [path for path, _, _ in before] == [str(folder / "notes.txt")]
    (folder / "notes.txt").write_text("another")
    assert identities(folder) != before
    assert identities(folder / "absent") == []


def test_what_is_refused(folder, save_table, tmp_path):
    with pytest.raises(RetFoundError, match="absent does not exist or is no table; give a folder of images"):
        list_parts(str(tmp_path / "absent"))
    with pytest.raises(RetFoundError, match=r"notes\.txt"):
        list_parts(str(folder / "notes.txt"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(RetFoundError, match="empty holds no image"):
        list_parts(str(tmp_path / "empty"))
    with pytest.raises(RetFoundError, match="has no column image; it has picture"):
        list_parts(save_table(pd.DataFrame({"picture": ["a.png"]})))
