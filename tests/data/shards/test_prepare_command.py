"""The command: what it writes, that it always writes the same, and that it goes on where it was stopped."""

import json
import os
import shutil

import datasets
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from retfound_hf.data.prepare_images import PrepareArguments
from retfound_hf.data.shards import Preparer
from retfound_hf.errors import RetFoundError
from retfound_hf.images.reading import find_images


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def times(out):
    return {path.name: path.stat().st_mtime_ns for path in (out / "data").iterdir()}


def test_datasets_reads_the_shards_both_ways(prepare, photos):
    out = prepare("shards", "--image_format", "png")
    expected = [path.relative_to(photos).as_posix() for path in find_images(photos)]
    mapped = datasets.load_dataset(str(out), split="train")
    streamed = list(datasets.load_dataset(str(out), split="train", streaming=True))
    assert mapped["id"][:] == [row["id"] for row in streamed] == expected
    preparer = Preparer(32, True, 64, "png")
    for row, again in zip(mapped, streamed, strict=True):
        pixels = np.asarray(preparer.prepare(str(photos / row["id"])))
        np.testing.assert_array_equal(np.asarray(row["image"]), pixels)
        np.testing.assert_array_equal(np.asarray(again["image"]), pixels)
    raw = mapped.cast_column("image", datasets.Image(decode=False))[0]["image"]
    assert raw["path"] == "eye00.png"
    assert list(mapped.features) == ["image", "id", "hash"]
    assert mapped.info.splits["train"].num_examples == 23


def test_layout(prepare, photos):
    out = prepare()
    assert sorted(path.name for path in out.iterdir()) == [
        ".prepared", "README.md", "data", "dataset_info.json", "duplicates.csv", "rejected.csv", "run.json",
    ]  # fmt: skip
    assert sorted(path.name for path in (out / "data").iterdir()) == [f"train-{k:05d}.parquet" for k in range(5)]
    rows = [pq.read_metadata(path).num_rows for path in sorted((out / "data").iterdir())]
    assert rows == [5, 5, 5, 5, 3]
    info = json.loads((out / "dataset_info.json").read_text())
    assert info["splits"]["train"]["num_examples"] == 23
    run = json.loads((out / "run.json").read_text())
    assert (run["images"], run["written"], run["rejected"], run["duplicates"]) == (23, 23, 0, 1)
    assert run["arguments"]["modality"] == "cfp"


def test_row_groups_hold_a_hundred_images(prepare, photos, fundus):
    for number in range(205):
        fundus(100 + number, 66, 66).save(photos / f"more{number}.png")
    out = prepare("shards", "--shard_size", "500")
    metadata = pq.read_metadata(out / "data" / "train-00000.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [100, 100, 28]


def test_bad_images_and_duplicates_are_reported(prepare, damaged, read_csv, capsys):
    out = prepare()
    header, *rejected = read_csv(out / "rejected.csv")
    assert header == ("id", "reason")
    assert [name for name, _ in rejected] == sorted(damaged)
    assert all(reason.startswith(damaged[name]) for name, reason in rejected)
    assert read_csv(out / "duplicates.csv") == [("id", "duplicate_of"), ("clinic-0/eye18.jpg", "clinic-0/eye03.jpg")]
    printed = capsys.readouterr().out
    assert "23 images written, 5 rejected, 1 exact duplicates; 6 of 6 units done" in printed
    assert len(datasets.load_dataset(str(out), split="train")) == 23


def test_duplicates_across_shards_name_the_first(prepare, photos, read_csv):
    first = photos / "clinic-0" / "eye00.jpg"
    for name in ("clinic-2/zz.jpg", "clinic-1/aa.jpg", "zz.jpg"):
        shutil.copy(first, photos / name)
    pairs = [
        ("clinic-0/eye18.jpg", "clinic-0/eye03.jpg"),
        *((name, "clinic-0/eye00.jpg") for name in ("clinic-1/aa.jpg", "clinic-2/zz.jpg", "zz.jpg")),
    ]
    assert read_csv(prepare() / "duplicates.csv") == [("id", "duplicate_of"), *pairs]


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_same_bytes_whatever_the_workers_and_the_parts(prepare, damaged, shard_bytes, image_format):
    form = ("--image_format", image_format)
    whole = prepare("whole", *form, "--num_workers", "1")
    again = prepare("again", *form, "--num_workers", "3")
    for part in ("2/3", "3/3", "1/3"):
        parts = prepare("parts", *form, "--part", part)
    assert shard_bytes(whole) == shard_bytes(again) == shard_bytes(parts)
    for name in ("rejected.csv", "duplicates.csv", "dataset_info.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes() == (parts / name).read_bytes()


def test_parts_made_apart_are_merged_by_a_last_run(prepare, damaged, shard_bytes, tmp_path, capsys):
    for part in (1, 2):
        folder = prepare(f"machine{part}", "--part", f"{part}/2")
        assert len(list((folder / ".prepared").iterdir())) == 3
        shutil.copytree(folder, tmp_path / "merged", dirs_exist_ok=True)
    before = times(tmp_path / "merged")
    capsys.readouterr()
    merged = prepare("merged")
    assert "0 images read in this run" in capsys.readouterr().out
    assert times(merged) == before
    whole = prepare("whole")
    assert shard_bytes(merged) == shard_bytes(whole)
    for name in ("README.md", "rejected.csv", "duplicates.csv", "dataset_info.json"):
        expected = (whole / name).read_text().replace('"whole"', '"merged"')
        assert (merged / name).read_text() == expected


def test_only_a_unit_that_changed_or_lost_something_is_made_anew(prepare, photos, shard_bytes, fundus):
    out = prepare()
    before, content = times(out), shard_bytes(out)

    def changed():
        now = times(prepare())
        return [name[6:11] for name in sorted(now) if now[name] != before.get(name)]

    assert changed() == []
    fundus(77).save(photos / "clinic-1" / "eye10.jpg")
    assert changed() == ["00002"]
    assert shard_bytes(out)["train-00002.parquet"] != content["train-00002.parquet"]
    before = times(out)
    (out / "data" / "train-00001.parquet").unlink()
    (out / ".prepared" / "00003.json").write_text('{"unit": 3, "identi')
    with open(out / "data" / "train-00004.parquet", "ab") as file:
        file.write(b"half a copy")
    assert changed() == ["00001", "00003", "00004"]
    after = shard_bytes(out)
    assert {name: after[name] for name in content if "00002" not in name} == {
        name: content[name] for name in content if "00002" not in name
    }


def test_a_source_that_became_smaller_loses_its_last_shards(prepare, photos, shard_bytes):
    prepare()
    for path in find_images(photos)[12:]:
        path.unlink()
    assert shard_bytes(prepare()) == shard_bytes(prepare("fresh"))


def test_leftovers_of_a_killed_run_are_cleared(prepare, shard_bytes):
    out = prepare()
    (out / ".prepared" / "00002.json").unlink()
    (out / "data" / ".train-00002-x1y2z3.parquet").write_bytes(b"half")
    prepare()
    assert len(shard_bytes(out)) == 5


def test_other_options_or_another_source_are_refused(prepare, photos, tmp_path, shard_bytes):
    out = prepare()
    content = shard_bytes(out)
    with pytest.raises(RetFoundError, match=r"shards made with --image_size 32, not 48; .*--overwrite_output_dir"):
        prepare("shards", "--image_size", "48")
    with pytest.raises(RetFoundError, match="made with --quality 95, not 90"):
        prepare("shards", "--quality", "90")
    shutil.copytree(photos / "clinic-1", tmp_path / "others")
    with pytest.raises(RetFoundError, match=r"holds shards of .*photos, not of .*others; choose another folder"):
        prepare("shards", source=tmp_path / "others")
    assert shard_bytes(out) == content
    prepare("shards", "--image_size", "48", "--overwrite_output_dir")
    assert datasets.load_dataset(str(out), split="train")[0]["image"].size == (48, 48)


def test_a_folder_with_something_else_is_left_alone(prepare, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "thesis.tex").write_text("years of work")
    with pytest.raises(RetFoundError, match="is not empty"):
        prepare()
    prepare("shards", "--overwrite_output_dir")
    assert (tmp_path / "shards" / "thesis.tex").read_text() == "years of work"


def test_columns_of_a_table_are_carried_along(prepare, photos):
    images = [str(path) for path in find_images(photos)]
    table = pd.DataFrame({"image": images, "id": [f"P{k}" for k in range(23)], "age": range(23), "name": "Secret"})
    table.to_csv(photos.parent / "table.csv", index=False)
    out = prepare("kept", "--keep_columns", "age", source=photos.parent / "table.csv")
    rows = datasets.load_dataset(str(out), split="train")
    assert rows["age"][:] == list(range(23)) and rows["id"][:] == [f"P{k}" for k in range(23)]
    plain = prepare("plain", source=photos.parent / "table.csv")
    assert datasets.load_dataset(str(plain), split="train").column_names == ["image", "id", "hash"]


def test_shards_of_shards(prepare, photos):
    """A data set of `datasets` is a source too, and OCT is not cropped."""
    first = prepare("first", "--image_format", "png", "--image_size", "64")
    oct_ = ("--modality", "oct", "--image_format", "png")
    second = prepare("second", *oct_, source=first)
    third = prepare("third", *oct_, "--image_size", "64", source=first)
    made = datasets.load_dataset(str(third), split="train")
    for row, original in zip(made, datasets.load_dataset(str(first), split="train"), strict=True):
        assert row["id"] == original["id"] and row["hash"] == original["hash"]
    assert datasets.load_dataset(str(second), split="train")[0]["image"].size == (32, 32)


def test_a_source_without_one_good_image_is_an_error_at_the_end(prepare, photos, tmp_path, read_csv):
    prepare()
    for path in find_images(photos):
        path.write_bytes(b"")
    with pytest.raises(
        RetFoundError, match=r"none of the 23 images could be prepared \(such as .*: the file is empty"
    ):
        prepare()
    assert len(read_csv(tmp_path / "shards" / "rejected.csv")) == 24
    assert not (tmp_path / "shards" / "README.md").exists()
    assert list((tmp_path / "shards" / "data").iterdir()) == []


@pytest.mark.parametrize("part", ["0/2", "3/2", "1", "a/b", "1/0", "-1/2"])
def test_a_part_that_is_none(prepare, part):
    with pytest.raises(RetFoundError, match=rf"--part {part} is not i/n with i from 1 to n; give such as 1/8"):
        prepare("shards", f"--part={part}")


def test_other_bad_options(prepare, photos):
    with pytest.raises(RetFoundError, match="--quality 101 is too large; give at most 100"):
        prepare("shards", "--quality", "101")
    with pytest.raises(RetFoundError, match="--shard_size 0 is too small; give at least 1"):
        prepare("shards", "--shard_size", "0")
    with pytest.raises(RetFoundError, match="would remove the other parts' shards"):
        prepare("shards", "--part", "1/2", "--overwrite_output_dir")
    with pytest.raises(RetFoundError, match=r"lies in the source .*; choose one outside of it"):
        prepare("photos/shards")
    assert os.listdir(photos.parent) == ["photos"]


def test_png_does_not_depend_on_the_quality():
    one, two = (PrepareArguments("s", "o", "cfp", image_format="png", quality=quality) for quality in (50, 95))
    assert one.options == two.options
