"""The page in a real browser, headless: what a visitor does, and what the browser asks for meanwhile."""

import os
import shutil
import zipfile
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# Where the browser must be there, a missing one is a failure: scripts/test.sh says so after it has installed one.
WANTED = os.environ.get("BROWSER_TESTS") == "required"


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None and not WANTED:
        pytest.skip(f"no browser: none of {', '.join(BROWSERS)} is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield started
        started.close()


@pytest.fixture(scope="module")
def served(serve_page, classifier_folder, autoencoder_folder):
    return serve_page("--model", str(classifier_folder), "--reconstruction_model", str(autoencoder_folder))


@pytest.fixture
def page(browser, served):
    with opened(browser, served.url) as page:
        yield page


@contextmanager
def opened(browser, url: str):
    """The page as it opens; at the end it has asked nobody else for anything, and no script has failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900})
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(url)
    page.wait_for_selector("#rf-answer .rf-card")
    yield page
    context.close()
    foreign = [address for address in asked if not address.startswith((url, "data:", "blob:"))]
    assert foreign == [] and errors == []


def send(page, path: Path | str) -> None:
    page.set_input_files("#rf-zone input[type=file]", str(path))


def pixels(page, selector: str) -> np.ndarray:
    return np.asarray(Image.open(BytesIO(page.locator(selector).screenshot())).convert("RGB")).astype(int)


def test_upload_answer_and_slider(page, served, reader, photographs):
    send(page, photographs[1])
    page.wait_for_selector(".rf-headline")
    scores = reader.answer(Image.open(photographs[1])).scores
    best = int(scores.argmax())
    assert page.inner_text(".rf-headline") == f"{reader.class_names[best]} {100 * scores[best]:.1f}%"
    assert page.inner_text(".rf-first .rf-value") == f"{100 * scores[best]:.1f}%"
    text = page.inner_text("body")
    for line in (
        "Image: fit to be judged",
        "Not calibrated",
        "For research. Not a medical device.",
        "synthetic photo",
    ):
        assert line in text
    page.wait_for_selector(".rf-heat")
    shown = []
    for value in ("0", "50", "100"):
        page.locator(".rf-opacity").fill(value)
        shown.append(pixels(page, ".rf-layers"))
    none, half, full = shown
    photo = np.asarray(Image.open(photographs[1]).convert("RGB").resize(none.shape[1::-1])).astype(int)
    assert np.abs(none - photo).mean() < 6  # nothing over the photograph
    assert np.abs(full - none).mean() > 3 and np.abs(half - (none + full) / 2).mean() < 1.5
    assert served.files() == []


def test_an_adapter(browser, serve_page, adapter_folder, photographs):
    with opened(browser, serve_page("--model", str(adapter_folder)).url) as page:
        send(page, photographs[1])
        page.wait_for_selector(".rf-heat")
        text = page.inner_text("#rf-answer")
        # Nothing tells its classes apart.
        assert "Not calibrated: on validation data the scores were hardly better than guessing" in text
        assert "chosen on validation data" in text and "for a sensitivity of 90%" in text


def test_relevance_for_another_class(page, photographs):
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    first = page.get_attribute(".rf-heat", "src")
    target = page.get_attribute(".rf-heat", "alt")
    other = next(name for name in ("normal", "retinopathy", "glaucoma") if name not in target)
    page.click("#rf-choice input")
    page.get_by_role("option", name=other).click()
    page.wait_for_selector(f'.rf-heat[alt="Relevance for {other}, laid over the image"]')
    assert page.get_attribute(".rf-heat", "src") != first


def test_a_wrong_file_gets_a_message_and_the_next_one_an_answer(page, photographs, tmp_path: Path):
    (tmp_path / "letter.png").write_bytes(b"Dear doctor")
    send(page, tmp_path / "letter.png")
    page.wait_for_selector("#rf-answer [role=alert]")
    assert page.inner_text("#rf-answer").strip() == "letter.png: it is not an image in a format that Pillow knows"
    send(page, photographs[0])
    page.wait_for_selector("#rf-answer .rf-headline")


def test_an_example(page):
    page.click("#rf-offered button >> nth=1")
    page.wait_for_selector("#rf-answer .rf-headline")
    assert "synthetic CFP, retinopathy · 512 × 384 pixels" in page.inner_text("#rf-answer")
    page.wait_for_selector(".rf-heat")


def test_batch(page, served, reader, photographs, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "eyes.zip", "w") as archive:
        for path in photographs[:3]:
            archive.write(path, f"clinic/{path.name}")
    (tmp_path / "letter.png").write_bytes(b"Dear doctor")
    page.get_by_role("tab", name="Many images").click()
    files = [str(tmp_path / "eyes.zip"), str(photographs[3]), str(tmp_path / "letter.png")]
    page.set_input_files("#rf-batch-zone input[type=file]", files)
    page.wait_for_selector("#rf-batch-zone >> text=letter")
    page.click("#rf-batch-start")
    with page.expect_download() as download:
        page.click(".rf-download")
    assert download.value.suggested_filename == "predictions.csv"
    table = pd.read_csv(download.value.path())
    assert table["id"].tolist() == [*(f"clinic/{path.name}" for path in photographs[:3]), photographs[3].name]
    expected = np.stack([reader.answer(Image.open(path)).scores for path in photographs])
    assert np.allclose(table[[f"prob/{name}" for name in reader.class_names]], expected, atol=1e-4)
    assert table["prediction"].tolist() == [reader.class_names[index] for index in expected.argmax(1)]
    assert "1 could not be read" in page.inner_text("#rf-batch")
    assert served.files() == []


def test_a_folder(page, served, reader, photographs, tmp_path: Path):
    (tmp_path / "clinic").mkdir()
    for path in photographs[:2]:
        shutil.copy(path, tmp_path / "clinic")
    (tmp_path / "clinic" / "notes.txt").write_text("Dear doctor")
    page.get_by_role("tab", name="Many images").click()
    page.set_input_files("#rf-batch-folder input[type=file]", str(tmp_path / "clinic"))
    page.wait_for_selector("#rf-batch-folder >> text=eye-1")
    page.click("#rf-batch-start")
    with page.expect_download() as download:
        page.click(".rf-download")
    table = pd.read_csv(download.value.path())
    assert sorted(Path(name).name for name in table["id"]) == [path.name for path in photographs[:2]]
    assert served.files() == []


def test_reconstruction(page, photographs):
    page.get_by_role("tab", name="Reconstruction").click()
    page.set_input_files("#rf-paint-zone input[type=file]", str(photographs[0]))
    page.wait_for_selector("#rf-painted img")
    widths = page.eval_on_selector_all("#rf-painted img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 0
    assert "hidden" in page.inner_text("#rf-painted")


@pytest.mark.parametrize("width", [390, 360])
def test_a_phone_scrolls_down_alone_and_shows_the_answer_first(page, photographs, width):
    page.set_viewport_size({"width": width, "height": 844})
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    for tab in ("One image", "Many images", "Reconstruction"):
        page.get_by_role("tab", name=tab).click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.get_by_role("tab", name="One image").click()
    assert page.locator("#rf-answer").bounding_box()["y"] < page.locator("#rf-picture").bounding_box()["y"]


def test_names_for_screen_readers_and_contrast(page, photographs):
    """Every control has a name, every picture a text, and small text reaches 4.5 : 1 (WCAG 2.1 AA)."""
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    assert page.get_by_role("slider", name="Opacity of the relevance map").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_by_role("button", name="synthetic CFP, normal").count() == 1
    colours = page.evaluate(CONTRAST)
    assert len(colours) >= 8 and min(colours.values()) >= 4.5, colours


# Contrast of every text in sight with the ground that it stands on.
CONTRAST = """() => {
  const parse = text => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map(v => v / 255)
    .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
    .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
  const ground = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = parse(getComputedStyle(e).backgroundColor);
      if (c.length < 4 || c[3] === 1) return c;
    }
    return [255, 255, 255];
  };
  const found = {};
  for (const e of document.querySelectorAll('.gradio-container *')) {
    const own = [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !e.offsetParent) continue;
    const [a, b] = [light(parse(getComputedStyle(e).color)), light(ground(e))].sort((x, y) => y - x);
    found[e.tagName + '.' + e.className + ':' + e.textContent.trim().slice(0, 20)] = (a + 0.05) / (b + 0.05);
  }
  return found;
}"""
