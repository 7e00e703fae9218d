"""Feature vectors: the model's own, in order, and a stopped run that goes on where it was."""

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
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from transformers import AutoModel

from retfound_hf import RetFoundImageProcessor
from retfound_hf.errors import BadArgumentError, BadDataError, BadModelError, OutputError, RetFoundError
from retfound_hf.images.reading import find_images
from retfound_hf.inference import embed as embedding
from retfound_hf.inference.embed import embed, main

SCRIPT = Path(__file__).parents[2] / "scripts" / "embed.py"


def words(model, data, out, *more) -> list[str]:
    return [
        "--model_name_or_path", str(model), "--data", str(data), "--output_dir", str(out),
        "--dataloader_num_workers", "0", *map(str, more),
    ]  # fmt: skip


def vectors(folder) -> tuple[list[str], np.ndarray]:
    table = pq.read_table(folder / "features.parquet")
    return table["id"].to_pylist(), np.stack(table["vector"].to_numpy(zero_copy_only=False))


def pooled(model_folder, files) -> np.ndarray:
    model = AutoModel.from_pretrained(model_folder).eval()
    processor = RetFoundImageProcessor.from_pretrained(model_folder)
    with torch.no_grad():
        outputs = model(**processor([str(file) for file in files], return_tensors="pt"))
    if model.config.model_type == "retfound":
        return outputs.pooler_output.numpy()
    # RETFound's feature vector, whatever the encoder: the mean of the patch tokens, normalised.
    patch_mean = outputs.last_hidden_state[:, 1:].mean(dim=1)
    return torch.nn.functional.layer_norm(patch_mean, patch_mean.shape[-1:], eps=1e-6).numpy()


@pytest.mark.parametrize("kind", ["retfound", "dinov2"])
def test_features_are_the_models_own_in_order(encoder_folder, dinov2_folder, images_folder, tmp_path, kind):
    folder = encoder_folder if kind == "retfound" else dinov2_folder
    main(words(folder, images_folder, tmp_path / "out", "--part_size", 10, "--per_device_eval_batch_size", 4))
    ids, found = vectors(tmp_path / "out")
    files = find_images(images_folder)
    assert ids == sorted(ids) == [file.relative_to(images_folder).as_posix() for file in files]
    assert found == pytest.approx(pooled(folder, files), abs=1e-5)
    assert len(np.unique(found.round(4), axis=0)) == 24


def test_file_and_record(encoder_folder, images_folder, tmp_path):
    main(words(encoder_folder, images_folder, tmp_path / "out"))
    schema = pq.read_schema(tmp_path / "out" / "features.parquet")
    assert schema.names == ["id", "vector"]
    assert str(schema.field("id").type) == "string"
    assert "float" in str(schema.field("vector").type)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["features.parquet", "run.json"]
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["command"] == "embed"
    assert record["arguments"]["model_name_or_path"] == str(encoder_folder)
    assert record["rejected_images"] == []
    frame = pd.read_parquet(tmp_path / "out" / "features.parquet")
    assert frame["vector"].map(len).unique().tolist() == [32]


def test_a_table_of_images(encoder_folder, labelled_table, tmp_path):
    main(words(encoder_folder, labelled_table, tmp_path / "out"))
    ids, found = vectors(tmp_path / "out")
    table = pd.read_csv(labelled_table)
    assert ids == list(table["image"])
    assert found[:5] == pytest.approx(
        pooled(encoder_folder, [labelled_table.parent / name for name in table["image"][:5]]), abs=1e-5
    )


@pytest.fixture
def shards(images_folder, tmp_path) -> Path:
    """Two parquet shards with encoded images in a struct column."""
    files = [str(path) for path in find_images(images_folder)]
    folder = tmp_path / "shards"
    folder.mkdir()
    for number, part in enumerate((files[:14], files[14:])):
        images = [{"bytes": Path(file).read_bytes(), "path": Path(file).name} for file in part]
        shard = datasets.Dataset.from_dict({"image": images}, features=datasets.Features({"image": datasets.Image()}))
        shard.to_parquet(str(folder / f"part-{number}.parquet"))
    return folder


def test_shards_give_what_files_give(encoder_folder, images_folder, shards, tmp_path):
    main(words(encoder_folder, shards, tmp_path / "from-shards"))
    main(words(encoder_folder, images_folder, tmp_path / "from-files"))
    (names, one), (files, two) = vectors(tmp_path / "from-shards"), vectors(tmp_path / "from-files")
    assert names == [file.split("/")[-1] for file in files]
    assert one == pytest.approx(two, abs=1e-6)
    main(words(encoder_folder, shards / "part-1.parquet", tmp_path / "one"))
    assert vectors(tmp_path / "one")[0] == names[14:]


class Stopped(BaseException):
    """As abrupt as a signal."""


def parts_computed(monkeypatch, at_most: int | None = None) -> list[str]:
    """Names of the parts that are computed from now on; after `at_most` of them the run is stopped."""
    original, done = embedding.forward_part, []

    def counted(encoder, part, *args, **options):
        if len(done) == at_most:
            raise Stopped
        done.append(part.name)
        return original(encoder, part, *args, **options)

    monkeypatch.setattr(embedding, "forward_part", counted)
    return done


def test_a_stopped_run_takes_up_its_parts(encoder_folder, images_folder, tmp_path, monkeypatch):
    options = words(encoder_folder, images_folder, tmp_path / "out", "--part_size", 5)
    with monkeypatch.context() as patch:
        parts_computed(patch, at_most=3)
        with pytest.raises(Stopped):
            main(options)
    assert not (tmp_path / "out" / "features.parquet").exists()
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out" / "parts").glob("*.parquet")}
    assert len(finished) == 3
    original, computed = embedding.forward_part, []
    monkeypatch.setattr(
        embedding, "forward_part", lambda *args, **options: computed.append(args[1].name) or original(*args, **options)
    )
    main(options)
    assert computed == ["00003", "00004"]
    assert not (tmp_path / "out" / "parts").exists()
    main(words(encoder_folder, images_folder, tmp_path / "whole", "--part_size", 5))
    contents = [(tmp_path / name / "features.parquet").read_bytes() for name in ("out", "whole")]
    assert contents[0] == contents[1]


def test_only_parts_with_changed_images_are_computed_anew(encoder_folder, images_folder, tmp_path, monkeypatch):
    data = tmp_path / "images"
    shutil.copytree(images_folder, data)
    options = words(encoder_folder, data, tmp_path / "out", "--part_size", 5)
    with monkeypatch.context() as patch:
        parts_computed(patch, at_most=3)
        with pytest.raises(Stopped):
            main(options)
    changed = find_images(data)[7]
    shutil.copy(find_images(data)[20], changed)
    original, computed = embedding.forward_part, []
    monkeypatch.setattr(
        embedding, "forward_part", lambda *args, **options: computed.append(args[1].name) or original(*args, **options)
    )
    main(options)
    assert computed == ["00001", "00003", "00004"]
    assert vectors(tmp_path / "out")[1] == pytest.approx(pooled(encoder_folder, find_images(data)), abs=1e-5)


def test_parts_of_another_model_are_not_taken_up(encoder_folder, dinov2_folder, images_folder, tmp_path, monkeypatch):
    moved = tmp_path / "moved"
    shutil.copytree(encoder_folder, moved)
    for name, first in (("out", encoder_folder), ("other", moved)):
        with monkeypatch.context() as patch:
            parts_computed(patch, at_most=1)
            with pytest.raises(Stopped):
                main(words(first, images_folder, tmp_path / name, "--part_size", 5))
    os.utime(moved / "model.safetensors", ns=(1, 1))  # as after training it again
    for name, second in (("out", dinov2_folder), ("other", moved)):
        with pytest.raises(OutputError):
            main(words(second, images_folder, tmp_path / name, "--part_size", 5))


@pytest.mark.slow
def test_a_killed_process_goes_on(encoder_folder, images_folder, tmp_path):
    command = [sys.executable, str(SCRIPT), *words(encoder_folder, images_folder, tmp_path / "out", "--part_size", 1)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    parts = tmp_path / "out" / "parts"
    deadline = time.monotonic() + 120
    while len(list(parts.glob("0*.parquet"))) < 3 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    finished = {path: path.stat().st_mtime_ns for path in parts.glob("0*.parquet")}
    assert 3 <= len(finished) < 24
    assert not (tmp_path / "out" / "features.parquet").exists()
    assert subprocess.run(command, capture_output=True, timeout=120).returncode == 0
    main(words(encoder_folder, images_folder, tmp_path / "whole", "--part_size", 1))
    contents = [(tmp_path / name / "features.parquet").read_bytes() for name in ("out", "whole")]
    assert contents[0] == contents[1]


@pytest.fixture
def damaged(images_folder, tmp_path) -> Path:
    data = tmp_path / "damaged"
    shutil.copytree(images_folder, data)
    victim = find_images(data)[3]
    victim.write_bytes(victim.read_bytes()[:40])
    return data


def test_a_corrupt_image_is_skipped_and_listed(encoder_folder, damaged, tmp_path, capsys):
    main(words(encoder_folder, damaged, tmp_path / "out", "--on_bad_image", "skip", "--part_size", 10))
    ids, found = vectors(tmp_path / "out")
    files = find_images(damaged)
    bad = files.pop(3)
    assert ids == [file.relative_to(damaged).as_posix() for file in files]
    assert found == pytest.approx(pooled(encoder_folder, files), abs=1e-5)
    rejected = pd.read_csv(tmp_path / "out" / "rejected.csv")
    assert list(rejected["id"]) == [bad.relative_to(damaged).as_posix()]
    assert rejected["reason"].str.len().min() > 5
    assert "1 images could not be read" in capsys.readouterr().out


def test_corrupt_images_are_named_by_the_function(encoder_folder, damaged, tmp_path):
    name = find_images(damaged)[3].relative_to(damaged).as_posix()
    for output_dir in (tmp_path / "out", None):
        with pytest.raises(BadDataError) as error:
            embed(encoder_folder, damaged, output_dir, dataloader_num_workers=0)
        assert error.value.rows == (name,)
    assert not (tmp_path / "out").exists()
    found = embed(encoder_folder, damaged, dataloader_num_workers=0, on_bad_image="skip", part_size=10)
    assert len(found.vectors) == 23 and name not in found.ids and [one for one, _ in found.rejected] == [name]


def test_the_function_gives_what_the_file_holds(encoder_folder, images_folder, tmp_path, capsys):
    written = embed(encoder_folder, images_folder, tmp_path / "out", dataloader_num_workers=0, part_size=10)
    kept = embed(encoder_folder, images_folder, dataloader_num_workers=0, part_size=7)
    ids, found = vectors(tmp_path / "out")
    assert list(written.ids) == list(kept.ids) == ids
    assert np.array_equal(written.vectors, found) and kept.vectors == pytest.approx(found, abs=1e-5)
    assert (written.output, kept.output) == (tmp_path / "out" / "features.parquet", None)
    files = find_images(images_folder)
    listed = embed(encoder_folder, [files[2], Image.open(files[0])], dataloader_num_workers=0)
    assert list(listed.ids) == [str(files[2]), "1"]
    assert listed.vectors == pytest.approx(found[[2, 0]], abs=1e-5)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("options", "error"),
    [
        ({"model": "absent"}, BadModelError),
        ({"images": "absent"}, BadDataError),
        ({"images": "empty"}, BadDataError),
        ({"output_dir": "occupied"}, OutputError),
        ({"part_sise": 3}, TypeError),
        ({"fp16": True, "bf16": True}, BadArgumentError),
        ({"model": "bert"}, RetFoundError),
    ],
)
def test_bad_input(encoder_folder, images_folder, tmp_path, monkeypatch, options, error):
    monkeypatch.chdir(tmp_path)
    for name in ("empty", "occupied", "bert"):
        (tmp_path / name).mkdir()
    (tmp_path / "occupied" / "notes.txt").write_text("mine")
    (tmp_path / "bert" / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(error):
        embed(**{"model": encoder_folder, "images": images_folder, "output_dir": "out", **options})
    assert not (tmp_path / "out").exists()


# ---- several machines


@pytest.fixture
def undivided(encoder_folder, damaged, tmp_path) -> Path:
    """The features of one machine, of images of which one is damaged."""
    main(words(encoder_folder, damaged, tmp_path / "whole", "--part_size", 5, "--on_bad_image", "skip"))
    return tmp_path / "whole"


def assert_equal_files(folder: Path, other: Path) -> None:
    for name in ("features.parquet", "rejected.csv"):
        assert (folder / name).read_bytes() == (other / name).read_bytes()
    assert not (folder / "parts").exists()


def test_the_last_part_joins_all(encoder_folder, damaged, undivided, tmp_path, capsys):
    out, options = tmp_path / "out", {"part_size": 5, "on_bad_image": "skip", "dataloader_num_workers": 0}
    ids, expected = vectors(undivided)
    for part, count in (("3/3", 5), ("1/3", 15 - 1), ("2/3", 24 - 1)):
        found = embed(encoder_folder, damaged, out, part=part, **options)
        assert len(found.ids) == count and (found.output is not None) == (part == "2/3")
        places = [ids.index(name) for name in found.ids]
        assert places == sorted(places) and np.array_equal(found.vectors, expected[places])
    assert_equal_files(out, undivided)
    assert len(found.rejected) == 1
    more = [*words(encoder_folder, damaged, tmp_path / "other"), "--part", "1/2", "--part_size", "5", "--on_bad_image"]
    main([*more, "skip"])
    assert "2 parts are missing" in capsys.readouterr().out
    with pytest.raises(BadArgumentError) as error:
        embed(encoder_folder, damaged, part="1/2")
    assert error.value.field == "part"


def test_a_cluster_goes_on_with_what_failed(encoder_folder, damaged, undivided, tmp_path, cluster_here):
    out, options = tmp_path / "out", {"part_size": 5, "cluster": "local", "tasks": 2, "dataloader_num_workers": 0}
    with pytest.raises(RetFoundError) as error:
        embed(encoder_folder, damaged, out, **options)
    (failed,) = error.value.failed
    name = find_images(damaged)[3].relative_to(damaged).as_posix()
    assert failed.part == "1/2" and error.value.__cause__.rows == (name,)
    times = {path: path.stat().st_mtime_ns for path in (out / "parts").glob("0*.parquet")}
    assert {path.name[:5] for path in times} == {"00001", "00003"}
    found = embed(encoder_folder, damaged, out, on_bad_image="skip", **options)
    assert_equal_files(out, undivided)
    assert found.output == out / "features.parquet" and len(found.rejected) == 1


@pytest.mark.slow
def test_jobs_of_a_cluster_in_processes_of_their_own(encoder_folder, damaged, undivided, tmp_path):
    pytest.importorskip("submitit", reason="submitit is not installed")
    more = ["--part_size", 5, "--on_bad_image", "skip", "--cluster", "local", "--tasks", 2]
    main(words(encoder_folder, damaged, tmp_path / "out", *more))
    assert_equal_files(tmp_path / "out", undivided)
