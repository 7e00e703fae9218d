"""`prepare_images`: the same shards from any number of processes, parts and runs; on the Hub; after a kill."""

import contextlib
import importlib.util
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import DatasetCard

from retfound_hf.data import prepare_images as module
from retfound_hf.data.image_cache import Preparer
from retfound_hf.data.prepare_images import PrepareArguments, prepare_images
from retfound_hf.errors import BadArgumentError, BadDataError, OutputError, RetFoundError
from retfound_hf.images.reading import find_images

SCRIPTS = Path(__file__).parents[2] / "scripts"


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


def test_layout_and_result(prepare, photos, tmp_path, capsys):
    options = {"image_size": 32, "shard_size": 5, "num_workers": 2}
    made = prepare_images(photos, tmp_path / "shards", "cfp", **options)
    assert capsys.readouterr().out == ""
    out = made.folder
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
    assert (made.images, made.written, made.duplicates, made.units, made.units_in_source) == (23, 23, 1, 5, 5)
    assert (made.images_read, made.rejected, made.url) == (23, [], None)
    assert prepare_images(str(photos), str(out), "cfp", **options).images_read == 0
    with pytest.raises(TypeError, match="image_size"):
        prepare_images(photos, out, "cfp", imagesize=32)


def test_names_are_text_in_the_card(photos, tmp_path):
    table = tmp_path / "table.csv"
    pd.DataFrame({"image": [f"{photos}/clinic-0/eye00.jpg"], "<hr>|`x`": [1]}).to_csv(table, index=False)
    options = {"image_size": 32, "num_workers": 1, "keep_columns": ["<hr>|`x`"]}
    card = (prepare_images(table, tmp_path / 'a "b" <u>', "cfp", **options).folder / "README.md").read_text()
    assert "| &lt;hr&gt;\\|\\`x\\` | as in the source |" in card
    assert 'load_dataset("a \\"b\\" \\u003cu>", split' in card


def test_row_groups_hold_a_hundred_images(prepare, photos, fundus):
    for number in range(205):
        fundus(100 + number, 66, 66).save(photos / f"more{number}.png")
    out = prepare("shards", "--shard_size", "500")
    metadata = pq.read_metadata(out / "data" / "train-00000.parquet")
    assert [metadata.row_group(k).num_rows for k in range(metadata.num_row_groups)] == [100, 100, 28]


def test_bad_images_and_duplicates_are_reported(photos, damaged_photos, tmp_path, read_csv):
    made = prepare_images(photos, tmp_path / "shards", "cfp", image_size=32, shard_size=5, num_workers=2)
    header, *rejected = read_csv(made.folder / "rejected.csv")
    assert header == ("id", "reason") and rejected == made.rejected
    assert [name for name, _ in rejected] == sorted(damaged_photos)
    assert all(reason.startswith(damaged_photos[name]) for name, reason in rejected)
    pair = ("clinic-0/eye18.jpg", "clinic-0/eye03.jpg")
    assert read_csv(made.folder / "duplicates.csv") == [("id", "duplicate_of"), pair]
    assert (made.written, made.rejected_images, made.duplicates) == (23, 5, 1)
    assert len(datasets.load_dataset(str(made.folder), split="train")) == 23


def test_duplicates_across_shards_name_the_first(prepare, photos, read_csv):
    first = photos / "clinic-0" / "eye00.jpg"
    for name in ("clinic-2/zz.jpg", "clinic-1/aa.jpg", "zz.jpg"):
        shutil.copy(first, photos / name)
    pairs = [
        ("clinic-0/eye18.jpg", "clinic-0/eye03.jpg"),
        *((name, "clinic-0/eye00.jpg") for name in ("clinic-1/aa.jpg", "clinic-2/zz.jpg", "zz.jpg")),
    ]
    assert read_csv(prepare() / "duplicates.csv") == [("id", "duplicate_of"), *pairs]


@pytest.mark.parametrize("modality", ["cfp", "oct"])
def test_images_of_the_other_modality_are_told(prepare, caplog, modality):
    prepare("shards", "--modality", modality)
    assert ("look coloured" in caplog.text) == (modality == "oct")


@pytest.mark.parametrize("image_format", ["jpeg", "png"])
def test_the_same_bytes_whatever_the_workers_and_the_parts(prepare, damaged_photos, shard_bytes, image_format):
    form = ("--image_format", image_format)
    whole = prepare("whole", *form, "--num_workers", "1")
    again = prepare("again", *form, "--num_workers", "3")
    for part in ("2/3", "3/3", "1/3"):
        parts = prepare("parts", *form, "--part", part)
    assert shard_bytes(whole) == shard_bytes(again) == shard_bytes(parts)
    for name in ("rejected.csv", "duplicates.csv", "dataset_info.json"):
        assert (whole / name).read_bytes() == (again / name).read_bytes() == (parts / name).read_bytes()


def test_parts_made_apart_are_merged_by_a_last_run(prepare, damaged_photos, shard_bytes, tmp_path, capsys):
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


def test_other_options_another_rule_or_source_are_refused(prepare, photos, tmp_path, shard_bytes, monkeypatch):
    out = prepare()
    content = shard_bytes(out)
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").write_text("years of work")
    shutil.copytree(photos / "clinic-1", tmp_path / "others")

    def refused(*words, **options):
        with pytest.raises(OutputError) as error:
            prepare(*(words or ["shards"]), **options)
        return str(error.value)

    assert "`image_size=32`, not 48" in refused("shards", "--image_size", "48")
    assert "`quality=95`, not 90" in refused("shards", "--quality", "90")
    assert "others" in refused(source=tmp_path / "others")
    refused("thesis")
    refused("photos/shards")
    with monkeypatch.context() as patched:
        patched.setattr(module, "CROP_VERSION", 2)
        assert "`crop_version=1`, not 2" in refused()
    assert shard_bytes(out) == content and "(rule 1)" in (out / "README.md").read_text()
    prepare("shards", "--image_size", "48", "--overwrite_output_dir")
    assert datasets.load_dataset(str(out), split="train")[0]["image"].size == (48, 48)
    prepare("thesis", "--overwrite_output_dir")
    assert (tmp_path / "thesis" / "thesis.tex").read_text() == "years of work"
    assert not (photos / "shards").exists()


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
    with pytest.raises(BadDataError):
        prepare()
    assert len(read_csv(tmp_path / "shards" / "rejected.csv")) == 24
    assert not (tmp_path / "shards" / "README.md").exists()
    assert list((tmp_path / "shards" / "data").iterdir()) == []


@pytest.mark.parametrize("field, options", [
    *(("part", {"part": part}) for part in ("0/2", "3/2", "1", "a/b", "1/0", "-1/2")),
    ("modality", {"modality": "slo"}), ("image_format", {"image_format": "gif"}), ("quality", {"quality": 101}),
    ("shard_size", {"shard_size": 0}), ("num_workers", {"num_workers": 0}), ("push_to_hub", {"push_to_hub": "eyes"}),
    ("overwrite_output_dir", {"part": "1/2", "overwrite_output_dir": True}),
])  # fmt: skip
def test_bad_options_are_refused_before_the_work(tmp_path, field, options):
    with pytest.raises(BadArgumentError) as error:
        prepare_images(tmp_path, tmp_path / "out", **{"modality": "cfp", **options})
    assert error.value.field == field
    assert list(tmp_path.iterdir()) == []


def test_png_does_not_depend_on_the_quality():
    one, two = (PrepareArguments("s", "o", "cfp", image_format="png", quality=quality) for quality in (50, 95))
    assert one.options == two.options


# ---- several machines


@pytest.mark.parametrize("place", ["this process", pytest.param("processes", marks=pytest.mark.slow)])
def test_a_cluster_makes_the_shards_of_one_machine(prepare, damaged_photos, shard_bytes, request, place):
    pytest.importorskip("submitit", reason="submitit is not installed")
    if place == "this process":
        request.getfixturevalue("cluster_here")
    one, options = prepare("one"), ("--cluster", "local", "--tasks", "3")
    for number in range(2):  # the second finds a shard that is gone, as after a stop
        many = prepare("many", *options)
        assert shard_bytes(one) == shard_bytes(many)
        for name in ("rejected.csv", "duplicates.csv", "dataset_info.json", "README.md"):
            assert (one / name).read_bytes().replace(b"one", b"many") == (many / name).read_bytes()
        run = json.loads((many / "run.json").read_text())
        assert run["images_read"] == (5 if number else 28) and run["arguments"]["tasks"] == 3
        (many / "data" / "train-00004.parquet").rename(many.parent / "moved")
    assert (
        prepare("many", *options) and (many.parent / "moved").read_bytes() == shard_bytes(one)["train-00004.parquet"]
    )


@pytest.mark.parametrize("what", ["stray", "twice", "missing"])
def test_the_last_part_checks_that_nothing_is_missing_or_twice(prepare, what):
    """Damage that sizes do not tell: the record says what the shard does not hold."""
    out = prepare("shards", "--part", "1/2")
    shard, record = out / "data" / "train-00002.parquet", out / ".prepared" / "00002.json"
    if what == "stray":
        shutil.copy(shard, out / "data" / "train-00007.parquet")
    else:
        table = pq.read_table(shard)
        ids = table["id"].to_pylist()
        changed = pa.array([ids[1], *ids[1:]]) if what == "twice" else pa.array(["elsewhere.jpg", *ids[1:]])
        pq.write_table(table.set_column(table.schema.names.index("id"), table.schema.field("id"), changed), shard)
        record.write_text(json.dumps(json.loads(record.read_text()) | {"shard_bytes": shard.stat().st_size}))
    with pytest.raises(OutputError) as error:
        prepare("shards", "--part", "2/2")
    assert error.value.path == (out / "data" / "train-00007.parquet" if what == "stray" else shard)


# ---- the Hub

NAME = "org/eyes"


@pytest.fixture
def on_hub(hub_here, monkeypatch, tmp_path):
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub_here.url)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    return hub_here


def files(hub) -> dict[str, bytes]:
    return {path: blob.content for path, blob in hub.repo(NAME, "dataset").at("main").files.items()}


@pytest.mark.parametrize("public, named", [("false", True), ("true", False)])
def test_a_pushed_set_loads_by_its_name(prepare, photos, on_hub, capsys, public, named):
    out = prepare("shards", "--push_to_hub", NAME, "--public", public, "--push_names", str(named))
    assert f"{on_hub.url}/datasets/{NAME}" in capsys.readouterr().out
    assert on_hub.repo(NAME, "dataset").private == (public == "false")
    assert not any(str(photos).encode() in content for content in files(on_hub).values())
    assert set(files(on_hub)) - {".gitattributes"} == {
        *(f"data/train-{number:05d}.parquet" for number in range(5)),
        "README.md", "dataset_info.json", "duplicates.csv", *(["rejected.csv"] if named else []),
    }  # fmt: skip
    local = datasets.load_dataset(str(out), split="train")
    remote = datasets.load_dataset(NAME, split="train")
    streamed = datasets.load_dataset(NAME, split="train", streaming=True)
    assert local["hash"][:] == remote["hash"][:] == [row["hash"] for row in streamed]
    assert (local["id"][:] == remote["id"][:]) == named
    assert [image.tobytes() for image in local["image"]] == [image.tobytes() for image in remote["image"]]
    card = DatasetCard.load(NAME, repo_type="dataset")
    assert f'load_dataset("{NAME}", split="train")' in card.text and card.data.pretty_name.startswith("23 ")


def test_names_of_images_are_not_pushed_unless_asked(prepare, photos, on_hub):
    """Neither those of files nor of folders, in no part of any file; the numbers lead back to the names."""
    out = prepare("shards", "--push_to_hub", NAME, "--push_names", "true")
    local = datasets.load_dataset(str(out), split="train")
    prepare("shards", "--push_to_hub", NAME)
    pushed = files(on_hub)
    assert "rejected.csv" not in pushed
    words = {part for path in find_images(photos) for part in path.relative_to(photos).with_suffix("").parts}
    tables = {name: pq.read_table(io.BytesIO(content)) for name, content in pushed.items() if "parquet" in name}
    text = " ".join(str(table.select(["id", "hash"]).to_pydict()) for table in tables.values())
    text += " ".join(str(image["path"]) for table in tables.values() for image in table["image"].to_pylist())
    text += " ".join(content.decode() for name, content in pushed.items() if "parquet" not in name)
    assert not [word for word in words if len(word) > 3 and word in text]
    ids = [name for path in sorted(tables) for name in tables[path]["id"].to_pylist()]
    assert len(set(ids)) == len(local) and ids[0] == "00000-000000"
    pairs = [line.split(",") for line in pushed["duplicates.csv"].decode().splitlines()[1:]]
    named = dict(zip(ids, local["id"][:], strict=True))
    here = (out / "duplicates.csv").read_text().splitlines()[1:]
    assert [f"{named[one]},{named[two]}" for one, two in pairs] == here and here
    assert not list(out.glob(".push-*"))


@pytest.mark.parametrize("named", [True, False])
def test_a_push_that_is_cut_off_goes_on(prepare, on_hub, named):
    on_hub.cut("PUT", "_lfs", after=10, times=1000)
    with pytest.raises(RetFoundError):
        prepare("shards", "--push_to_hub", NAME, "--push_names", str(named))
    assert not [name for name in files(on_hub) if name.endswith(".parquet")]
    on_hub.cuts.clear()
    out = prepare("shards", "--push_to_hub", NAME, "--push_names", str(named))
    pushed = files(on_hub)
    assert not named or {f"data/{path.name}": path.read_bytes() for path in (out / "data").iterdir()} == {
        name: content for name, content in pushed.items() if name.endswith(".parquet")
    }
    before = len(on_hub.requests)
    prepare("shards", "--push_to_hub", NAME, "--push_names", str(named))
    assert not [request for request in on_hub.requests[before:] if request.startswith("PUT")]


def test_shards_that_are_gone_here_go_there(prepare, on_hub, photos):
    prepare("shards", "--push_to_hub", NAME)
    for path in sorted(photos.rglob("*.jpg"))[8:]:
        path.unlink()
    prepare("shards", "--push_to_hub", NAME)
    assert sorted(name for name in files(on_hub) if "parquet" in name) == [
        "data/train-00000.parquet", "data/train-00001.parquet",
    ]  # fmt: skip


def test_parts_push_once_all_are_there(prepare, on_hub, capsys):
    prepare("shards", "--push_to_hub", NAME, "--part", "1/2")
    assert "not pushed to the Hub yet: 2 units" in capsys.readouterr().out
    assert not on_hub.store.repos
    prepare("shards", "--push_to_hub", NAME, "--part", "2/2")
    assert len([name for name in files(on_hub) if "parquet" in name]) == 5


@pytest.mark.parametrize("token, reason", [("", "log in"), ("hf_reader", "may write")])
def test_one_line_where_one_may_not(prepare, on_hub, monkeypatch, token, reason):
    monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RetFoundError, match=reason) as found:
        prepare("shards", "--push_to_hub", NAME)
    assert "\n" not in str(found.value)


# ---- processes

PROCESS_OPTIONS = ["--modality", "cfp", "--image_size", "32", "--shard_size", "5", "--num_workers", "2"]


@pytest.fixture
def start():
    """Starts the command in a session of its own; whatever is left of it at the end is killed."""
    runs = []
    yield lambda *arguments, **environment: runs.append(_start(*arguments, **environment)) or runs[-1]
    for run in runs:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
        run.communicate()


def _start(source, out, **environment):
    command = [sys.executable, str(SCRIPTS / "prepare_images.py"), str(source), str(out), *PROCESS_OPTIONS]
    return subprocess.Popen(
        command, env={**os.environ, **environment}, start_new_session=True, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wait_for(condition, seconds=120):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def session(pid: int) -> list[str]:
    """Processes of the session that `pid` began."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, _, sid = path.read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(sid) == pid and state != "Z":
            found.append(path.parent.name)
    return found


@pytest.fixture
def slowly(tmp_path):
    """Variables under which every image takes a while, so that a run can be stopped in its midst."""
    (tmp_path / "patched").mkdir()
    (tmp_path / "patched" / "sitecustomize.py").write_text(
        "import os, time\n"
        "import PIL.Image\n"
        "plain = PIL.Image.open\n"
        "def patched(source, *arguments, **options):\n"
        "    time.sleep(float(os.environ.get('SLOWLY', 0)))\n"
        "    if 'crash' in os.path.basename(str(source)):\n"
        "        os.abort()\n"
        "    return plain(source, *arguments, **options)\n"
        "PIL.Image.open = patched\n"
    )
    path = os.pathsep.join([str(tmp_path / "patched"), os.environ.get("PYTHONPATH", "")])
    return {"PYTHONPATH": path, "SLOWLY": "0.1"}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks for processes in /proc")
def test_a_killed_run_leaves_no_process_and_goes_on_to_the_same_bytes(
    start, prepare, photos, tmp_path, slowly, shard_bytes, capsys
):
    out = tmp_path / "shards"
    run = start(photos, out, **slowly)
    wait_for((out / ".prepared" / "00001.json").exists)
    run.kill()
    run.wait()
    # A worker that was still starting sees that its parent is gone once its imports are done.
    wait_for(lambda: not session(run.pid))
    assert not (out / ".prepared" / "00004.json").exists() and not (out / "README.md").exists()
    first = (out / "data" / "train-00000.parquet").stat().st_mtime_ns
    prepare()
    assert (out / "data" / "train-00000.parquet").stat().st_mtime_ns == first
    assert "23 images written, 0 rejected, 1 exact duplicates; 5 of 5 units done" in capsys.readouterr().out
    assert shard_bytes(out) == shard_bytes(prepare("whole"))


@pytest.mark.slow
def test_ctrl_c_says_one_line(start, photos, tmp_path, slowly):
    out = tmp_path / "shards"
    run = start(photos, out, **slowly)
    wait_for((out / ".prepared" / "00000.json").exists)
    os.killpg(run.pid, signal.SIGINT)  # as a terminal does: to all processes
    _, errors = run.communicate()
    assert run.returncode == 130
    assert "Traceback" not in errors
    assert errors.rstrip().endswith("stopped: interrupted")
    assert all(not path.name.startswith(".") for path in (out / "data").iterdir())


@pytest.mark.slow
def test_a_decoder_that_crashes_costs_one_image(start, prepare, photos, tmp_path, slowly, shard_bytes, read_csv):
    shutil.copy(photos / "clinic-0" / "eye00.jpg", photos / "clinic-1" / "crash.jpg")
    out = tmp_path / "shards"
    run = start(photos, out, **{**slowly, "SLOWLY": "0"})
    output, errors = run.communicate()
    assert run.returncode == 0, errors
    assert "23 images written, 1 rejected" in output
    ((name, reason),) = read_csv(out / "rejected.csv")[1:]
    assert name == "clinic-1/crash.jpg" and "decoder crashed" in reason
    (photos / "clinic-1" / "crash.jpg").write_bytes(b"")
    assert shard_bytes(out) == shard_bytes(prepare("whole"))


def test_a_script_without_a_guard(photos, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "from retfound_hf.data.prepare_images import prepare_images\n"
        "print('started')\n"
        f"made = prepare_images({str(photos)!r}, {str(tmp_path / 'out')!r}, 'cfp', image_size=32, num_workers=2)\n"
        "print(made.written, made.rejected)\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["started", "23 []"]


BYTES_AN_IMAGE = 2000  # a prepared image has ten times as many


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory from /proc")
def test_peak_memory_is_flat(tmp_path):
    spec = importlib.util.spec_from_file_location("benchmark", SCRIPTS / "benchmarks" / "prepare_images.py")
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    peaks = []
    for count in (500, 4500):
        source = benchmark.make_small(tmp_path / f"images-{count}", count)
        options = ("--modality", "oct", "--num_workers", "2", "--shard_size", "250", "--image_format", "png")
        peaks.append(max(benchmark.memory_over_time(source, tmp_path / f"shards-{count}", *options)))
    assert (peaks[1] - peaks[0]) * 2**20 / 4000 < BYTES_AN_IMAGE
