"""The pictures of the web page in the README, made anew.

    python scripts/benchmarks/app_pictures.py --lesions my-lesions --out scripts/benchmarks/results

Serves the classifier that `scripts/benchmarks/explain.py --keep my-lesions` leaves, with a card of its own, and drops
one of the photographs beside it on the page in a browser. Needs chromium and the extra `test`.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

APP = Path(__file__).parents[1] / "app.py"
PORT = 7898
CARD = """## Intended use

A demonstration: it finds a pale and a dark lesion in synthetic photographs. Of no use for real ones.
"""
VIEWS = {"app-desktop": (1080, 800, 1), "app-phone": (390, 844, 1)}


def demonstration(source: Path, target: Path) -> Path:
    """A copy of the classifier that says what it is."""
    shutil.copytree(source, target)
    (target / "README.md").write_text(CARD, encoding="utf-8")
    config = json.loads((target / "config.json").read_text(encoding="utf-8"))
    (target / "config.json").write_text(json.dumps({**config, "modality": "cfp"}), encoding="utf-8")
    return target


def photograph_page(image: str, out: Path) -> None:
    browser_path = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=browser_path, args=["--no-sandbox"])
        for name, (width, height, scale) in VIEWS.items():
            viewport = {"width": width, "height": height}
            page = browser.new_context(viewport=viewport, device_scale_factor=scale).new_page()
            page.goto(f"http://127.0.0.1:{PORT}")
            page.wait_for_selector("#rf-answer .rf-card")
            page.set_input_files("#rf-zone input[type=file]", image)
            page.wait_for_selector(".rf-heat")
            page.wait_for_timeout(500)
            page.screenshot(path=out / f"{name}.png", full_page=True)
            Image.open(out / f"{name}.png").convert("RGB").save(out / f"{name}.png", optimize=True)
        browser.close()


def main() -> None:
    parser = argparse.ArgumentParser(description="Pictures of the web page for the README.")
    parser.add_argument("--lesions", type=Path, required=True, help="folder that explain.py --keep has made")
    parser.add_argument("--image", default="images/0.jpg", help="photograph in it")
    parser.add_argument("--out", type=Path, required=True, help="folder to write app-desktop.png and app-phone.png to")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        model = demonstration(arguments.lesions / "classifier", Path(name) / "my-classifier")
        page = subprocess.Popen([sys.executable, str(APP), "--model", str(model), "--port", str(PORT)])
        try:
            for _ in range(600):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{PORT}", timeout=5)
                    break
                except OSError:
                    time.sleep(0.2)
            photograph_page(str(arguments.lesions / arguments.image), arguments.out)
        finally:
            page.terminate()


if __name__ == "__main__":
    main()
