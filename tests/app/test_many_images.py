"""The batch: the numbers of `evaluate`, faults named, and no upload left behind."""

import base64
import re
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import pandas as pd
import pytest

from retfound_hf.app.limits import Limits
from retfound_hf.app.many_images import CHUNK, classify_all, images_among
from retfound_hf.app.reader import Reader
from retfound_hf.inference.evaluate_command import main as evaluate


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


def test_of_a_folder_the_images_stay(upload):
    uploads = [upload(name, b"x") for name in ("b.dcm", "notes.txt", "a.JPG", "Thumbs.db", "inner.zip")]
    assert [kept.name for kept in images_among(uploads)] == ["a.JPG", "b.dcm"]
    assert [one.path.exists() for one in uploads] == [True, False, True, False, False]


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
