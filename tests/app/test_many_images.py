"""The batch: the numbers of `evaluate`, faults named, and no upload left behind."""

import base64
import re
import shutil
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.app.page import CHUNK, Turns, classify_all, in_turn
from retfound_hf.app.predictor import Reader
from retfound_hf.app.uploads import Limits, images_among
from retfound_hf.inference.evaluate import main as evaluate


def table_of(html: str) -> pd.DataFrame:
    content = re.search(r'download="predictions\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)[1]
    return pd.read_csv(StringIO(base64.b64decode(content).decode()))


def zipped(entries: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["single_label_classification", "multi_label_classification", "regression"])
def test_same_table_as_evaluate(kind, make_folder, photographs, upload, tmp_path: Path, monkeypatch):
    folder = make_folder(problem_type=kind)
    labels = {
        "single_label_classification": {"label": ["normal", "glaucoma", "retinopathy", "normal"]},
        "multi_label_classification": {name: [0, 1, 0, 1] for name in ("normal", "retinopathy", "glaucoma")},
        "regression": {name: [0.5, 1, 2, 3] for name in ("normal", "retinopathy", "glaucoma")},
    }[kind]
    pd.DataFrame({"image": [str(path) for path in photographs], **labels}).to_csv(tmp_path / "set.csv", index=False)
    words = ["--model_name_or_path", str(folder), "--data", str(tmp_path / "set.csv"), "--split", "all"]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    evaluate([*words, "--dataloader_num_workers", "0"])
    expected = pd.read_csv(tmp_path / "out" / "predictions.csv")
    uploads = [upload(path.name, path.read_bytes()) for path in photographs]
    found = table_of(list(classify_all(Reader(str(folder)), uploads, Limits()))[-1])
    assert list(found) == [name for name in expected if not name.startswith("label")]
    assert found["id"].tolist() == [path.name for path in photographs]
    pd.testing.assert_frame_equal(found.drop(columns="id"), expected[list(found)].drop(columns="id"), rtol=1e-4)


def dicom_head(rest: bytes = b"") -> bytes:
    return bytes(128) + b"DICM" + rest


def test_of_a_folder_the_images_stay(upload):
    """By name, or as DICOM by content, as hospital media hold it: without a suffix, or with a number for one."""
    names = ("b.dcm", "notes.txt", "a.JPG", "Thumbs.db", "inner.zip")
    uploads = [upload(name, b"x") for name in names]
    uploads += [upload(name, dicom_head()) for name in ("IM000001", "1.2.840.78", "DICOMDIR")]
    kept, passed_over = images_among(uploads)
    assert [one.name for one in kept] == ["1.2.840.78", "IM000001", "a.JPG", "b.dcm"]
    assert passed_over == ["DICOMDIR", "Thumbs.db", "inner.zip", "notes.txt"]
    assert {one.name for one in uploads if one.path.exists()} == {one.name for one in kept}


def test_what_was_passed_over_is_said(reader, photographs, upload):
    archive = zipped({"a/1.png": photographs[0].read_bytes(), "a/list.csv": b"x"})
    last = list(classify_all(reader, [upload("a.zip", archive)], Limits(), ["<i>notes</i>.txt"]))[-1]
    assert len(table_of(last)) == 1 and "2 were passed over" in last
    assert "<strong>a/list.csv</strong>" in last and "&lt;i&gt;notes&lt;/i&gt;.txt" in last
    (said,) = classify_all(reader, [], Limits(), [f"{number}.txt" for number in range(7)])
    assert "None of the 7 files is an image" in said and "passed over: 0.txt" in said and "and 2 more" in said


def test_zip_and_files_together_with_progress(reader, photographs, upload):
    contents = [path.read_bytes() for path in photographs]
    archive = zipped({f"patient {index % 2}/{index}.png": contents[index % 4] for index in range(CHUNK + 2)})
    uploads = [upload("all.zip", archive), upload("last.png", contents[0])]
    *steps, last = classify_all(reader, uploads, Limits())
    total = CHUNK + 3
    assert [re.search(r'max="(\d+)" value="(\d+)"', html).groups() for html in steps] == [
        (str(total), "0"),
        (str(total), str(CHUNK)),
    ]
    found = table_of(last)
    assert len(found) == total and found["id"].tolist()[:2] == ["patient 0/0.png", "patient 0/2.png"]
    assert found["id"].iloc[-1] == "last.png"
    # The same photograph has the same numbers wherever it stands.
    rows = found.set_index("id").drop(columns="prediction")
    assert (rows.loc["patient 0/0.png"] - rows.loc["last.png"]).abs().max() < 1e-5
    assert not any(one.path.exists() or one.path.parent.exists() for one in uploads)


def test_faults_are_named_and_the_rest_goes_on(reader, photograph, photographs, upload):
    blank = BytesIO()
    photograph().resize((40, 30)).save(blank, "PNG")
    uploads = [
        upload("<b>bad</b>.png", b"no image"),
        upload("good.png", photographs[1].read_bytes()),
        upload("tiny.png", blank.getvalue()),
        upload("empty.dcm", b""),
    ]
    last = list(classify_all(reader, uploads, Limits()))[-1]
    assert table_of(last)["id"].tolist() == ["good.png", "tiny.png"]
    assert "2 could not be read" in last and "&lt;b&gt;bad&lt;/b&gt;.png" in last and "<b>bad" not in last
    assert "it is not an image in a format that Pillow knows" in last and "the file is empty" in last
    assert "1 are not fit to be judged" in last and "too small" in last


def test_files_of_one_name_have_rows_of_their_own(reader, photographs, upload):
    names = ["left/eye.png", "eye.png (2)", "eye.png", "eye.png", "eye.png"]
    contents = [photographs[index % 4].read_bytes() for index in range(5)]
    uploads = [upload("a.zip", zipped({names[0]: contents[0]}))]
    uploads += [upload(name, content) for name, content in zip(names[1:], contents[1:], strict=True)]
    last = list(classify_all(reader, uploads, Limits()))[-1]
    expected = ["left/eye.png", "eye.png (2)", "eye.png", "eye.png (3)", "eye.png (4)"]
    assert table_of(last)["id"].tolist() == expected
    assert "2 share their name with another" in last and "a zip keeps the folders" in last


def test_large_images_are_refused_before_they_are_decoded(reader, photographs, upload):
    limits = Limits(pixels=10_000)
    last = list(classify_all(reader, [upload("a.png", photographs[0].read_bytes())], limits))[-1]
    assert "more than the 10,000 allowed" in last and "Download" not in last


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.zip", b"no zip", "The zip cannot be read"),
        ("a.zip", zipped({"../../up.png": b"x"}), "leads out of it"),
        ("a.zip", zipped({f"{index}.png": b"x" for index in range(6)}), "6 images; at most 5"),
    ],
)
def test_a_bad_zip_is_said_and_removed(reader, upload, name, content, said):
    uploads = [upload(name, content), upload("b.png", b"x")]
    (only,) = classify_all(reader, uploads, Limits(images=5))
    assert 'role="alert"' in only and said in only
    assert not any(one.path.exists() for one in uploads)


def test_too_many_files_and_none(reader, upload):
    (said,) = classify_all(reader, [upload(f"{index}.png", b"x") for index in range(3)], Limits(images=2))
    assert "3 images; at most 2 are accepted at once" in said
    (said,) = classify_all(reader, [], Limits())
    assert "Choose a zip or some images first" in said


def test_a_visitor_who_leaves_half_way_leaves_nothing(reader, photographs, upload):
    uploads = [upload(f"{index}.png", photographs[0].read_bytes()) for index in range(2 * CHUNK)]
    steps = classify_all(reader, uploads, Limits())
    next(steps), next(steps)
    steps.close()
    assert not any(one.path.exists() for one in uploads)


def test_an_upload_that_is_gone_is_named_and_the_rest_goes_on(reader, photographs, upload, monkeypatch):
    archive = zipped({"1.png": photographs[0].read_bytes()})
    uploads = [upload("swept.png", b"x"), upload("swept.zip", archive), upload("kept.zip", archive)]
    uploads += [upload("locked.png", b"x"), upload("kept.png", photographs[1].read_bytes())]
    uploads[0].discard(), uploads[1].discard(), uploads[3].discard()
    uploads[3].path.mkdir(parents=True)  # reads as an error of the disk
    last = list(classify_all(reader, uploads, Limits()))[-1]
    assert table_of(last)["id"].tolist() == ["1.png", "kept.png"] and "3 could not be read" in last
    assert last.count("send it again") == 2 and "the server&#39;s disk does not give it" in last


def test_batches_wait_in_order_and_their_uploads_out_of_the_sweep(reader, photographs, upload, monkeypatch, tmp_path):
    """The second batch begins when the first ends; neither needs what lies where gradio sweeps."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    monkeypatch.setattr("retfound_hf.app.page.LOOKS_EVERY", 0)
    turns = Turns(2)
    batches = []
    for number in range(2):
        uploads = [upload(f"{number}-{index}.png", photographs[index % 4].read_bytes()) for index in range(2 * CHUNK)]
        batches.append(in_turn(turns, reader, uploads, [upload("notes.txt", b"x")], Limits()))
    first, second = batches
    assert 'value="0"' in next(first) and "Waiting for 1 batch sent before" in next(second)
    shutil.rmtree(tmp_path / "uploads")
    (full,) = in_turn(turns, reader, [upload("late.png", b"x")], [], Limits())
    assert "2 batches are running or waiting" in full
    assert "8 images classified" in list(first)[-1] and "Waiting" not in next(second)
    assert "8 images classified" in list(second)[-1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [] and not list(tmp_path.glob("batch-*"))


def test_a_visitor_who_leaves_while_he_waits_gives_his_place_away(reader, photographs, upload, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "uploads"))
    turns = Turns(3)
    batches = [in_turn(turns, reader, [upload("a.png", photographs[0].read_bytes())], [], Limits()) for _ in range(3)]
    said = [next(batch) for batch in batches]
    assert "Waiting for 2 batches sent before" in said[2]
    batches[1].close()
    assert "Waiting for 1 batch sent before" in next(batches[2])
    batches[0].close()
    assert "1 image classified" in list(batches[2])[-1]
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
