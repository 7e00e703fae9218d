"""The page in a real browser, headless: what a visitor does, and what the browser asks for meanwhile."""

import os
import re
import shutil
import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
# A missing browser is a failure where it must be there: scripts/test.sh says so after it has installed one.
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


@pytest.fixture
def page(browser, served, request):
    """The page as it opens; at the end it has asked nobody else for anything, and no script has failed."""
    context = browser.new_context(viewport={"width": 1280, "height": 900}, **getattr(request, "param", {}))
    page, asked, errors = context.new_page(), [], []
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.set_default_timeout(60_000)
    page.goto(served.url)
    page.wait_for_selector("#rf-answer .rf-card")
    yield page
    context.close()
    foreign = [address for address in asked if not address.startswith((served.url, "data:", "blob:"))]
    assert foreign == [] and errors == []


def send(page, path: Path | str) -> None:
    page.set_input_files("#rf-zone input[type=file]", str(path))


def with_opacity(page, value: str) -> np.ndarray:
    """Pixels of the picture with the map at an opacity of 0 to 100."""
    page.locator(".rf-opacity").fill(value)
    return np.asarray(Image.open(BytesIO(page.locator(".rf-layers").screenshot())).convert("RGB")).astype(int)


def test_an_answer_its_map_and_its_accessibility(page, served, reader, photographs):
    send(page, photographs[1])
    page.wait_for_selector(".rf-headline")
    scores = reader.answer(Image.open(photographs[1])).scores
    best = int(scores.argmax())
    assert page.inner_text(".rf-headline") == f"{reader.class_names[best]} {100 * scores[best]:.1f}%"
    assert page.inner_text(".rf-first .rf-value") == f"{100 * scores[best]:.1f}%"
    assert "Not a medical device" in page.inner_text("body") and "synthetic photo" in page.inner_text("#rf-use")
    page.wait_for_selector(".rf-heat")
    none, half, full = (with_opacity(page, value) for value in ("0", "50", "100"))
    photo = np.asarray(Image.open(photographs[1]).convert("RGB").resize(none.shape[1::-1])).astype(int)
    assert np.abs(none - photo).mean() < 6  # nothing over the photograph
    assert np.abs(full - none).mean() > 3 and np.abs(half - (none + full) / 2).mean() < 1.5
    # Every control has a name, every picture a text, and small text reaches 4.5 : 1 (WCAG 2.1 AA).
    assert page.get_by_role("slider", name="Opacity of the relevance map").count() == 1
    assert page.locator("img:not([alt])").count() == 0
    assert page.get_by_role("button", name="synthetic CFP, normal").count() == 1
    colours = page.evaluate(CONTRAST)
    assert len(colours) >= 8 and min(colours.values()) >= 4.5, colours
    # A map for another class.
    first, target = (page.get_attribute(".rf-heat", name) for name in ("src", "alt"))
    other = next(name for name in reader.class_names if name not in target)
    page.click("#rf-choice input")
    page.get_by_role("option", name=other).click()
    page.wait_for_selector(f'.rf-heat[alt*="{other}"]')
    assert page.get_attribute(".rf-heat", "src") != first
    assert served.files() == []


def test_a_wrong_file_then_an_example(page, tmp_path: Path):
    (tmp_path / "letter.png").write_bytes(b"Dear doctor")
    send(page, tmp_path / "letter.png")
    page.wait_for_selector("#rf-answer [role=alert]")
    assert page.inner_text("#rf-answer").strip().startswith("letter.png: ")
    page.click("#rf-offered button >> nth=1")
    page.wait_for_selector("#rf-answer .rf-headline")
    assert "synthetic CFP, retinopathy · 512 × 384 pixels" in page.inner_text("#rf-answer")
    page.wait_for_selector(".rf-heat")


def test_a_zip_files_and_a_folder(page, served, reader, photographs, tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "eyes.zip", "w") as archive:
        for path in photographs[:2]:
            archive.write(path, f"clinic/{path.name}")
    (tmp_path / "folder").mkdir()
    shutil.copy(photographs[3], tmp_path / "folder")
    (tmp_path / "folder" / "notes.txt").write_text("Dear doctor")
    page.get_by_role("tab", name="Many images").click()
    page.set_input_files("#rf-batch-zone input[type=file]", [str(tmp_path / "eyes.zip"), str(photographs[2])])
    page.set_input_files("#rf-batch-folder input[type=file]", str(tmp_path / "folder"))
    page.wait_for_selector("#rf-batch-zone >> text=eye-2")
    page.wait_for_selector("#rf-batch-folder >> text=eye-3")
    page.click("#rf-batch-start")
    with page.expect_download() as download:
        page.click(".rf-download")
    assert download.value.suggested_filename == "predictions.csv"
    table = pd.read_csv(download.value.path())
    assert table["id"].tolist()[:3] == ["clinic/eye-0.png", "clinic/eye-1.png", "eye-2.png"]
    assert [Path(name).name for name in table["id"]] == [path.name for path in photographs]
    expected = np.stack([reader.answer(Image.open(path)).scores for path in photographs])
    assert np.allclose(table[[f"prob/{name}" for name in reader.class_names]], expected, atol=1e-4)
    assert served.files() == []


def test_reconstruction(page, photographs):
    page.get_by_role("tab", name="Reconstruction").click()
    page.set_input_files("#rf-paint-zone input[type=file]", str(photographs[0]))
    page.wait_for_selector("#rf-painted img")
    widths = page.eval_on_selector_all("#rf-painted img", "images => images.map(image => image.naturalWidth)")
    assert len(widths) == 3 and min(widths) > 0


def test_a_phone_scrolls_down_alone_and_shows_the_answer_first(page, photographs):
    page.set_viewport_size({"width": 390, "height": 844})
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    assert page.locator("#rf-answer").bounding_box()["y"] < page.locator("#rf-picture").bounding_box()["y"]
    for width in (390, 360):
        page.set_viewport_size({"width": width, "height": 844})
        for tab in ("Many images", "Reconstruction", "One image"):
            page.get_by_role("tab", name=tab).click()
            assert page.evaluate("document.documentElement.scrollWidth") <= width


@pytest.mark.parametrize("page", [{"locale": "de-DE"}], indirect=True)
def test_a_german_browser_gets_german(page, photographs):
    page.wait_for_selector("text=Kein Medizinprodukt")
    for name in ("Ein Bild", "Viele Bilder", "Rekonstruktion"):
        assert page.get_by_role("tab", name=name).count() == 1
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    assert "Am wahrscheinlichsten" in page.inner_text("#rf-answer") and "Relevanz" in page.inner_text("#rf-picture")
    assert page.get_by_role("slider", name="Deckkraft der Relevanzkarte").count() == 1


@pytest.mark.parametrize("page", [{"color_scheme": "dark"}], indirect=True)
def test_the_keyboard_reaches_everything_and_dark_text_can_be_read(page):
    for _ in range(30):  # tabs, the drop zone, examples
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.dataset.index === '1'"):
            break
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    page.keyboard.press("Enter")
    page.wait_for_selector(".rf-heat")
    assert outline != "none" and "synthetic CFP, retinopathy" in page.inner_text("#rf-answer")
    page.locator(".rf-opacity").focus()
    before = page.input_value(".rf-opacity")
    page.keyboard.press("ArrowLeft")
    assert page.input_value(".rf-opacity") != before
    colours = page.evaluate(CONTRAST)
    assert len(colours) >= 8 and min(colours.values()) >= 4.5, colours


def test_an_answer_prints_on_one_sheet(page, photographs):
    send(page, photographs[0])
    page.wait_for_selector(".rf-heat")
    assert len(re.findall(rb"/Type\s*/Page\b", page.pdf(format="A4"))) == 1
    page.emulate_media(media="print")
    assert not page.is_visible("#rf-zone") and not page.is_visible(".rf-slider")
    assert page.is_visible(".rf-headline") and page.is_visible(".rf-photo")


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
