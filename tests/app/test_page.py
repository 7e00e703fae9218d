"""Tabs of the page: answers with maps for every kind of model, and batches with the numbers of `evaluate`."""

import asyncio
import base64
import re
import shutil
import subprocess
import sys
import zipfile
from io import BytesIO, StringIO
from pathlib import Path

import gradio
import pandas as pd
import pytest
from PIL import Image

from retfound_hf.app.page import CHUNK, Turns, build_page, explained, look, reconstructed, run_batch
from retfound_hf.app.predictor import Reader, Reconstructor
from retfound_hf.app.uploads import Limits
from retfound_hf.errors import RetFoundError
from retfound_hf.inference.evaluate import main as evaluate
from retfound_hf.vocabulary import MULTI_LABEL, PROBLEM_TYPES, REGRESSION, SINGLE_LABEL

NAMES = ("normal", "retinopathy", "glaucoma")


@pytest.fixture(params=PROBLEM_TYPES)
def any_reader(request, make_folder) -> Reader:
    return Reader(str(make_folder(problem_type=request.param)))


def test_every_kind_of_model_answers_and_is_explained(any_reader, photograph):
    image = photograph(1, 480)
    html, kept, target = look(any_reader, image, "eye.png")
    assert "rf-headline" in html
    assert target == any_reader.class_names[int(any_reader.answer(image).scores.argmax())]
    picture = explained(any_reader, kept, target)
    content = re.search(r'class="rf-heat" src="data:image/png;base64,([^"]+)"', picture)[1]
    assert Image.open(BytesIO(base64.b64decode(content))).size == kept.size
    assert f"<strong>{target}</strong>" in picture


# Six threads, which stay as a server's do, read a photograph each; prints what memory has grown since the first.
READING = """
import sys, threading
from io import BytesIO
import psutil
from PIL import Image
from retfound_hf.app.page import look
from retfound_hf.app.predictor import Reader
from retfound_hf.images.reading import read_image

file, reader, used = BytesIO(), Reader(sys.argv[1]), []
Image.effect_noise((375, 250), 60).convert("RGB").resize((3000, 2000)).save(file, "JPEG")

def read(done):
    look(reader, read_image(file.getvalue()), "eye.jpg")
    done.set()
    threading.Event().wait()

for _ in range(6):
    done = threading.Event()
    threading.Thread(target=read, args=(done,), daemon=True).start()
    if not done.wait(120):
        sys.exit("a thread has not read its image")
    used.append(psutil.Process().memory_info().rss)
print(used[-1] - used[0])
"""


def test_threads_keep_no_memory_of_the_images_that_they_read(classifier_folder):
    """A server has forty threads; each kept twice the pixels of the largest image that it had read."""
    words = [sys.executable, "-c", READING, str(classifier_folder)]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 3 * 3000 * 2000 * 3


def test_a_model_without_maps_says_so(reader, photograph, monkeypatch):
    def refuse(*_):
        raise RetFoundError("no attention")

    monkeypatch.setattr(Reader, "relevance_layer", refuse)
    _, kept, target = look(reader, photograph(0), "eye.png")
    picture = explained(reader, kept, target)
    assert "no attention" in picture and "rf-heat" not in picture


def test_a_folder_of_pretraining_shows_its_reconstructions_alone(autoencoder_folder, photograph):
    model = Reconstructor(str(autoencoder_folder))

    async def build():
        return build_page(None, model, Limits())

    page = asyncio.run(build())  # without a running loop gradio makes some and leaves them open
    assert [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)] == ["Reconstruction"]
    pixels = model.network_input(photograph(0))
    assert reconstructed(model, pixels, 0.5, 0) == reconstructed(model, pixels, 0.5, 0)
    assert reconstructed(model, pixels, 0.5, 0) != reconstructed(model, pixels, 0.5, 1)


def table_of(html: str) -> pd.DataFrame:
    content = re.search(r'download="predictions\.csv" href="data:text/csv;charset=utf-8;base64,([^"]+)"', html)[1]
    return pd.read_csv(StringIO(base64.b64decode(content).decode()))


def problems_of(html: str) -> dict[str, tuple[int, list[str]]]:
    """Number and names of the files with problems, by the first two words of the title."""
    found = re.findall(r"<summary>(\d+) (\w+),? (\w+).*?</summary>(.*?)</details>", html, re.S)
    return {
        f"{one} {two}": (int(number), re.findall("<strong>(.*?)</strong>", text)) for number, one, two, text in found
    }


def zipped(entries: dict[str, bytes]) -> bytes:
    file = BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
    return file.getvalue()


def classify(reader, files, folder=(), limits=None) -> list[str]:
    return list(run_batch(Turns(1), reader, files, folder, limits or Limits()))


LABELS = {
    SINGLE_LABEL: {"label": ["normal", "glaucoma", "retinopathy", "normal"]},
    MULTI_LABEL: {name: [0, 1, 0, 1] for name in NAMES},
    REGRESSION: {name: [0.5, 1, 2, 3] for name in NAMES},
}


def test_same_table_as_evaluate(any_reader, photographs, upload, tmp_path: Path):
    labels = LABELS[any_reader.problem_type]
    pd.DataFrame({"image": [str(path) for path in photographs], **labels}).to_csv(tmp_path / "set.csv", index=False)
    words = ["--model_name_or_path", any_reader.name_or_path, "--data", str(tmp_path / "set.csv"), "--split", "all"]
    words += ["--output_dir", str(tmp_path / "out"), "--cache_dir", str(tmp_path / "cache")]
    evaluate([*words, "--dataloader_num_workers", "0"])
    expected = pd.read_csv(tmp_path / "out" / "predictions.csv")
    found = table_of(classify(any_reader, [upload(path.name, path.read_bytes()) for path in photographs])[-1])
    assert list(found) == [name for name in expected if not name.startswith("label")]
    assert found["id"].tolist() == [path.name for path in photographs]
    pd.testing.assert_frame_equal(found.drop(columns="id"), expected[list(found)].drop(columns="id"), rtol=1e-4)


def test_zip_and_files_together_with_progress(reader, photographs, upload):
    contents = [path.read_bytes() for path in photographs]
    archive = zipped({f"patient {index % 2}/{index}.png": contents[index % 4] for index in range(CHUNK + 2)})
    uploads = [upload("all.zip", archive), upload("last.png", contents[0])]
    *steps, last = classify(reader, uploads)
    total = str(CHUNK + 3)
    progress = [re.search(r'max="(\d+)" value="(\d+)"', html).groups() for html in steps]
    assert progress == [(total, "0"), (total, str(CHUNK))]
    found = table_of(last).set_index("id").drop(columns="prediction")
    assert found.index[:2].tolist() == ["patient 0/0.png", "patient 0/2.png"] and found.index[-1] == "last.png"
    # The same photograph has the same numbers wherever it stands.
    assert len(found) == CHUNK + 3 and (found.loc["patient 0/0.png"] - found.loc["last.png"]).abs().max() < 1e-5
    assert not any(one.path.exists() or one.path.parent.exists() for one in uploads)


def test_problems_are_listed_and_the_rest_goes_on(reader, photograph, photographs, upload):
    """Broken, empty, too small, of one name, beside images, gone since, refused by the disk, and with markup."""
    tiny = BytesIO()
    photograph().resize((40, 30)).save(tiny, "PNG")
    archive = zipped({"a/1.png": photographs[0].read_bytes(), "a/list.csv": b"x"})
    uploads = [
        upload("<b>bad</b>.png", b"no image"), upload("empty.dcm", b""), upload("tiny.png", tiny.getvalue()),
        upload("good.png", photographs[1].read_bytes()), upload("good.png", photographs[2].read_bytes()),
        upload("gone.png", b"x"), upload("gone.zip", archive), upload("disk.png", b"x"), upload("a.zip", archive),
    ]  # fmt: skip
    for gone in (5, 6, 7):
        uploads[gone].discard()
    uploads[7].path.mkdir(parents=True)  # reads as an error of the disk
    last = classify(reader, uploads, [upload("<i>notes</i>.txt", b"x")])[-1]
    assert table_of(last)["id"].tolist() == ["tiny.png", "good.png", "good.png (2)", "a/1.png"]
    assert problems_of(last) == {
        "could not": (5, ["&lt;b&gt;bad&lt;/b&gt;.png", "empty.dcm", "gone.png", "gone.zip", "disk.png"]),
        "not fit": (1, ["tiny.png"]),
        "renamed since": (1, ["good.png (2)"]),
        "passed over": (2, ["a/list.csv", "&lt;i&gt;notes&lt;/i&gt;.txt"]),
    }


def test_large_images_are_refused_before_they_are_decoded(reader, photographs, upload):
    last = classify(reader, [upload("a.png", photographs[0].read_bytes())], limits=Limits(pixels=10_000))[-1]
    assert problems_of(last)["could not"] == (1, ["a.png"]) and "10,000" in last and "Download" not in last


def test_a_refused_batch_is_removed(reader, upload):
    uploads = [upload("a.zip", b"no zip"), upload("b.png", b"x")]
    (only,) = classify(reader, uploads)
    assert 'role="alert"' in only and "zip" in only
    assert not any(one.path.exists() for one in uploads)


def test_a_visitor_who_leaves_half_way_leaves_nothing(reader, photographs, upload, tmp_path):
    uploads = [upload(f"{index}.png", photographs[0].read_bytes()) for index in range(2 * CHUNK)]
    steps = run_batch(Turns(1), reader, uploads, [], Limits())
    next(steps), next(steps)
    steps.close()
    assert not any(path.is_file() for path in tmp_path.rglob("*"))


def test_batches_wait_in_order_and_out_of_the_sweep(reader, photographs, upload, monkeypatch, tmp_path):
    """One batch runs at a time; a visitor who leaves gives the place away; a full line refuses."""
    monkeypatch.setattr("retfound_hf.app.page.LOOKS_EVERY", 0)
    turns, batches = Turns(3), []
    for number in range(3):
        uploads = [upload(f"{number}-{index}.png", photographs[index % 4].read_bytes()) for index in range(2 * CHUNK)]
        batches.append(run_batch(turns, reader, uploads, [upload("notes.txt", b"x")], Limits()))
    first, second, third = batches
    assert 'value="0"' in next(first)
    assert "for 1 earlier batch." in next(second) and "for 2 earlier batches." in next(third)
    shutil.rmtree(tmp_path / "uploads")  # as gradio's sweep would
    (full,) = run_batch(turns, reader, [upload("late.png", b"x")], [], Limits())
    assert 'role="alert"' in full
    second.close()
    assert "for 1 earlier batch." in next(third)
    assert len(table_of(list(first)[-1])) == 2 * CHUNK
    assert 'value="0"' in next(third) and len(table_of(list(third)[-1])) == 2 * CHUNK
    assert not any(path.is_file() for path in tmp_path.rglob("*")) and not list(tmp_path.glob("batch-*"))
